"""Lines and shades stand where the signals and masks are, in seconds and millivolt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from ecgfm.data.batch import Batch
from ecgfm.data.panel import Panel
from ecgfm.errors import ConfigError
from ecgfm.eval.qrs import qrs_of
from ecgfm.eval.view_plots import plot_views, qrs_shares
from ecgfm.leads import LEADS

RATE_HZ, SAMPLES = 100.0, 1000


def beats() -> Tensor:
    """Return two windows of a beat a second, normalised, with a mean and a size in each lead that are its own."""
    time_T = torch.arange(SAMPLES) / RATE_HZ
    beat_T = torch.exp(-(((time_T % 1.0 - 0.5) / 0.015) ** 2))
    return beat_T * torch.linspace(1.0, 2.0, 24).view(2, 12, 1)


def batch() -> Batch:
    return Batch(
        signal_BLT=beats(),
        microvolt_per_count_B=torch.ones(2),
        database_B=torch.zeros(2, dtype=torch.int64),
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.linspace(-0.5, 0.5, 24).view(2, 12),
        std_mv_BL=torch.linspace(0.2, 0.4, 24).view(2, 12),
    )


def drawn(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def lines(axes: Axes) -> list[np.ndarray]:
    """Return x and y of the signals, without grid and scale."""
    found = [np.asarray(line.get_xydata()) for line in axes.lines]
    return [line for line in found if len(line) > 2]


def test_a_crop_is_drawn_at_its_time_and_in_millivolt() -> None:
    crop = Panel(title="crop", signal_BLT=beats()[:, :, 200:500] + 1.0, start_B=torch.tensor([200, 100]))
    window = Panel(title="window", signal_BLT=beats())
    figure = plot_views([window, crop], batch(), heading=["x"], titles=["a", "b"])
    axes = drawn(figure)
    assert len(axes) == 4 and [one.get_title(loc="left") for one in axes] == ["window", "crop"] * 2
    for row, start_s in ((0, 2.0), (1, 1.0)):
        whole, part = (lines(one) for one in axes[2 * row : 2 * row + 2])
        assert len(whole) == len(part) == 12
        zero = axes[2 * row].get_yticks()
        for lead, (one, other) in enumerate(zip(whole, part, strict=True)):
            np.testing.assert_allclose(other[:, 0], start_s + np.arange(300) / RATE_HZ)
            std = batch().std_mv_BL[row, lead].item()  # type: ignore[index]
            wanted = beats()[row, lead].numpy() * std
            wanted = wanted - np.median(wanted)
            np.testing.assert_allclose(one[:, 1] - zero[lead], wanted, atol=1e-5)
            # The crop lies one deviation higher, over the same zero.
            np.testing.assert_allclose(other[:, 1] - zero[lead], wanted[200:500] + std, atol=1e-5)
        assert axes[2 * row + 1].get_xlim() == (0.0, 10.0)


def test_shades_lie_where_a_mask_is_and_are_as_dark() -> None:
    mask = torch.zeros(2, 1, SAMPLES)
    mask[0, 0, 100:250], mask[0, 0, 400:500] = 1.0, 0.5
    apart = torch.zeros(2, 12, SAMPLES)
    apart[1, 3, 600:] = 1.0
    panel = Panel(title="w", signal_BLT=beats(), regions={"one": mask, "other": apart})
    figure = plot_views([panel], batch(), heading=["x"], titles=["a", "b"], leads=("II", "aVR"))
    first, second = drawn(figure)
    boxes: dict[tuple[Axes, tuple[float, float, float | None]], list[float]] = {}
    for axes in (first, second):
        for bars in axes.collections:
            for path in bars.get_paths():
                box = path.get_extents()
                key = (round(box.x0, 6), round(box.x1, 6), bars.get_alpha())
                boxes.setdefault((axes, key), []).append((box.y0 + box.y1) / 2)
    zeros = {axes: list(axes.get_yticks()) for axes in (first, second)}
    dark, light = 0.35, 0.35 / 2
    assert {key: np.sort(np.round(rows, 6))[::-1].tolist() for key, rows in boxes.items()} == {
        (first, (1.0, 2.5, dark)): zeros[first],
        (first, (4.0, 5.0, light)): zeros[first],
        (second, (6.0, 10.0, dark)): [zeros[second][1]],
    }


def test_no_text_lies_on_another_and_none_is_cut_off() -> None:
    notes = ("baseline_wander, gaussian_noise, random_erasing", "gaussian_noise")
    panels = [Panel(title=f"short view {number}", signal_BLT=beats(), notes=notes) for number in range(8)]
    figure = plot_views(panels, batch(), heading=["what", "how", "and"], titles=["record one", "record two"])
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    parts = [figure, *figure.subfigs]
    texts = [text for part in parts for text in part.findobj(Text) if text.get_text() and text.get_visible()]
    titles = [axes.title for axes in drawn(figure)] + [axes._left_title for axes in drawn(figure)]  # type: ignore[attr-defined]
    wanted = {text for text in texts if text.get_text() in ("what", "how", "and", "record one", "record two")}
    boxes = [text.get_window_extent() for text in {*wanted, *titles} if text.get_text()]
    assert len(boxes) == 5 + 16
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
    # Eight panels leave room for three leads.
    assert [label.get_text() for label in drawn(figure)[0].get_yticklabels()] == ["II", "V1", "V5"]


def test_a_mask_of_the_complexes_covers_them_and_little_else() -> None:
    qrs_B1T = qrs_of(beats(), RATE_HZ)[:, None]
    even = torch.zeros(2, 1, SAMPLES)
    even[:, :, ::2] = 1.0
    panels = [
        Panel(title="a", signal_BLT=beats(), regions={"beats": qrs_B1T, "even": even}, masks=True),
        Panel(title="b", signal_BLT=beats(), regions={"not a mask": even}),
    ]
    shares = qrs_shares(panels, RATE_HZ)
    assert shares.keys() == {"beats", "even"}
    assert shares["beats"] == pytest.approx((1.0, qrs_B1T.float().mean().item()))
    assert shares["beats"][1] < 0.3
    # Half of the samples, and of the complexes as far as their borders let.
    assert shares["even"] == pytest.approx((0.5, 0.5), abs=0.06)


def test_a_lead_that_is_none_is_refused_with_the_leads() -> None:
    with pytest.raises(ConfigError, match=f"--leads v5: the leads are {' '.join(LEADS)}"):
        plot_views([Panel(title="w", signal_BLT=beats())], batch(), heading=["x"], titles=["a"], leads=("v5",))
