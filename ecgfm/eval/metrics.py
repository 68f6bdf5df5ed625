"""Figures of merit of predictions, each with a bootstrap interval; the formulas are in `weighted`.

| kind | over all classes (`macro`) | of each class (`per_class`) |
|---|---|---|
| multilabel | auc, average_precision, f_max, f_beta, g_beta, challenge_2021, accuracy, exact_match, ece, brier | auc, |
| | | average_precision, f_beta, g_beta, sensitivity, specificity, precision, accuracy, ece, brier |
| multiclass | as above without f_max and exact_match | as above |
| regression | means of the targets' figures | mae, rmse, r2, pearson |

`macro` is the mean over classes, but for f_max, challenge_2021, exact_match, and of `multiclass` accuracy and ece,
which are figures of whole records (ece: of the likeliest class). `challenge_2021` is there when all labels are among
the 26 classes that the Challenge scores and NSR is one of them; over fewer than 26 it is the score over these. A class
that all records have, or none, has no auc: it is left out of the mean and listed in `undefined`. So it is within a
draw.

Answers are probabilities at or above a threshold, which is chosen on the validation part (`choose_thresholds`); of
`multiclass`, the likeliest class.

Shapes: N records, C classes, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval import weighted
from ecgfm.eval.bootstrap import DRAWS, Interval, Weights, interval, patient_weights, weighted_auroc
from ecgfm.labels import challenge

Kind = Literal["multilabel", "multiclass", "regression"]
Criterion = Literal["g_beta", "f_beta", "f1", "youden"]
Resample = Literal["patient", "record"]
Floats = NDArray[np.float64]
LOWER_IS_BETTER = ("ece", "brier", "mae", "rmse")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What predictions are worth."""

    kind: Kind
    records: int
    patients: int
    labels: tuple[str, ...]
    positives: dict[str, int]
    """Records that have each label; of a regression, records whose target is known."""
    macro: dict[str, Interval]
    """By figure. One that has no value is not there."""
    per_class: dict[str, dict[str, Interval]]
    """By figure, then label."""
    undefined: tuple[str, ...]
    """Labels without an auc: no record has them, or all have."""
    thresholds: dict[str, float]
    """At or above which a label is answered; none of `multiclass` and `regression`."""
    resampled: Resample


