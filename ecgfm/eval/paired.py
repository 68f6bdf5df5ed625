"""Is one model better than another on the same records?

- `compare`: the difference of every figure of `metrics`, from the same bootstrap draws of patients for both models.
- `delong`: of two AUROCs, without draws (DeLong, DeLong and Clarke-Pearson 1988, https://doi.org/10.2307/2531595), with
  the variance of Obuchowski 1997 (https://doi.org/10.2307/2533958) for records that come in patients. With one record
  a patient that is DeLong's own.
- `mcnemar`: of two sets of answers, the exact two-sided test over the records on which one of the two is wrong
  (McNemar 1947, https://doi.org/10.1007/BF02295996). It takes records as independent: give one record a patient.

None corrects for the number of labels or models that are compared.

Shapes: N records, C classes, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import DRAWS, Interval, interval, patient_weights
from ecgfm.eval.metrics import Figures, Floats, Kind, check, figures, with_the_data


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of two models."""

    first: float
    second: float
    difference: Interval
    """First less second."""
    p_value: float
    """Two-sided, from the draws; never below 2 / (draws + 1)."""


def compare(
    kind: Kind,
    target_NC: NDArray[np.floating[Any]],
    first_NC: NDArray[np.floating[Any]],
    second_NC: NDArray[np.floating[Any]],
    patients: Sequence[str],
    *,
    labels: Sequence[str],
    thresholds: tuple[NDArray[np.floating[Any]] | None, NDArray[np.floating[Any]] | None] = (None, None),
    at_least_one: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return the difference of each macro figure, and of each label's auc as `auc:label`.

    Args:
        kind: See `metrics`.
        target_NC: What is true.
        first_NC: Probabilities (or numbers) of one model.
        second_NC: Of the other, of the same records.
        patients: Of each record; whole patients are drawn.
        labels: C names.
        thresholds: thresholds_C of each model.
        at_least_one: See `metrics.evaluate`.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: See `metrics.evaluate`.
    """
    weights_RN = with_the_data(patient_weights(patients, draws, seed))

    def measured(values_NC: NDArray[np.floating[Any]], own: NDArray[np.floating[Any]] | None) -> Figures:
        target, values = check(kind, target_NC, values_NC, patients, labels)
        return figures(kind, target, values, weights_RN, labels, own, at_least_one)

    one, two = measured(first_NC, thresholds[0]), measured(second_NC, thresholds[1])
    pairs = {name: (one.whole[name], two.whole[name]) for name in one.whole}
    if kind != "regression":
        for column, label in enumerate(labels):
            pairs[f"auc:{label}"] = (one.by_class["auc"][:, column], two.by_class["auc"][:, column])
    found = {}
    for name, (first_R, second_R) in pairs.items():
        if not np.isnan(first_R[0] - second_R[0]):
            found[name] = _difference(first_R, second_R)
    return found


def _difference(first_R: Floats, second_R: Floats) -> Difference:
    difference_R = first_R - second_R
    drawn = difference_R[1:][~np.isnan(difference_R[1:])]
    # The data themselves count as one draw on either side, so that no p is 0.
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
    return Difference(
        first=float(first_R[0]),
        second=float(second_R[0]),
        difference=interval(float(difference_R[0]), difference_R[1:]),
        p_value=min(1.0, 2 * tail / (len(drawn) + 1)),
    )


@dataclass(frozen=True, kw_only=True)
class DeLong:
    """Two AUROCs and the test of their difference."""

    first: float
    second: float
    difference: float
    standard_error: float
    low: float
    """Of the 95 % interval of the difference."""
    high: float
    p_value: float
    """Two-sided; 1 when the models order all pairs alike."""


def delong(
    positive_N: NDArray[np.bool_],
    first_N: NDArray[np.floating[Any]],
    second_N: NDArray[np.floating[Any]],
    patients: Sequence[str],
) -> DeLong:
    """Return the test of two AUROCs of one label on the same records.

    Args:
        positive_N: Who has the label.
        first_N: Scores of one model.
        second_N: Scores of the other.
        patients: Of each record.

    Raises:
        ConfigError: Fewer than two patients with the label or without it.
    """
    positive = np.asarray(positive_N, dtype=bool)
    _, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = int(patient_N.max()) + 1
    in_with, in_without = (len(np.unique(patient_N[chosen])) for chosen in (positive, ~positive))
    if min(in_with, in_without) < 2:
        raise ConfigError(
            f"DeLong's test needs two patients with the label and two without, got {in_with} and {in_without}"
        )
    values: list[float] = []
    with_MP: list[Floats] = []
    without_MP: list[Floats] = []
    for scores in (first_N, second_N):
        placed = _placements(positive, np.asarray(scores, dtype=np.float64))
        value = float(placed[positive].mean())
        values.append(value)
        # Sums of the deviations over each patient's records with the label, and over those without.
        for chosen, kept in ((positive, with_MP), (~positive, without_MP)):
            sums = np.bincount(patient_N[chosen], weights=placed[chosen] - value, minlength=num_patients)
            kept.append(sums.astype(np.float64))
    m, n = int(positive.sum()), int((~positive).sum())
    x, y = np.stack(with_MP), np.stack(without_MP)
    covariance = (
        in_with / (in_with - 1) * (x @ x.T) / m**2
        + in_without / (in_without - 1) * (y @ y.T) / n**2
        + num_patients / (num_patients - 1) * (x @ y.T + y @ x.T) / (m * n)
    )
    variance = max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0)
    error, difference = math.sqrt(variance), values[0] - values[1]
    # Placements that agree in all records leave only rounding.
    certain = error < 1e-12
    return DeLong(
        first=values[0],
        second=values[1],
        difference=difference,
        standard_error=error,
        low=difference - 1.959963984540054 * error,
        high=difference + 1.959963984540054 * error,
        p_value=1.0 if certain else math.erfc(abs(difference) / error / math.sqrt(2)),
    )


def _placements(positive: NDArray[np.bool_], scores: Floats) -> Floats:
    """Return for each record the share of the other class that it is ordered rightly against; ties count half."""
    out = np.empty(len(scores))
    for chosen, sign in ((positive, 1), (~positive, -1)):
        others = np.sort(sign * scores[~chosen])
        own = sign * scores[chosen]
        out[chosen] = (np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")) / 2 / len(others)
    return out


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Records on which two sets of answers part, and the test of them."""

    first_only: int
    """Records that the first answers rightly and the second wrongly."""
    second_only: int
    p_value: float
    """Exact, two-sided."""


def mcnemar(first_right_N: NDArray[np.bool_], second_right_N: NDArray[np.bool_]) -> McNemar:
    """Return the exact test of whether two sets of answers are right equally often.

    Args:
        first_right_N: Where the first is right.
        second_right_N: Where the second is right, of the same records.

    Raises:
        ConfigError: They are of different length.
    """
    first, second = np.asarray(first_right_N, dtype=bool), np.asarray(second_right_N, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ConfigError(f"McNemar's test needs the same records for both, got {first.shape} and {second.shape}")
    one, two = int((first & ~second).sum()), int((~first & second).sum())
    number = one + two
    # In whole numbers, the tail of a fair coin: each binomial coefficient from the one before it.
    coefficient = tail = 1
    for k in range(min(one, two)):
        coefficient = coefficient * (number - k) // (k + 1)
        tail += coefficient
    return McNemar(first_only=one, second_only=two, p_value=min(1.0, 2 * tail / 2**number) if number else 1.0)
