"""Pictures of predictions: ROC, precision and recall, reliability, confusion, label efficiency, maps of features.

Each is small enough to be read on a phone at its own size. Figure objects only: nothing global is touched.

Shapes: N records, C labels, D features.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.curves import Floats, Reliability, precision_recall, reliability, roc
from ecgfm.eval.plots import COLORS, GREY
from ecgfm.rng import derive

SIZE = (3.9, 3.7)
"""Inches: at 350 pixels, a phone's width, text of 8 points is 10 pixels high."""
MOST_CURVES = len(COLORS) - 1
Layout = Literal["pca", "umap"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One label's, or one model's, answers and truth."""

    name: str
    target_N: Floats
    """1, 0, or NaN where it is unknown."""
    score_N: Floats

    @property
    def has_both(self) -> bool:
        """Whether some known records have the label and some have not."""
        known = self.target_N[~np.isnan(self.target_N)]
        return bool(len(known)) and 0 < known.sum() < len(known)


def plot_roc(curves: Sequence[Curve]) -> Figure:
    """Return ROC curves with their areas; see `shown` for which of many."""
    figure, axes = _square("1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    for number, curve in enumerate(shown(curves)):
        x, y = roc(curve.target_N, curve.score_N)
        area = float(np.trapezoid(y, x))
        axes.plot(x, y, color=COLORS[number], linewidth=1.6, label=f"{area:.3f}  {short(curve.name)}")
    _legend(figure)
    return figure


def plot_precision_recall(curves: Sequence[Curve]) -> Figure:
    """Return precision over recall with the average precision; a tick at the right is what chance has."""
    figure, axes = _square("recall (sensitivity)", "precision")
    for number, curve in enumerate(shown(curves)):
        recall, precision = precision_recall(curve.target_N, curve.score_N)
        average = float(-np.sum(np.diff(recall) * precision[:-1]))
        precision[-1] = precision[-2]  # precision without any answer is 1 by convention: a line that says nothing
        # Steps: between two points precision is not known to lie on a line (Davis and Goadrich 2006).
        axes.step(
            recall,
            precision,
            where="post",
            color=COLORS[number],
            linewidth=1.6,
            label=f"{average:.3f}  {short(curve.name)}",
        )
        chance = float(np.nanmean(curve.target_N))
        axes.plot([0.985, 1.02], [chance, chance], color=COLORS[number], linewidth=2, clip_on=False)
    _legend(figure)
    return figure


def plot_reliability(
    before: Curve, after: Curve | None, patients: Sequence[str], errors: tuple[float, float | None], *, seed: int = 0
) -> Figure:
    """Return how often the label was there over the probability given, before and after calibration.

    Args:
        before: Probabilities of the logits as they are.
        after: Calibrated ones; None where there is no calibration.
        patients: Of each record, for the intervals.
        errors: The calibration errors of both (`weighted.calibration_error`), for the legend.
        seed: Of the bootstrap.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    parts = [(before, errors[0], COLORS[1], "before" if after else "as given")]
    if after is not None and errors[1] is not None:
        parts.append((after, errors[1], COLORS[0], "calibrated"))
    for number, (curve, error, color, name) in enumerate(parts):
        found: Reliability = reliability(curve.target_N, curve.score_N, tuple(patients), seed=seed)
        x = found.probability_B
        axes.vlines(x, found.low_B, found.high_B, color=color, linewidth=1.2, alpha=0.6)
        axes.plot(
            x, found.frequency_B, "o-", color=color, markersize=4, linewidth=1.4, label=f"{name}, ECE {error:.3f}"
        )
        shift = (number - (len(parts) - 1) / 2) * 0.02
        below.bar(x + shift, found.records_B, width=0.018, color=color)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share with the label")
    below.set(xlabel="probability given", ylabel="records")
    below.set_yscale("log")
    below.set_ylim(bottom=0.8)
    for part in (axes, below):
        _plain(part)
    _legend(figure)
    return figure


def plot_confusion(target_NC: Floats, probability_NC: Floats, labels: Sequence[str]) -> Figure:
    """Return the confusion matrix of classes that exclude each other: counts, coloured by the share of the true class.

    Records of an unknown class are left out.
    """
    counts_CC = confusion(target_NC, probability_NC)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    size = max(SIZE[0], 2.2 + 0.55 * len(labels))
    figure = Figure(figsize=(size, size * 0.93), layout="constrained")
    axes = figure.subplots()
    for row in range(len(labels)):
        for column in range(len(labels)):
            share = float(share_CC[row, column])
            axes.add_patch(_cell(column, row, share))
            axes.text(
                column,
                row,
                f"{counts_CC[row, column]:,}",
                ha="center",
                va="center",
                fontsize=9,
                color="#ffffff" if share > 0.55 else "#000000",
                gid="on-dark" if share > 0.55 else None,
            )
    names = [short(label, 22) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), names)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), xlabel="answer", ylabel="truth")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_aspect("equal")
    return figure


def confusion(target_NC: Floats, probability_NC: Floats) -> NDArray[np.int64]:
    """Return counts_CC, records by true class (rows) and likeliest class (columns)."""
    known = ~np.isnan(target_NC).any(axis=1)
    truth, answer = target_NC[known].argmax(axis=1), probability_NC[known].argmax(axis=1)
    number = target_NC.shape[1]
    counts: NDArray[np.int64] = np.bincount(truth * number + answer, minlength=number**2).reshape(number, number)
    return counts