def evaluate(
    kind: Kind,
    target_NC: NDArray[np.floating[Any]],
    probability_NC: NDArray[np.floating[Any]],
    patients: Sequence[str],
    *,
    labels: Sequence[str],
    thresholds_C: NDArray[np.floating[Any]] | None = None,
    at_least_one: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    resample: Resample = "patient",
) -> Scores:
    """Return all figures of the kind, with intervals.

    Args:
        kind: See the module.
        target_NC: 1, 0, or NaN where it is unknown; of `multiclass` one 1 a row; of `regression` numbers.
        probability_NC: In [0, 1]; of `regression` the predicted numbers.
        patients: Of each record; whole patients are drawn.
        labels: C names.
        thresholds_C: Of `choose_thresholds` on the validation part; 0.5 without.
        at_least_one: Answer the likeliest label where none reaches its threshold, as the benchmark of PTB-XL does.
        draws: Of the bootstrap.
        seed: Of the bootstrap. With the same patients and seed two models see the same draws.
        resample: `record` takes each record for itself, as most papers do; the interval is too narrow when patients
            have several.

    Raises:
        ConfigError: Shapes differ, targets or probabilities are not what the kind needs, or there is no record.
    """
    target, probability = check(kind, target_NC, probability_NC, patients, labels)
    who = list(patients) if resample == "patient" else [str(number) for number in range(len(target))]
    weights_RN = with_the_data(patient_weights(who, draws, seed))
    found = figures(kind, target, probability, weights_RN, labels, thresholds_C, at_least_one)
    macro, per_class = {}, {}
    for name, draws_R in found.whole.items():
        if not np.isnan(draws_R[0]):
            macro[name] = _interval(name, draws_R)
    for name, draws_RC in found.by_class.items():
        each = {label: draws_RC[:, c] for c, label in enumerate(labels) if not np.isnan(draws_RC[0, c])}
        per_class[name] = {label: _interval(name, draws_R) for label, draws_R in each.items()}
    missing = () if kind == "regression" else tuple(label for label in labels if label not in per_class["auc"])
    positive_C = (~np.isnan(target)).sum(axis=0) if kind == "regression" else (target == 1).sum(axis=0)
    return Scores(
        kind=kind,
        records=len(target),
        patients=len(set(patients)),
        labels=tuple(labels),
        positives=dict(zip(labels, map(int, positive_C), strict=True)),
        macro=macro,
        per_class=per_class,
        undefined=missing,
        thresholds=dict(zip(labels, map(float, _thresholds(thresholds_C, len(labels)))))
        if kind == "multilabel"
        else {},
        resampled=resample,
    )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of all draws; the first draw is the data as they are."""

    whole: dict[str, Floats]
    """figure_R by name."""
    by_class: dict[str, Floats]
    """figure_RC by name."""


def _interval(name: str, draws_R: NDArray[np.float64]) -> Interval:
    """Return a figure, which the first draw is, with its interval.

    The calibration error adds up distances without their sign, and a resample's are larger than the sample's by the
    noise of drawing once more: its draws are shifted to where their median is the value (bias-corrected percentiles).
    """
    value = float(draws_R[0])
    if name == "ece":
        draws_R = np.maximum(draws_R - (np.nanmedian(draws_R) - value), 0.0)
    return interval(value, draws_R)


def figures(
    kind: Kind,
    target_NC: Floats,
    probability_NC: Floats,
    weights_RN: Weights,
    labels: Sequence[str],
    thresholds_C: NDArray[np.floating[Any]] | None = None,
    at_least_one: bool = False,
) -> Figures:
    """Return all figures for given draws; see `evaluate`, whose checks are left out here."""
    # Once, and not in each of the many products with floats.
    weights_RN = weights_RN.astype(np.float64)
    if kind == "regression":
        return _regression(target_NC, probability_NC, weights_RN)
    if kind == "multiclass":
        # A record of an unknown class is no record.
        known = ~np.isnan(target_NC).any(axis=1)
        target_NC, probability_NC, weights_RN = target_NC[known], probability_NC[known], weights_RN[:, known]
        answer_NC = np.eye(target_NC.shape[1], dtype=bool)[probability_NC.argmax(axis=1)]
    else:
        answer_NC = answers(probability_NC, _thresholds(thresholds_C, len(labels)), at_least_one=at_least_one)
    each = {
        "auc": weighted.by_class(weighted_auroc, target_NC, probability_NC, weights_RN),
        "average_precision": weighted.by_class(weighted.average_precision, target_NC, probability_NC, weights_RN),
    }
    tp, fp, fn, _ = weighted.confusion(target_NC, answer_NC, weights_RN, by_labels=True)
    each |= {"f_beta": weighted.f_beta(tp, fp, fn), "g_beta": weighted.g_beta(tp, fp, fn)}
    tp, fp, fn, tn = weighted.confusion(target_NC, answer_NC, weights_RN)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no record to answer for
        each |= {
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }
    for name, figure in (("ece", weighted.calibration_error), ("brier", weighted.brier)):
        each[name] = weighted.by_class(figure, target_NC, probability_NC, weights_RN)
    means = ("auc", "average_precision", "f_beta", "g_beta", "accuracy", "ece", "brier")
    whole = {name: _mean(each[name]) for name in means}
    if (worth_CC := challenge_worth(labels)) is not None:
        normal = list(labels).index(challenge.NORMAL)
        whole["challenge_2021"] = weighted.challenge_2021(
            target_NC, answer_NC, weights_RN, worth_CC=worth_CC, normal=normal
        )
    known_N = ~np.isnan(target_NC).all(axis=1)
    right_N = ((answer_NC == (target_NC == 1)) | np.isnan(target_NC)).all(axis=1) & known_N
    with np.errstate(invalid="ignore"):
        right_R = weights_RN @ right_N / (weights_RN @ known_N)
    if kind == "multiclass":
        whole["accuracy"] = right_R
        whole["ece"] = weighted.calibration_error(right_N, probability_NC.max(axis=1), weights_RN)
    else:
        whole["exact_match"] = right_R
        whole["f_max"] = weighted.f_max(target_NC, probability_NC, weights_RN)
    return Figures(whole=whole, by_class=each)


def _regression(target_NC: Floats, value_NC: Floats, weights_RN: Weights) -> Figures:
    columns = []
    for truth, value in zip(target_NC.T, value_NC.T, strict=True):
        known = ~np.isnan(truth)
        columns.append(weighted.regression(truth[known], value[known], weights_RN[:, known]))
    each = {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}
    return Figures(whole={name: _mean(draws_RC) for name, draws_RC in each.items()}, by_class=each)


def answers(
    probability_NC: NDArray[np.floating[Any]],
    thresholds_C: NDArray[np.floating[Any]],
    *,
    at_least_one: bool = False,
) -> NDArray[np.bool_]:
    """Return which labels each record is given: those at or above their threshold; see `evaluate` for the rest."""
    answer_NC: NDArray[np.bool_] = np.asarray(probability_NC) >= np.asarray(thresholds_C)
    if at_least_one:
        silent = np.flatnonzero(~answer_NC.any(axis=1))
        answer_NC[silent, np.asarray(probability_NC)[silent].argmax(axis=1)] = True
    return answer_NC


def choose_thresholds(
    target_NC: NDArray[np.floating[Any]],
    probability_NC: NDArray[np.floating[Any]],
    *,
    by: Criterion = "g_beta",
) -> Floats:
    """Return thresholds_C that are best on the validation part, each for its label alone.

    All probabilities that occur are tried; of equally good ones the highest is taken, and the threshold lies midway
    between it and the next lower one: on a probability itself, the rounding of another machine would answer otherwise.
    A label that no record of the part has, or all have, gets 0.5.

    Args:
        target_NC: 1, 0, or NaN where it is unknown.
        probability_NC: Of the same records.
        by: `g_beta` and `f_beta` with beta 2 and each record once, as the benchmark of PTB-XL chooses them (from 100
            values of its own); `f1`; or `youden`, sensitivity + specificity.
    """
    target, probability = np.asarray(target_NC, dtype=np.float64), np.asarray(probability_NC, dtype=np.float64)
    chosen = np.full(target.shape[1], 0.5)
    for c in range(target.shape[1]):
        known = ~np.isnan(target[:, c])
        positive, scores = target[known, c] == 1, probability[known, c]
        if not positive.any() or positive.all():
            continue
        order = np.argsort(-scores, kind="stable")
        last = np.append(scores[order][1:] != scores[order][:-1], True)  # a threshold takes equal scores together
        tp = np.cumsum(positive[order])[last].astype(np.float64)
        fp = np.cumsum(~positive[order])[last].astype(np.float64)
        fn = positive.sum() - tp
        if by == "youden":
            quality = tp / positive.sum() - fp / (~positive).sum()
        elif by == "g_beta":
            quality = weighted.g_beta(tp, fp, fn)
        else:
            quality = weighted.f_beta(tp, fp, fn, beta=weighted.BETA if by == "f_beta" else 1.0)
        steps = np.append(scores[order][last], 0.0)
        best = int(quality.argmax())
        chosen[c] = (steps[best] + steps[best + 1]) / 2
    return chosen


def challenge_worth(labels: Sequence[str]) -> Floats | None:
    """Return the Challenge's worth_CC for these labels, or None when they are not all among its 26 or lack NSR."""
    table: Mapping[str, Mapping[str, float]] = challenge.weights()
    if challenge.NORMAL not in labels or not set(labels) <= table.keys():
        return None
    return np.asarray([[table[row][column] for column in labels] for row in labels])


