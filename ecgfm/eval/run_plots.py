"""A run's figures, or those of several runs, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.plots import COLORS
from ecgfm.run_folder import BAD_STEPS, METRICS, read_metrics, run_names

ALARM = "#c00000"


class Panel(NamedTuple):
    """What is drawn together."""

    title: str
    note: str
    names: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    log: bool = False
    of_largest: bool = False
    """Draw each as a share of its own largest value."""


PANELS = (
    Panel("loss", "lower is better, within one objective", ("loss", "val_loss")),
    Panel("schedules", "each as a share of its largest value", ("lr", "weight_decay", "momentum"), 0, of_largest=True),
    Panel("norm of the gradient", "before clipping", ("gradient_norm",), log=True),
    Panel("effective rank", "falls to 1 when the encoder collapses", ("effective_rank", "feature_rank"), 0),
    Panel("spread", "falls to 0 when the encoder collapses", ("target_std", "target_std_least", "feature_std"), 0),
    Panel("alignment and uniformity", "uniformity goes to 0 in a collapse", ("alignment", "uniformity")),
    Panel("entropy of the targets", "as a share of even ones", ("target_entropy", "usage_entropy"), 0, 1.02),
    Panel("probe", "of features, during the run", ()),
    Panel("records a second", "", ("records_per_s",), 0),
    Panel("waiting and utilisation", "as shares", ("loader_wait", "mfu"), 0),
)
LINES = ("-", "--", ":", "-.")


class Run(NamedTuple):
    """The lines of a run."""

    name: str
    metrics: list[dict[str, Any]]
    bad_steps: list[int]

    def series(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the steps at which a figure was logged, and its values."""
        points = [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
        steps, values = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
        return steps, values


def read_run(folder: Path, name: str) -> Run:
    """Return the lines of a run.

    Raises:
        ConfigError: The folder has no metrics, or no figures in them yet.
    """
    if not (folder / METRICS).is_file():
        raise ConfigError(f"{folder / METRICS} does not exist; give the folder of a run that has logged a step")
    metrics = read_metrics(folder)
    if not any("loss" in line for line in metrics):
        raise ConfigError(f"{folder / METRICS} holds no figures yet; wait for the run's first logged step")
    return Run(name, metrics, [line["step"] for line in read_metrics(folder, BAD_STEPS)])


def plot_runs(folders: tuple[Path, ...]) -> Figure:
    """Return the figures of runs against the step, each kind in a panel of its own.

    Of one run each figure has its colour, of several each run. Alarms are crosses on the figure that they name, and
    skipped steps ticks below the loss.

    Raises:
        ConfigError: A folder has no figures.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    there = list(dict.fromkeys(name for run in runs for line in run.metrics for name in line))
    probes = tuple(name for name in there if name.startswith("probe"))
    filled = [panel if panel.names else panel._replace(names=probes) for panel in PANELS]
    panels = [panel._replace(names=tuple(name for name in panel.names if name in there)) for panel in filled]
    panels = [panel for panel in panels if panel.names]
    columns = 2 if len(panels) <= 4 else 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.7 * columns, 2.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
        _draw(axes, panel, runs)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if len(runs) > 1:
        handles = [axes for axes in grid[0].lines if axes.get_gid() == "run"]
        figure.legend(handles, [run.name for run in runs], loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    drawn = {line.get_gid() for axes in grid for line in axes.lines}
    words = {"alarm": "crosses: alarms", "skipped": "ticks below the loss: skipped steps"}
    label = "; ".join(["optimizer step", *(text for gid, text in words.items() if gid in drawn)])
    figure.supxlabel(label, fontsize=10)
    return figure


def _draw(axes: Axes, panel: Panel, runs: list[Run]) -> None:
    alone = len(runs) == 1
    for number, run in enumerate(runs):
        for place, name in enumerate(panel.names):
            steps, values = run.series(name)
            if not len(steps):
                continue
            label = name.replace("_", " ")
            if panel.of_largest:
                # A momentum of 0.998 to 0.9995 looks like 1: what it leaves is what moves.
                values, label = (1.0 - values, f"1 - {label}") if name == "momentum" else (values, label)
                largest = np.abs(values).max()
                values = values / (largest or 1.0)
                label += f" (up to {largest:.3g})" if alone else ""
            color = COLORS[(place if alone else number) % len(COLORS)]
            (line,) = axes.plot(
                steps,
                values,
                LINES[0 if alone else place % len(LINES)],
                color=color,
                linewidth=1.3,
                marker="o" if len(steps) <= 30 else None,
                markersize=3,
                label=label,
            )
            line.set_gid("run" if place == 0 else "figure")
            alarmed = {entry["step"] for entry in run.metrics if f": {name} " in str(entry.get("alarm", ""))}
            at = np.isin(steps, sorted(alarmed))
            if at.any():
                axes.plot(steps[at], values[at], "x", color=ALARM, markersize=6, zorder=3).pop().set_gid("alarm")
        if "loss" in panel.names and run.bad_steps:
            color = ALARM if alone else COLORS[number % len(COLORS)]
            place_of_ticks = [0.02] * len(run.bad_steps)
            (ticks,) = axes.plot(
                run.bad_steps, place_of_ticks, "|", color=color, markersize=9, transform=axes.get_xaxis_transform()
            )
            ticks.set_gid("skipped")
    axes.set_title(panel.title, loc="left", fontsize=11, weight="bold")
    axes.text(1.0, 1.03, panel.note, transform=axes.transAxes, ha="right", fontsize=7.5, color="#606060")
    _legend(axes, panel, alone)
    if panel.log and all(np.all(run.series(name)[1] > 0) for run in runs for name in panel.names):
        axes.set_yscale("log")
    elif panel.low is not None:
        axes.set_ylim(bottom=panel.low, top=panel.high)
    axes.tick_params(which="both", labelbottom=True, labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(axes: Axes, panel: Panel, alone: bool) -> None:
    """Name the figures of a panel that has several: by colour for one run, by kind of line for several."""
    if panel.names in (("loss",), ("gradient_norm",), ("records_per_s",)):
        return
    axes.margins(y=0.3)
    shown: dict[str, Any] = {}
    for line in axes.lines:
        if line.get_gid() in ("run", "figure"):
            shown.setdefault(str(line.get_label()), line)
    legend = axes.legend(list(shown.values()), list(shown), fontsize=7.5, frameon=False, loc="best")
    if not alone:
        for handle in legend.get_lines():
            handle.set_color("#404040")
