"""Pictures of recordings, of features and of probes. Figure objects only: nothing global is touched.

Shapes: N records, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.ecg_paper import PAGE_INCH, draw_ecg, plot_ecg

if TYPE_CHECKING:
    from ecgfm.eval.probe import Result

__all__ = ["plot_ecg", "plot_features", "plot_pages", "plot_probe", "save"]

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#000000")
GREY = "#b0b0b0"


def plot_pages(
    records: Sequence[tuple[str, NDArray[np.floating], float]],
    hidden: Sequence[tuple[float, float]] | None = None,
) -> Figure:
    """Return recordings on ECG paper, page beside page and true to scale.

    Args:
        records: Title, signal in millivolt of shape (12, T), and rate of each.
        hidden: See `plot_ecg`.
    """
    columns = 1 if len(records) == 1 else 2 if len(records) <= 6 else 3
    rows = -(-len(records) // columns)
    figure = Figure(figsize=(columns * PAGE_INCH[0], rows * PAGE_INCH[1]))
    pages = figure.subfigures(rows, columns, squeeze=False, wspace=0, hspace=0).ravel()
    for page, (title, signal_LT, rate_hz) in zip(pages, records):
        draw_ecg(page, signal_LT, rate_hz, title=title, hidden=hidden)
    return figure


def plot_features(place_N2: NDArray[np.floating], labels: Sequence[str], axis_names: tuple[str, str]) -> Figure:
    """Return records at their places in the plane (of `curve_plots.layout`), coloured by label.

    The most frequent labels get a colour each; the others are grey.

    Raises:
        ConfigError: There is not one label for each record.
    """
    if len(labels) != len(place_N2):
        raise ConfigError(f"{len(place_N2)} records with {len(labels)} labels; needs a label for each")
    shown = [label for label, _ in Counter(labels).most_common(len(COLORS) - 1)]
    names = np.asarray([label if label in shown else "other" for label in labels])
    figure = Figure(figsize=(9.5, 6), layout="constrained")
    axes = figure.subplots()
    order = (["other"] if "other" in names else []) + shown  # grey first, below the others
    for label in order:
        chosen = place_N2[names == label]
        color = GREY if label == "other" and label not in shown else COLORS[shown.index(label)]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=22,
            color=color,
            alpha=0.8,
            linewidth=0,
            label=f"{_short(label, 44)} ({len(chosen):,})",
        )
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.set_title(f"Features of {len(labels):,} records", loc="left", fontsize=12, weight="bold")
    handles, texts = axes.get_legend_handles_labels()
    turned = slice(1, None) if order[0] == "other" else slice(None)
    figure.legend(
        handles[turned] + handles[: turned.start or 0],
        texts[turned] + texts[: turned.start or 0],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
    )
    _plain(axes)
    return figure


def plot_probe(results: Sequence[Result]) -> Figure:
    """Return the AUROC of each label with its interval, pretrained and untrained."""
    figure = Figure(figsize=(9.5, 1.5 + 0.62 * len(results)), layout="constrained")
    axes = figure.subplots()
    for row, result in enumerate(reversed(results)):
        for part, shift, color, name in (
            (result.pretrained, 0.13, COLORS[0], "pretrained"),
            (result.untrained, -0.13, COLORS[1], "untrained"),
        ):
            axes.plot([part.low, part.high], [row + shift] * 2, color=color, linewidth=2, solid_capstyle="round")
            axes.plot(
                part.value, row + shift, "o", color=color, markersize=7, label=name if row == 0 else None, zorder=3
            )
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(
        range(len(results)),
        [f"{_short(result.label, 40)}\n{result.positive:,} of {result.records:,}" for result in reversed(results)],
    )
    axes.set_ylim(-0.6, len(results) - 0.4)
    axes.set_xlabel("AUROC, 95 % interval by patient; 0.5 is chance")
    axes.set_title("Linear probe of frozen features", loc="left", fontsize=12, weight="bold")
    figure.legend(loc="outside upper right", frameon=False, ncols=2, fontsize=9)
    _plain(axes)
    axes.grid(axis="y", visible=False)
    return figure


def save(figure: Figure, out: Path, *, dpi: int = 150) -> None:
    """Write a figure as the kind of picture that the ending of `out` names.

    Raises:
        ConfigError: The ending is none that can be drawn, or the file cannot be written.
    """
    known = figure.canvas.get_supported_filetypes()
    if out.suffix.removeprefix(".").lower() not in known:
        raise ConfigError(f"--out {out}: the ending must be one of {', '.join(sorted(known))}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=dpi)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
