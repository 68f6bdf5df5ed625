"""Points of the curves that a report draws: ROC, precision and recall, reliability.

Shapes: N records, K points, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import LEVEL, patient_weights
from ecgfm.eval.weighted import BINS, bin_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Bins of probability that hold a record, from low to high."""

    probability_B: Floats
    """Mean probability of the bin's records."""
    frequency_B: Floats
    """Share of them that have the label."""
    low_B: Floats
    """Of the bootstrap interval of the frequency, by patient."""
    high_B: Floats
    records_B: NDArray[np.int64]


def roc(target_N: Floats, probability_N: Floats) -> tuple[Floats, Floats]:
    """Return 1 - specificity and sensitivity, K points from (0, 0) to (1, 1).

    Raises:
        ConfigError: One of the classes is empty.
    """
    positive, scores = _known(target_N, probability_N)
    false_positive, true_positive, _ = roc_curve(positive, scores)
    return false_positive, true_positive


def precision_recall(target_N: Floats, probability_N: Floats) -> tuple[Floats, Floats]:
    """Return recall and precision, K points with recall falling to 0.

    Raises:
        ConfigError: One of the classes is empty.
    """
    positive, scores = _known(target_N, probability_N)
    precision, recall, _ = precision_recall_curve(positive, scores)
    return recall, precision


def reliability(
    target_N: Floats, probability_N: Floats, patients: tuple[str, ...], *, draws: int = 300, seed: int = 0
) -> Reliability:
    """Return probability and frequency in the bins of the calibration error; empty bins are left out.

    Args:
        target_N: 1, 0, or NaN where it is unknown.
        probability_N: Of the label; for `multiclass` as a whole, of the likeliest class, with whether it is right.
        patients: Of each record.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: No target is known.
    """
    known = ~np.isnan(target_N)
    if not known.any():
        raise ConfigError("no target is known: there is no reliability curve")
    truth, probability = target_N[known], probability_N[known]
    bins_NB = np.eye(BINS)[bin_of(probability)]
    records_B = bins_NB.sum(axis=0)
    held = records_B > 0
    weights_RN = patient_weights(np.asarray(patients)[known].tolist(), draws, seed)
    number_RB, positive_RB = weights_RN @ bins_NB, weights_RN @ (bins_NB * truth[:, None])
    drawn_RB = np.divide(positive_RB, number_RB, out=np.full_like(number_RB, np.nan), where=number_RB > 0)[:, held]
    # A bin of one patient may be in no draw at all: then nothing is known of its frequency.
    never_B = np.isnan(drawn_RB).all(axis=0)
    drawn_RB[:2, never_B] = [[0.0], [1.0]]
    low_B, high_B = np.nanquantile(drawn_RB, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low_B, high_B = np.where(never_B, 0.0, low_B), np.where(never_B, 1.0, high_B)
    return Reliability(
        probability_B=(bins_NB * probability[:, None]).sum(axis=0)[held] / records_B[held],
        frequency_B=(bins_NB * truth[:, None]).sum(axis=0)[held] / records_B[held],
        low_B=low_B,
        high_B=high_B,
        records_B=records_B[held].astype(np.int64),
    )


def _known(target_N: Floats, probability_N: Floats) -> tuple[NDArray[np.bool_], Floats]:
    known = ~np.isnan(target_N)
    positive = target_N[known] == 1
    if not positive.any() or positive.all():
        raise ConfigError("the curve needs records with the label and records without it")
    return positive, probability_N[known]
