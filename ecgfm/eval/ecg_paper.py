"""An ECG on paper: 12 leads in three rows of four, a rhythm strip, 25 mm/s and 10 mm/mV, true to scale.

The page is A4 across, and one unit of the axes is one millimetre of the page, so a ruler on the print
measures seconds and millivolts.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ecgfm.errors import SignalError
from ecgfm.leads import LEADS

PAGE_MM = (297.0, 210.0)
MM_PER_S = 25.0
MM_PER_MV = 10.0
MM_PER_INCH = 25.4
PAGE_INCH = (PAGE_MM[0] / MM_PER_INCH, PAGE_MM[1] / MM_PER_INCH)
SEGMENT_S = 2.5
STRIP_S = 10.0

ROWS = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM = "II"

# Left, bottom, right and top of the paper; all multiples of 5 so that the grid's thick lines close it.
PAPER_MM = (15.0, 20.0, 285.0, 190.0)
TRACE_START_MM = 30.0
BASELINES_MM = (155.0, 115.0, 75.0, 40.0)

PAPER, FINE, COARSE, INK, SHADE = "#fffaf8", "#f8d5cf", "#efa69c", "#1a1a1a", "#4a6fa5"
GLOW = "#2b4fd8"
DARKEST_GLOW = 0.6


def plot_ecg(
    signal_LT: NDArray[np.floating],
    rate_hz: float,
    *,
    title: str = "",
    hidden: Sequence[tuple[float, float]] | None = None,
    weight_LT: NDArray[np.floating] | None = None,
    weight_name: str = "",
) -> Figure:
    """Return a page with the first ten seconds of a recording; see `draw_ecg`."""
    figure = Figure(figsize=PAGE_INCH)
    draw_ecg(figure, signal_LT, rate_hz, title=title, hidden=hidden, weight_LT=weight_LT, weight_name=weight_name)
    return figure


def draw_ecg(
    figure: Figure | SubFigure,
    signal_LT: NDArray[np.floating],
    rate_hz: float,
    *,
    title: str = "",
    hidden: Sequence[tuple[float, float]] | None = None,
    weight_LT: NDArray[np.floating] | None = None,
    weight_name: str = "",
) -> None:
    """Draw the first ten seconds of a recording on ECG paper.

    Each lead is shifted by its median, as a recorder's high-pass filter would; nothing else is changed.

    Args:
        figure: A figure, or a part of one, of the size of a page (`PAGE_INCH`) to be true to scale.
        signal_LT: Millivolt, the twelve leads in canonical order.
        rate_hz: Samples per second.
        title: Printed above the paper.
        hidden: Blocks of time in seconds (start, end) that are shaded.
        weight_LT: For each sample, in [0, 1]: how dark the paper behind it is.
        weight_name: What the weights are, printed below the paper.

    Raises:
        SignalError: The shape is not (12, samples), the rate is not above 0, or weights are not in [0, 1] or have
            another shape.
    """
    if signal_LT.ndim != 2 or signal_LT.shape[0] != len(LEADS) or signal_LT.shape[1] < 2 or rate_hz <= 0:
        raise SignalError(f"signal has shape {signal_LT.shape} at {rate_hz} Hz; expected (12, samples) above 0 Hz")
    if weight_LT is not None and not (
        weight_LT.shape == signal_LT.shape and 0 <= weight_LT.min() <= weight_LT.max() <= 1
    ):
        raise SignalError(
            f"weights of shape {weight_LT.shape}, {weight_LT.min():g} to {weight_LT.max():g}, are not in [0, 1] for a "
            f"signal of {signal_LT.shape}"
        )
    signal_LT = signal_LT - np.nanmedian(signal_LT, axis=1, keepdims=True)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, PAGE_MM[0]), ylim=(0, PAGE_MM[1]))
    axes.set_axis_off()
    _draw_paper(axes)
    stretches = [
        (name, column * SEGMENT_S, SEGMENT_S, baseline)
        for names, baseline in zip(ROWS, BASELINES_MM)
        for column, name in enumerate(names)
    ]
    stretches.append((RHYTHM, 0.0, STRIP_S, BASELINES_MM[-1]))
    for name, start_s, length_s, baseline in stretches:
        if weight_LT is not None:
            _draw_weights(axes, weight_LT, rate_hz, name, start_s, length_s, baseline)
        _draw_lead(axes, signal_LT, rate_hz, name, start_s, length_s, baseline)
    for baseline in BASELINES_MM:
        _draw_calibration(axes, baseline)
    for block in hidden or ():
        _shade(axes, *block)
    left, bottom, right, top = PAPER_MM
    axes.text(left, top + 4, title, fontsize=11, color=INK, va="bottom")
    seconds = signal_LT.shape[1] / rate_hz
    shown = f"{min(seconds, STRIP_S):.3g} s of {seconds:.4g} s"
    footer = f"{MM_PER_S:g} mm/s    {MM_PER_MV:g} mm/mV    {rate_hz:g} Hz    {shown}"
    axes.text(left, bottom - 3, footer, fontsize=8, color=INK, va="top")
    if hidden:
        axes.add_patch(Rectangle((right - 42, bottom - 5.6), 6, 3, facecolor=SHADE, alpha=0.25, linewidth=0))
        axes.text(right, bottom - 3, "hidden from the encoder", fontsize=8, color=INK, va="top", ha="right")
    if weight_LT is not None:
        _draw_glow(axes, np.linspace(0, 1, 64)[None], (right - 30, bottom - 6, right, bottom - 3), "scale")
        axes.text(right - 32, bottom - 3, weight_name, fontsize=8, color=INK, va="top", ha="right")


def _draw_paper(axes: Axes) -> None:
    left, bottom, right, top = PAPER_MM
    axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, facecolor=PAPER, linewidth=0, zorder=0))
    for step, color, width in ((1.0, FINE, 0.25), (5.0, COARSE, 0.5)):
        across = [[(x, bottom), (x, top)] for x in np.arange(left, right + step / 2, step)]
        along = [[(left, y), (right, y)] for y in np.arange(bottom, top + step / 2, step)]
        axes.add_collection(
            LineCollection(across + along, colors=color, linewidths=width, zorder=1, gid=f"grid-{step:g}")
        )


def _draw_calibration(axes: Axes, baseline: float) -> None:
    """Draw the pulse of 1 mV and 0.2 s that says what the scale is."""
    width, height = 0.2 * MM_PER_S, 1.0 * MM_PER_MV
    start = TRACE_START_MM - 10.0
    x = start + np.array([-2.5, 0.0, 0.0, width, width, width + 2.5])
    y = baseline + np.array([0.0, 0.0, height, height, 0.0, 0.0])
    axes.plot(x, y, color=INK, linewidth=0.8, zorder=4, gid="calibration")


def _draw_lead(
    axes: Axes,
    signal_LT: NDArray[np.floating],
    rate_hz: float,
    name: str,
    start_s: float,
    length_s: float,
    baseline: float,
) -> None:
    """Draw the stretch of a lead that belongs at its place of the page."""
    first = round(start_s * rate_hz)
    # One sample more than the stretch: neighbours then join without a gap.
    stretch = signal_LT[LEADS.index(name), first : round((start_s + length_s) * rate_hz) + 1]
    x = TRACE_START_MM + (first + np.arange(len(stretch))) / rate_hz * MM_PER_S
    (line,) = axes.plot(x, baseline + stretch * MM_PER_MV, color=INK, linewidth=0.8, zorder=4, gid=f"lead-{name}")
    line.set_solid_joinstyle("round")
    place = TRACE_START_MM + start_s * MM_PER_S
    if start_s:
        axes.plot([place, place], [baseline - 3, baseline + 3], color=INK, linewidth=0.6, zorder=4, gid="divider")
    plate = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.text(place + 1.5, baseline + 14, name, fontsize=10, weight="bold", color=INK, zorder=5, bbox=plate)


def _draw_weights(
    axes: Axes,
    weight_LT: NDArray[np.floating],
    rate_hz: float,
    name: str,
    start_s: float,
    length_s: float,
    baseline: float,
) -> None:
    """Darken the paper behind the stretch of a lead by its weights."""
    first = round(start_s * rate_hz)
    weight_T = weight_LT[LEADS.index(name), first : round((start_s + length_s) * rate_hz)]
    if len(weight_T):
        left = TRACE_START_MM + first / rate_hz * MM_PER_S
        right = left + len(weight_T) / rate_hz * MM_PER_S
        _draw_glow(axes, weight_T[None], (left, baseline - 16, right, baseline + 18), f"weight-{name}")


def _draw_glow(
    axes: Axes, weight_1T: NDArray[np.floating], box_mm: tuple[float, float, float, float], gid: str
) -> None:
    left, bottom, right, top = box_mm
    color = np.zeros((1, weight_1T.shape[1], 4))
    color[..., :3] = to_rgb(GLOW)
    color[..., 3] = DARKEST_GLOW * weight_1T
    # Above the grid, so that what is dark is seen to be; below the traces.
    axes.imshow(color, extent=(left, right, bottom, top), aspect="auto", interpolation="nearest", zorder=2, gid=gid)


def _shade(axes: Axes, start_s: float, end_s: float) -> None:
    """Shade a block of time in every row; the rows share their time axis."""
    left, right = (TRACE_START_MM + min(max(at, 0.0), STRIP_S) * MM_PER_S for at in (start_s, end_s))
    if right <= left:
        return
    for baseline in BASELINES_MM:
        axes.add_patch(
            Rectangle(
                (left, baseline - 16),
                right - left,
                34,
                facecolor=SHADE,
                alpha=0.25,
                linewidth=0,
                zorder=3,
                gid="hidden",
            )
        )
