"""The figures of a report, as SVG in its colours.

Shapes: N records, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.eval import curve_plots, weighted
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.curve_plots import Curve, Layout
from ecgfm.eval.inline_svg import inline_svg
from ecgfm.eval.metrics import Scores
from ecgfm.eval.paired import Difference
from ecgfm.eval.predictions import Predictions
from ecgfm.rng import generator

NAMES = {
    "auc": ("AUC", "area under the ROC curve, mean over labels; 0.5 is chance"),
    "average_precision": ("Average precision", "area under precision over recall, mean over labels"),
    "f_max": ("F-max", "best mean F1 of records over one threshold for all labels"),
    "f_beta": ("F-beta", "beta 2, records weighted by one over their labels, as the 2020 Challenge"),
    "g_beta": ("G-beta", "beta 2, as the 2020 Challenge"),
    "challenge_2021": (
        "Challenge 2021",
        "score of the PhysioNet/CinC Challenge 2021; 1 is perfect, 0 is always normal",
    ),
    "accuracy": (
        "Accuracy",
        "share of right answers: mean over labels, or, of one class a record, of records",
    ),
    "exact_match": ("Exact match", "share of records with all labels right"),
    "ece": ("ECE", "expected calibration error, 15 bins; lower is better"),
    "brier": ("Brier", "mean squared error of the probability; lower is better"),
    "sensitivity": ("Sensitivity", "share of records with the label that are given it"),
    "specificity": ("Specificity", "share of records without the label that are not given it"),
    "precision": ("Precision", "share of given labels that are right"),
    "mae": ("MAE", "mean absolute error; lower is better"),
    "rmse": ("RMSE", "root of the mean squared error; lower is better"),
    "r2": ("R2", "share of the variance explained"),
    "pearson": ("Pearson r", "correlation of predicted and true values"),
}
MOST_RELIABILITY = 6
MOST_DOTS = 3000
"""Of a figure: each is an element of the page."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One evaluation of the report."""

    name: str
    predictions: Predictions
    scores: Scores
    differences: Mapping[str, Difference]
    """The first model's figures less this one's; empty for the first, and where the records are not the same."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the page."""

    svg: str
    caption: str


def _curve(model: Predictions, column: int, probability_NC: NDArray[np.float64], name: str = "") -> Curve:
    rows = model.rows("test")
    return Curve(
        name=name or model.labels[column], target_N=model.target_NC[rows, column], score_N=probability_NC[rows, column]
    )


def curves(models: Sequence[Model], seed: int) -> list[Picture]:
    """Return ROC, precision and recall, the most frequent label of all models, confusion; or predicted over true."""
    first = models[0].predictions
    rows = first.rows("test")
    if first.kind == "regression":
        drawn = _some(len(rows), "dots of predictions", seed)
        some = "" if len(drawn) == len(rows) else f"; {len(drawn):,} of {len(rows):,} records, drawn by chance"
        rows = rows[drawn]
        return [
            Picture(
                svg=inline_svg(
                    curve_plots.plot_scatter(first.target_NC[rows, c], first.probability_NC[rows, c], label),
                    f"Predicted over true: {label}",
                ),
                caption=f"{label}: predicted over true, test part{some}. On the line both are the same.",
            )
            for c, label in enumerate(first.labels[:MOST_RELIABILITY])
        ]
    each = [_curve(first, c, first.probability_NC) for c in range(len(first.labels))]
    pictures = []
    shown = curve_plots.shown(each)
    if shown:
        many = len(shown) < sum(curve.has_both for curve in each)
        some = f" of the {len(shown)} most frequent labels" if many else ""
        pictures.append(
            Picture(
                svg=inline_svg(curve_plots.plot_roc(each), f"ROC curves of {models[0].name}"),
                caption=f"ROC curves{some}, with their areas.",
            )
        )
        pictures.append(
            Picture(
                svg=inline_svg(curve_plots.plot_precision_recall(each), f"Precision and recall of {models[0].name}"),
                caption=f"Precision over recall{some}, with the average precision. The ticks at the right are the "
                "shares of records with the label: chance.",
            )
        )
    if len(models) > 1 and shown:
        label = max(shown, key=lambda curve: float(np.nansum(curve.target_N))).name
        column = first.labels.index(label)
        others = [
            _curve(model.predictions, column, model.predictions.probability_NC, model.name)
            for model in models[: curve_plots.MOST_CURVES]
        ]
        pictures.append(
            Picture(
                svg=inline_svg(curve_plots.plot_roc(others), f"ROC curves of {label}, by evaluation"),
                caption=f"ROC curves of {label}, by evaluation.",
            )
        )
    if first.kind == "multiclass":
        figure = curve_plots.plot_confusion(first.target_NC[rows], first.probability_NC[rows], first.labels)
        pictures.append(
            Picture(
                svg=inline_svg(figure, f"Confusion matrix of {models[0].name}"),
                caption="Records by true class (rows) and answer (columns); a darker cell is more of its row.",
            )
        )
    return pictures


