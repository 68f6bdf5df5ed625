"""AUROC and its bootstrap interval, resampled by patient, for all draws at once.

Recordings of one patient are not independent, so whole patients are drawn. A draw is a weight for each
record (how often its patient was drawn), and the AUROC of all draws comes from one sort.

Shapes: N records, R draws, K different scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.rng import generator

Weights = NDArray[np.int64] | NDArray[np.float64]
"""weights_RN, whole numbers; as floats where they are multiplied again and again."""

DRAWS = 1000
LEVEL = 0.95
# Draws x records that are worked on at a time, 8 bytes each: what a processor's cache holds.
LARGEST_BLOCK = 500_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float
    draws: int
    """Draws that have a value: one without a positive or without a negative record has none."""


def patient_weights(patients: Sequence[str], draws: int, seed: int) -> NDArray[np.int64]:
    """Return weights_RN: how often each record's patient is drawn, with replacement."""
    names, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    count = len(names)
    drawn_RP = generator(seed, "bootstrap").multinomial(count, np.full(count, 1 / count), size=draws)
    return np.asarray(drawn_RP[:, patient_N], dtype=np.int64)


def auroc(positive_N: NDArray[np.bool_], scores_N: NDArray[np.float64]) -> float:
    """Return the area under the ROC curve; tied scores count half. NaN when one class is empty."""
    return float(weighted_auroc(positive_N, scores_N, np.ones((1, len(scores_N)), dtype=np.int64))[0])


def weighted_auroc(
    positive_N: NDArray[np.bool_], scores_N: NDArray[np.float64], weights_RN: Weights
) -> NDArray[np.float64]:
    """Return auroc_R, one for each row of record weights.

    It is the weighted share of (positive, negative) pairs that the scores order rightly.
    """
    order = np.argsort(scores_N, kind="stable")
    ordered = scores_N[order]
    first_K = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positive = positive_N[order]
    block = max(1, LARGEST_BLOCK // len(order))
    parts = []
    for start in range(0, len(weights_RN), block):
        weights = weights_RN[start : start + block][:, order].astype(np.float64)
        positive_RK = add_ties(weights * positive, first_K)
        negative_RK = add_ties(weights * ~positive, first_K)
        below_RK = np.cumsum(negative_RK, axis=1) - negative_RK
        pairs = positive_RK.sum(axis=1) * negative_RK.sum(axis=1)
        right = (positive_RK * (below_RK + 0.5 * negative_RK)).sum(axis=1)
        parts.append(np.divide(right, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    return np.concatenate(parts)


def add_ties(values_RN: NDArray[np.float64], first_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums_RK over records of one score, which begin at `first_K`.

    Most models give every record a score of its own: then there is nothing to add, and `reduceat` would take half of
    the time of a bootstrap.
    """
    return values_RN if len(first_K) == values_RN.shape[1] else np.add.reduceat(values_RN, first_K, axis=1)


def interval(value: float, draws_R: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """Return the percentile interval of a figure from its draws."""
    known = draws_R[~np.isnan(draws_R)]
    assert len(known), "no draw has both classes"
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), draws=len(known))