def plot_label_efficiency(
    series: Mapping[str, Sequence[tuple[int, Interval]]], *, figure_name: str = "macro AUC"
) -> Figure:
    """Return a figure of merit over the number of labelled records, on a logarithmic axis, with its intervals.

    Args:
        series: By the start of the weights, such as "pretrained" and "untrained": training records and figure.
        figure_name: What is drawn.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        ordered = sorted(points, key=lambda point: point[0])
        x = np.asarray([records for records, _ in ordered], dtype=np.float64) * (1 + 0.015 * number)
        value, low, high = (np.asarray([getattr(part, at) for _, part in ordered]) for at in ("value", "low", "high"))
        color = COLORS[number % len(COLORS)]
        axes.vlines(x, low, high, color=color, linewidth=1.4, alpha=0.6)
        axes.plot(x, value, "o-", color=color, markersize=5, linewidth=1.6, label=short(name))
    axes.set_xscale("log")
    ticks = sorted({records for points in series.values() for records, _ in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labelled records in training", ylabel=figure_name)
    _plain(axes)
    _legend(figure)
    return figure


def plot_scatter(truth_N: Floats, value_N: Floats, name: str) -> Figure:
    """Return predicted over true values of a regression."""
    known = ~np.isnan(truth_N)
    truth, value = truth_N[known], value_N[known]
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    low, high = float(min(truth.min(), value.min())), float(max(truth.max(), value.max()))
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.scatter(truth, value, s=12, color=COLORS[0], alpha=0.5, linewidth=0)
    axes.set(xlabel=f"{short(name)}, true", ylabel="predicted")
    _plain(axes)
    return figure


def plot_layout(place_N2: Floats, names: Sequence[str], axis_names: tuple[str, str]) -> Figure:
    """Return records as dots in the plane, coloured by name; rare names share grey.

    Raises:
        ConfigError: There is not one name for each record.
    """
    if len(names) != len(place_N2):
        raise ConfigError(f"{len(place_N2)} records with {len(names)} names; needs a name for each")
    frequent = [name for name, _ in Counter(names).most_common(MOST_CURVES)]
    each = np.asarray([name if name in frequent else "other" for name in names])
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name in ([] if "other" in frequent or "other" not in each else ["other"]) + frequent:
        chosen = place_N2[each == name]
        color = COLORS[frequent.index(name)] if name in frequent else GREY
        text = f"{short(name)} ({len(chosen):,})"
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=color, alpha=0.75, linewidth=0, label=text)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.tick_params(labelsize=8)
    _plain(axes)
    _legend(figure)
    return figure


def layout(features_ND: NDArray[np.floating], how: Layout = "pca", *, seed: int = 0) -> tuple[Floats, tuple[str, str]]:
    """Return place_N2 of records by their features, and what the two axes are.

    Args:
        features_ND: At least three records.
        how: `pca`, or `umap` (McInnes et al. 2018, https://arxiv.org/abs/1802.03426) of standardised features, whose
            axes and distances between groups mean nothing.
        seed: Of UMAP.

    Raises:
        ConfigError: There are fewer than three records, or umap-learn is not installed.
    """
    features = np.asarray(features_ND, dtype=np.float64)
    if len(features) < 3:
        raise ConfigError(f"{len(features)} records cannot be laid out; needs 3 or more")
    features = features - features.mean(axis=0)
    if how == "pca":
        left, singular, _ = np.linalg.svd(features, full_matrices=False)
        share = singular[:2] ** 2 / np.maximum((singular**2).sum(), 1e-300)
        words = ("first", "second")
        names = tuple(f"{word} component, {part:.0%} of the variance" for word, part in zip(words, share))
        return left[:, :2] * singular[:2], (names[0], names[-1])
    require_layout(how)
    import umap  # type: ignore[import-not-found, import-untyped, unused-ignore]

    spread = features.std(axis=0)
    reducer = umap.UMAP(
        n_neighbors=min(15, len(features) - 1), random_state=derive(seed, "umap") % 2**32, n_jobs=1, init="pca"
    )
    return np.asarray(reducer.fit_transform(features / np.where(spread > 0, spread, 1.0)), dtype=np.float64), (
        "UMAP 1 (no unit)",
        "UMAP 2 (no unit)",
    )


def require_layout(how: Layout) -> None:
    """Refuse a layout that cannot be made here, before work is done for it.

    Raises:
        ConfigError: umap-learn is not installed.
    """
    if how == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError("--layout umap needs umap-learn: pip install umap-learn, or use --layout pca")


def shown(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves that a figure has colours for: those with the most positive records, in the order given."""
    whole = [curve for curve in curves if curve.has_both]
    frequent = sorted(whole, key=lambda curve: -float(np.nansum(curve.target_N)))[:MOST_CURVES]
    return [curve for curve in whole if any(curve is other for other in frequent)]


def short(text: str, length: int = 34) -> str:
    """Return a text that fits, cut at its end, in which matplotlib sees no formula."""
    text = text if len(text) <= length else text[: length - 3].rstrip() + "..."
    return text.replace("$", r"\$")


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    _plain(axes)
    return figure, axes


def _legend(figure: Figure) -> None:
    """Put the legend below the axes: a curve may be anywhere within."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if not handles:
        return
    columns = 1 if max(map(len, names)) > 22 else 2
    figure.legend(handles, names, loc="outside lower left", frameon=False, ncols=columns, fontsize=8, handlelength=1.4)
    extra = 0.19 * -(-len(handles) // columns)
    figure.set_size_inches(SIZE[0], SIZE[1] - 0.4 + extra)


def _cell(column: int, row: int, share: float) -> Rectangle:
    return Rectangle(
        (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=COLORS[0], alpha=0.06 + 0.94 * share, linewidth=0
    )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
