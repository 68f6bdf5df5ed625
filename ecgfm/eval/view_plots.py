"""What an objective sees of a recording, drawn: its views at their place of the window, masks, and reconstructions.

Leads lie one above the other at the same scale, on the grid of ECG paper in time: a line each 0.2 s, a stronger one
each second.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.panel import Panel
from ecgfm.errors import ConfigError
from ecgfm.eval.ecg_paper import COARSE, FINE, INK, PAPER, SHADE
from ecgfm.eval.qrs import qrs_share
from ecgfm.leads import LEADS

GUESS = "#d55e00"
# Okabe and Ito's, but for the guess's.
REGIONS = (SHADE, "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#7f6000")
FEW = ("II", "V1", "V5")
"""Leads that are drawn where many views would leave no room for twelve."""
MOST_WITH_ALL_LEADS = 4
TITLE_CHARACTERS = 180
"""That fit side by side over the page."""
LEVELS = 4
"""Shades of what is marked in part."""


def plot_views(
    panels: Sequence[Panel],
    batch: Batch,
    *,
    heading: Sequence[str],
    titles: Sequence[str],
    leads: Sequence[str] = (),
    said: Mapping[str, str] | None = None,
) -> Figure:
    """Return each window's panels, one window below the other, in millivolt.

    Args:
        panels: Of an objective's `picture`.
        batch: Prepared, as the objective got it.
        heading: Lines above it all.
        titles: Of each window that is drawn, the first of the batch.
        leads: Those that are drawn; all, or three where there are more than four panels.
        said: What the legend adds to the name of a region.

    Raises:
        ConfigError: A lead is none of the twelve.
    """
    unknown = [lead for lead in leads if lead not in LEADS]
    if unknown:
        raise ConfigError(f"--leads {unknown[0]}: the leads are {' '.join(LEADS)}")
    shown = tuple(leads) or (LEADS if len(panels) <= MOST_WITH_ALL_LEADS else FEW)
    columns = _columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    row_inch = 0.95 + 0.38 * max(len(shown), 3)
    block_inch = 0.35 + rows * row_inch
    top_inch, bottom_inch = 0.25 + 0.2 * len(heading), 0.45
    height = top_inch + len(titles) * block_inch + bottom_inch
    figure = Figure(figsize=(15.0, height), layout="constrained")
    parts = figure.subfigures(
        len(titles) + 2, 1, squeeze=False, height_ratios=[top_inch, *[block_inch] * len(titles), bottom_inch], hspace=0
    ).ravel()
    for number, line in enumerate(heading):
        style: dict[str, Any] = {"fontsize": 9} if number else {"fontsize": 12, "weight": "bold"}
        parts[0].text(
            0.008, 1 - (0.1 + 0.2 * number + 0.05 * (number > 0)) / top_inch, line, va="top", ha="left", **style
        )
    for row, title in enumerate(titles):
        _draw_window(parts[1 + row], panels, batch, row, title, shown, (rows, columns))
    _draw_legend(parts[-1], panels, said or {})
    return figure


def qrs_shares(panels: Sequence[Panel], rate_hz: float) -> dict[str, tuple[float, float]]:
    """Return of each mask the share of the QRS samples and of all samples that it hides, over all windows and leads."""
    found: dict[str, list[tuple[float, float]]] = {}
    for panel in panels:
        for name, mask_BNT in panel.regions.items() if panel.masks else ():
            share = qrs_share(mask_BNT, panel.signal_BLT, rate_hz)
            # A window without a complex has no share of them.
            found.setdefault(name, []).append((float(share.qrs_BN.nanmean()), float(share.all_BN.mean())))
    return {name: (fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)) for name, pairs in found.items()}


def _colors(panels: Sequence[Panel]) -> dict[str, str]:
    """Return the color of each region by its name."""
    names = dict.fromkeys(name for panel in panels for name in panel.regions)
    return {name: REGIONS[number % len(REGIONS)] for number, name in enumerate(names)}


def _columns(panels: int) -> int:
    """Return how many panels lie side by side."""
    return panels if panels <= 3 else 2 if panels == MOST_WITH_ALL_LEADS else 3 if panels <= 6 else 4


def _draw_window(
    part: SubFigure,
    panels: Sequence[Panel],
    batch: Batch,
    row: int,
    title: str,
    leads: tuple[str, ...],
    grid: tuple[int, int],
) -> None:
    """Draw the panels of one window."""
    assert batch.rate_hz is not None and batch.mean_mv_BL is not None and batch.std_mv_BL is not None
    index = [LEADS.index(lead) for lead in leads]
    std_L1, mean_L1 = (values_BL[row, index, None].cpu().numpy() for values_BL in (batch.std_mv_BL, batch.mean_mv_BL))
    window_LT = batch.signal_BLT[row, index].float().cpu().numpy() * std_L1 + mean_L1
    # As a recorder's high-pass filter would; the same for all views, so that a shifted one is seen to be shifted.
    zero_L1 = np.median(window_LT, axis=1, keepdims=True)
    spacing_mv = _spacing(window_LT)
    part.suptitle(title, fontsize=10, x=0.008, ha="left")
    colors = _colors(panels)
    axes_N = part.subplots(*grid, squeeze=False).ravel()
    for axes in axes_N[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(axes_N, panels, strict=False):
        start = int(panel.start_B[row]) if panel.start_B is not None else 0
        signal_LT = panel.signal_BLT[row, index].float().cpu().numpy() * std_L1 + mean_L1 - zero_L1
        start_s = start / batch.rate_hz
        time_T = start_s + np.arange(signal_LT.shape[1]) / batch.rate_hz
        end_s = start_s + signal_LT.shape[1] / batch.rate_hz
        limits = (start_s, end_s) if panel.alone else (0.0, window_LT.shape[1] / batch.rate_hz)
        _paper(axes, leads, spacing_mv, limits)
        for name, values_BLT in panel.regions.items():
            values_LT = values_BLT[row].float().cpu().numpy()
            values_LT = values_LT[index] if len(values_LT) > 1 else values_LT.repeat(len(leads), axis=0)
            _mark(axes, values_LT, start_s, batch.rate_hz, spacing_mv, colors[name])
        shift_L1 = -spacing_mv * np.arange(len(leads))[:, None]
        axes.plot(time_T, (signal_LT + shift_L1).T, color=INK, linewidth=0.6, zorder=3)
        if panel.guess_BLT is not None:
            guess_LT = panel.guess_BLT[row, index].float().cpu().numpy() * std_L1 + mean_L1 - zero_L1
            axes.plot(time_T, (guess_LT + shift_L1).T, color=GUESS, linewidth=0.9, zorder=4)
        note = panel.notes[row] if panel.notes else ""
        text = f"{panel.title}: {note}" if note else panel.title
        axes.set_title(textwrap.fill(text, TITLE_CHARACTERS // grid[1]), fontsize=9, loc="left")


def _spacing(window_LT: NDArray[np.floating]) -> float:
    """Return how many millivolt lie between two leads' zeros: most leads then keep clear of their neighbours."""
    reach = np.quantile(window_LT, 0.998, axis=1) - np.quantile(window_LT, 0.002, axis=1)
    return float(np.clip(0.25 * math.ceil(np.quantile(reach, 0.7) / 0.25), 0.5, 5.0))