def calibration(model: Model, seed: int) -> list[Picture]:
    """Return reliability curves: of several classes that exclude each other, of the likeliest; else of each label."""
    each = model.predictions
    rows = each.rows("test")
    people = each.patient_N[rows].tolist()
    if each.kind == "multiclass":
        whole = each.target_NC[rows]
        rows = rows[~np.isnan(whole).any(axis=1)]
        people = each.patient_N[rows].tolist()
        before, after = (_answers(each, rows, of_NC) for of_NC in (each.uncalibrated_NC, each.probability_NC))
        pairs = [("the answer given", before, after)]
    else:
        known = [c for c in range(len(each.labels)) if _curve(each, c, each.probability_NC).has_both]
        frequent = sorted(known, key=lambda c: -float(np.nansum(each.target_NC[rows, c])))[:MOST_RELIABILITY]
        pairs = [
            (each.labels[c], _curve(each, c, each.uncalibrated_NC), _curve(each, c, each.probability_NC))
            for c in sorted(frequent)
        ]
    pictures = []
    for name, before, after in pairs:
        calibrated = after if each.is_calibrated else None
        errors = (_error(before), _error(after) if each.is_calibrated else None)
        figure = curve_plots.plot_reliability(before, calibrated, people, errors, seed=seed)
        pictures.append(Picture(svg=inline_svg(figure, f"Reliability of {name}"), caption=f"Reliability: {name}."))
    return pictures


def _answers(model: Predictions, rows: NDArray[np.int64], probability_NC: NDArray[np.float64]) -> Curve:
    chosen = probability_NC[rows].argmax(axis=1)
    right = model.target_NC[rows].argmax(axis=1) == chosen
    return Curve(name="answer", target_N=right.astype(np.float64), score_N=probability_NC[rows].max(axis=1))


def _error(curve: Curve) -> float:
    known = ~np.isnan(curve.target_N)
    once = np.ones((1, int(known.sum())), dtype=np.int64)
    return float(weighted.calibration_error(curve.target_N[known] == 1, curve.score_N[known], once)[0])


def features(model: Predictions, how: Layout, seed: int) -> list[Picture]:
    """Return the test part's features in the plane, where they were kept."""
    rows = model.rows("test")
    if model.feature_ND is None or len(rows) < 3 or model.kind == "regression":
        return []
    place, axis_names = curve_plots.layout(model.feature_ND[rows], how, seed=seed)
    drawn = _some(len(rows), "dots of features", seed)
    names = [_name(model, row) for row in rows[drawn]]
    figure = curve_plots.plot_layout(place[drawn], names, axis_names)
    words = "principal components" if how == "pca" else "UMAP"
    some = "" if len(drawn) == len(rows) else f"; {len(drawn):,} of {len(rows):,} records, drawn by chance"
    title = "Features of the test part"
    return [Picture(svg=inline_svg(figure, title), caption=f"{title}, {words}{some}.")]


def _name(model: Predictions, row: int) -> str:
    """Return what a record is coloured by: its label where it has one alone, for combinations are without number."""
    found = [label for label, there in zip(model.labels, model.target_NC[row], strict=True) if there == 1]
    return found[0] if len(found) == 1 else "several labels" if found else "none of the labels"


def _some(number: int, what: str, seed: int) -> NDArray[np.int64]:
    """Return the places of all records, or of a sample where all would make the page slow."""
    if number <= MOST_DOTS:
        return np.arange(number)
    return np.sort(generator(seed, what).choice(number, MOST_DOTS, replace=False))


def efficiency(models: Sequence[Model]) -> list[Picture]:
    """Return the figure over the number of labelled records, where evaluations differ in it."""
    figure = next((name for name in ("auc", "accuracy", "r2") if name in models[0].scores.macro), None)
    series: dict[str, list[tuple[int, Interval]]] = {}
    for model in models:
        start = str(model.predictions.settings.get("init", "evaluations"))
        if figure in model.scores.macro:
            series.setdefault(start, []).append((model.predictions.train_records, model.scores.macro[figure]))
    if figure is None or max((len({x for x, _ in points}) for points in series.values()), default=0) < 2:
        return []
    name = NAMES[figure][0]
    drawn = curve_plots.plot_label_efficiency(series, figure_name=f"{name}, test part")
    return [
        Picture(svg=inline_svg(drawn, "Label efficiency"), caption=f"{name} over the labelled records of training.")
    ]
