"""An ECG on paper measures true: millimetres on the page are seconds and millivolts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ecgfm.errors import SignalError
from ecgfm.eval.plots import plot_ecg
from ecgfm.leads import LEADS

MM_PER_INCH = 25.4


def page_mm(figure: Figure, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return data coordinates as millimetres on the printed page."""
    pixels = figure.axes[0].transData.transform(points)
    return np.asarray(pixels / figure.dpi * MM_PER_INCH)


def lines(figure: Figure, gid: str) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if line.get_gid() == gid]


def ramp() -> NDArray[np.float64]:
    """Twelve leads at 100 Hz; each a spike of its own height at each half second, around its own offset."""
    signal = np.zeros((12, 1000))
    for lead in range(12):
        signal[lead, ::50] = 0.5 + 0.05 * lead
    return signal + np.arange(12)[:, None]


def test_a_millivolt_is_10_mm_and_a_second_25_mm_on_the_page() -> None:
    figure = plot_ecg(ramp(), 100.0)
    for lead, name in enumerate(LEADS):
        for line in lines(figure, f"lead-{name}"):
            points = page_mm(figure, np.column_stack([line.get_xdata(), line.get_ydata()]))
            high = points[:, 1] > points[:, 1].min() + 1
            assert np.ptp(points[:, 1]) == pytest.approx(10 * (0.5 + 0.05 * lead), abs=1e-6)
            assert np.diff(points[high, 0]) == pytest.approx(12.5, abs=1e-6)
            assert np.diff(points[:, 0]) == pytest.approx(0.25, abs=1e-6)


def test_the_page_is_a4_and_the_grid_is_1_and_5_mm() -> None:
    figure = plot_ecg(ramp(), 100.0)
    assert figure.get_size_inches() * MM_PER_INCH == pytest.approx((297, 210))
    for step in (1, 5):
        (grid,) = [item for item in figure.axes[0].collections if item.get_gid() == f"grid-{step}"]
        points = np.asarray([page_mm(figure, np.asarray(path.vertices)) for path in grid.get_paths()])
        upright = points[points[:, 0, 0] == points[:, 1, 0]][:, 0, 0]
        assert np.diff(upright) == pytest.approx(step, abs=1e-6)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    picture.seek(0)
    assert imread(picture).shape[:2] == pytest.approx((827, 1169), abs=1)


def test_leads_stand_three_by_four_with_a_rhythm_strip_of_lead_ii() -> None:
    figure = plot_ecg(ramp(), 100.0)
    starts = {}
    for name in LEADS:
        found = lines(figure, f"lead-{name}")
        assert len(found) == (2 if name == "II" else 1)
        points = page_mm(figure, np.column_stack([found[0].get_xdata(), found[0].get_ydata()]))
        starts[name] = (points[0, 0], points[:, 1].min())
        assert np.ptp(points[:, 0]) <= 2.5 * 25 + 1e-6
    columns = [("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6")]
    for number, names in enumerate(columns):
        assert {round(starts[name][0] - starts["I"][0], 6) for name in names} == {number * 62.5}
        assert starts[names[0]][1] > starts[names[1]][1] > starts[names[2]][1]
    strip = lines(figure, "lead-II")[1]
    assert np.ptp(np.asarray(strip.get_xdata())) == pytest.approx(10 * 25, abs=0.3)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert all(texts.count(name) == (2 if name == "II" else 1) for name in LEADS)
    assert any("25 mm/s" in text and "10 mm/mV" in text for text in texts)


def test_the_calibration_pulse_is_1_mv_and_a_fifth_of_a_second() -> None:
    figure = plot_ecg(ramp(), 100.0)
    pulses = lines(figure, "calibration")
    assert len(pulses) == 4
    for pulse in pulses:
        points = page_mm(figure, np.column_stack([pulse.get_xdata(), pulse.get_ydata()]))
        assert np.ptp(points[:, 1]) == pytest.approx(10, abs=1e-6)
        top = points[points[:, 1] > points[:, 1].min() + 5]
        assert np.ptp(top[:, 0]) == pytest.approx(5, abs=1e-6)


def test_hidden_blocks_are_shaded_at_their_time_in_every_row() -> None:
    figure = plot_ecg(ramp(), 100.0, hidden=[(1.0, 4.0), (9.0, 12.0)])
    start = page_mm(figure, np.asarray([[np.asarray(lines(figure, "lead-I")[0].get_xdata())[0], 0.0]]))[0, 0]
    boxes = [patch.get_extents() for patch in figure.axes[0].patches if patch.get_gid() == "hidden"]
    spans = [tuple(np.asarray([box.x0, box.x1]) / figure.dpi * MM_PER_INCH - start) for box in boxes]
    assert len(spans) == 8
    for span, wanted in zip(sorted(spans), [(25, 100)] * 4 + [(225, 250)] * 4, strict=True):
        assert span == pytest.approx(wanted, abs=1e-6)


def test_a_recording_shorter_than_the_page_is_drawn_as_far_as_it_goes() -> None:
    figure = plot_ecg(ramp()[:, :300], 100.0)
    assert np.ptp(np.asarray(lines(figure, "lead-II")[1].get_xdata())) == pytest.approx(2.99 * 25)
    assert len(np.asarray(lines(figure, "lead-V1")[0].get_xdata())) == 0


@pytest.mark.parametrize("shape", [(1000, 12), (12,), (8, 1000), (12, 1)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SignalError, match="expected \\(12, samples\\)"):
        plot_ecg(np.zeros(shape), 500.0)