def _paper(axes: Axes, leads: tuple[str, ...], spacing_mv: float, limits: tuple[float, float]) -> None:
    """Draw grid, lead names and scale."""
    bottom, top = -(len(leads) - 0.25) * spacing_mv, 0.95 * spacing_mv
    axes.set(xlim=limits, ylim=(bottom, top), facecolor=PAPER)
    first, last = math.ceil(limits[0] / 0.2), math.floor(round(limits[1] / 0.2, 6))
    for number in range(first, last + 1):
        color, width = (COARSE, 0.6) if number % 5 == 0 else (FINE, 0.3)
        axes.axvline(number * 0.2, color=color, linewidth=width, zorder=0)
    axes.set_yticks([-spacing_mv * number for number in range(len(leads))], leads, fontsize=7)
    axes.tick_params(length=2, labelsize=7)
    axes.set_xlabel("time in the window, s", fontsize=7.5, labelpad=1)
    for side in axes.spines.values():
        side.set(color=COARSE, linewidth=0.6)
    # The height of one millivolt, in the right margin.
    axes.plot(
        [1.008, 1.008], [top - 1.0, top], transform=axes.get_yaxis_transform(), color=INK, linewidth=1.4, clip_on=False
    )
    axes.text(1.014, top, "1 mV", transform=axes.get_yaxis_transform(), fontsize=7, rotation=90, va="top", ha="left")


def _mark(
    axes: Axes, values_LT: NDArray[np.floating], start_s: float, rate_hz: float, spacing_mv: float, color: str
) -> None:
    """Shade where something is marked, behind each lead."""
    level_LT = np.rint(np.clip(values_LT, 0.0, 1.0) * LEVELS).astype(int)
    for lead, level_T in enumerate(level_LT):
        for level in range(1, LEVELS + 1):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], level_T == level, [False]]).astype(int)))
            spans = [
                (start_s + first / rate_hz, (last - first) / rate_hz)
                for first, last in zip(edges[::2], edges[1::2], strict=True)
            ]
            narrow = min((length for _, length in spans), default=0.0) < 0.002 * float(np.diff(axes.get_xlim())[0])
            axes.broken_barh(
                spans,
                (-spacing_mv * (lead + 0.5), spacing_mv),
                facecolor=color,
                # A step of 10 ms is narrower than a dot of a long window, and gets an edge.
                edgecolor=color,
                linewidth=0.5 if narrow else 0.0,
                alpha=0.35 * level / LEVELS,
                zorder=1,
            )


def _draw_legend(part: SubFigure, panels: Sequence[Panel], said: Mapping[str, str]) -> None:
    """Explain lines and shades."""
    handles: dict[str, Line2D | Patch] = {"signal": Line2D([], [], color=INK, linewidth=0.8)}
    if any(panel.guess_BLT is not None for panel in panels):
        handles["reconstruction"] = Line2D([], [], color=GUESS, linewidth=1.2)
    for name, color in _colors(panels).items():
        handles[f"{name}: {said[name]}" if name in said else name] = Patch(color=color, alpha=0.35, linewidth=0)
    part.legend(list(handles.values()), list(handles), loc="center", ncols=len(handles), frameon=False, fontsize=9)