def with_the_data(weights_RN: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return draws with a first row more, in which each record is there once."""
    return np.concatenate([np.ones((1, weights_RN.shape[1]), dtype=np.int64), weights_RN])


def check(
    kind: Kind,
    target_NC: NDArray[np.floating[Any]],
    probability_NC: NDArray[np.floating[Any]],
    patients: Sequence[str],
    labels: Sequence[str],
) -> tuple[Floats, Floats]:
    """Return targets and predictions as float64 when they are what the kind needs; see `evaluate` for errors."""
    target, probability = np.asarray(target_NC, dtype=np.float64), np.asarray(probability_NC, dtype=np.float64)
    if target.ndim != 2 or target.shape != probability.shape or not len(target):
        raise ConfigError(
            f"targets and predictions must be (records, labels) both, got {target.shape} and {probability.shape}"
        )
    if len(patients) != len(target) or len(labels) != target.shape[1] or len(set(labels)) < len(labels):
        raise ConfigError(
            f"{target.shape} targets need as many patients and different labels, got {len(patients)} and {len(labels)}"
        )
    if np.isnan(target).all(axis=0).any():
        unknown = [label for label, column in zip(labels, target.T, strict=True) if np.isnan(column).all()]
        raise ConfigError(f"no record of the part knows about {', '.join(unknown)}: leave it out")
    if not np.isfinite(probability).all():
        raise ConfigError("the predictions hold values that are not finite")
    if kind == "regression":
        return target, probability
    if probability.min() < 0 or probability.max() > 1:
        raise ConfigError(
            f"probabilities must be in [0, 1], got {probability.min():.3g} to {probability.max():.3g}: logits?"
        )
    known = target[~np.isnan(target)]
    if not np.isin(known, (0.0, 1.0)).all():
        raise ConfigError(f"targets of {kind} must be 0, 1 or NaN; for numbers use regression")
    if kind == "multiclass" and not (target[~np.isnan(target).any(axis=1)].sum(axis=1) == 1).all():
        raise ConfigError("of classes that exclude each other each record needs exactly one; is it multilabel?")
    return target, probability


def _thresholds(thresholds_C: NDArray[np.floating[Any]] | None, num_classes: int) -> Floats:
    if thresholds_C is None:
        return np.full(num_classes, 0.5)
    thresholds = np.asarray(thresholds_C, dtype=np.float64)
    if thresholds.shape != (num_classes,) or not np.isfinite(thresholds).all():
        raise ConfigError(f"{num_classes} labels need as many thresholds, got {thresholds.shape}")
    return thresholds


def _mean(draws_RC: Floats) -> Floats:
    """Return the mean over the classes that have a value in a draw; NaN where none has."""
    known = ~np.isnan(draws_RC)
    total, number = np.where(known, draws_RC, 0.0).sum(axis=1), known.sum(axis=1)
    out: Floats = np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)
    return out
