"""How different the members of an ensemble are, and what their mean gains.

Gedon et al. 2021 ask it of models that are fine-tuned from one pretrained start: do they err alike, and is their
ensemble worth less than one of independent starts? Disagreement, double fault and Q as in Kuncheva and Whitaker 2003,
https://doi.org/10.1023/A:1022859003006.

Shapes: M members, N records, C classes, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import DRAWS, Interval, interval, patient_weights
from ecgfm.eval.metrics import Kind, answers, check, figures, with_the_data


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two members, over all cells (records times labels) that are known."""

    disagreement: float
    """Share of cells in which one is right and the other wrong."""
    double_fault: float
    """Share of cells in which both are wrong."""
    q_statistic: float | None
    """Yule's Q of being right: 1 alike, 0 independent, -1 never wrong together; None where it is 0 / 0."""
    correlation: float | None
    """Pearson's, of the probabilities, as a mean over labels; None where one is constant for all labels."""
    error_correlation: float | None
    """Likewise, of the probabilities less their means over the records with the label and over those without: 0 when
    members share what is true and err independently, 1 when a mean over members averages nothing away. Of probability
    less truth it would be high for independent members too, because all of them fall short of 0 and 1 alike."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """An ensemble of M members."""

    members: int
    pairs: dict[str, Pair]
    """By `i-j`, numbered as given."""
    mean: Pair
    """Mean over the pairs that have a value."""
    ensemble: dict[str, float]
    """Macro figures of the mean of all members' probabilities."""
    member_mean: dict[str, float]
    """Mean of the members' own figures."""
    gain: dict[str, Interval]
    """Ensemble less the members' mean, by draws of patients that serve all alike."""


def diversity(
    kind: Kind,
    target_NC: NDArray[np.floating[Any]],
    members_MNC: Sequence[NDArray[np.floating[Any]]],
    patients: Sequence[str],
    *,
    labels: Sequence[str],
    thresholds_C: NDArray[np.floating[Any]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Diversity:
    """Return how the members differ and what their mean gains.

    Args:
        kind: `multilabel` or `multiclass`.
        target_NC: What is true.
        members_MNC: probability_NC of each member, of the same records.
        patients: Of each record.
        labels: C names.
        thresholds_C: For answers of `multilabel`, the same for members and ensemble; 0.5 without.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: Fewer than two members, a regression, or what `metrics.evaluate` refuses.
    """
    if kind == "regression" or len(members_MNC) < 2:
        raise ConfigError(f"diversity is of two or more classifiers, got {len(members_MNC)} of kind {kind}")
    members = []
    for member in members_MNC:
        target, probability = check(kind, target_NC, member, patients, labels)
        members.append(probability)
    known = ~np.isnan(target)
    right = []
    for probability in members:
        if kind == "multiclass":
            answer = np.eye(target.shape[1], dtype=bool)[probability.argmax(axis=1)]
            right.append((answer & (target == 1)).any(axis=1)[known.all(axis=1)])
        else:
            thresholds = np.full(target.shape[1], 0.5) if thresholds_C is None else thresholds_C
            right.append((answers(probability, thresholds) == (target == 1))[known])
    pairs = {
        f"{i}-{j}": _pair(target, members[i], members[j], right[i], right[j])
        for i, j in combinations(range(len(members)), 2)
    }
    weights_RN = with_the_data(patient_weights(patients, draws, seed))
    whole = [
        figures(kind, target, each, weights_RN, labels, thresholds_C).whole
        for each in (np.mean(members, axis=0), *members)
    ]
    ensemble, own = whole[0], {name: np.mean([each[name] for each in whole[1:]], axis=0) for name in whole[0]}
    valued = [name for name in ensemble if not np.isnan(ensemble[name][0] - own[name][0])]
    return Diversity(
        members=len(members),
        pairs=pairs,
        mean=_mean_pair(list(pairs.values())),
        ensemble={name: float(ensemble[name][0]) for name in valued},
        member_mean={name: float(own[name][0]) for name in valued},
        gain={
            name: interval(float(ensemble[name][0] - own[name][0]), (ensemble[name] - own[name])[1:]) for name in valued
        },
    )


def _pair(
    target: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    first_right: NDArray[np.bool_],
    second_right: NDArray[np.bool_],
) -> Pair:
    both, neither = int((first_right & second_right).sum()), int((~first_right & ~second_right).sum())
    one, two = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    whole = both * neither + one * two
    return Pair(
        disagreement=(one + two) / len(first_right),
        double_fault=neither / len(first_right),
        q_statistic=(both * neither - one * two) / whole if whole else None,
        correlation=_correlation(target, first, second),
        error_correlation=_correlation(target, _errors(target, first), _errors(target, second)),
    )


def _correlation(target: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    values = []
    for truth, x, y in zip(target.T, first.T, second.T, strict=True):
        known = ~np.isnan(truth)
        if np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0:
            values.append(float(np.corrcoef(x[known], y[known])[0, 1]))
    return float(np.mean(values)) if values else None


def _errors(target: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities less their mean over the records of the same answer."""
    errors = probability.copy()
    for truth, column in zip(target.T, errors.T, strict=True):
        for answer in (0.0, 1.0):
            if (chosen := truth == answer).any():
                column[chosen] -= column[chosen].mean()
    return errors


def _mean_pair(pairs: list[Pair]) -> Pair:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return Pair(
        disagreement=float(np.mean([pair.disagreement for pair in pairs])),
        double_fault=float(np.mean([pair.double_fault for pair in pairs])),
        q_statistic=mean([pair.q_statistic for pair in pairs]),
        correlation=mean([pair.correlation for pair in pairs]),
        error_correlation=mean([pair.error_correlation for pair in pairs]),
    )
