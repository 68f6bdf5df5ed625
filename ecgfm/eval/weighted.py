"""Figures of merit for many bootstrap draws at once: each is a function of record weights.

A draw says how often each record is drawn; the first row is usually all ones, the data as they are. Targets are 1, 0,
or NaN where nobody knows, and such cells count nowhere. AUROC is in `bootstrap`.

Sources, and where we differ:

- `average_precision`: the sum over falling thresholds of precision times the gain in recall, as in scikit-learn.
- `f_max`: Radivojac et al. 2013, https://doi.org/10.1038/nmeth.2340, as the benchmark of PTB-XL (Strodthoff et al.
  2021, https://doi.org/10.1109/JBHI.2020.3022989) names it: precision is a mean over the records with an answer, recall
  over the records with a label, and the threshold, one of 0.00, 0.01 ... 1.00 for all classes, is the best.
- `f_beta`, `g_beta`: the measures of the PhysioNet/CinC Challenge 2020 (Perez Alday et al. 2020,
  https://doi.org/10.1088/1361-6579/abc960) with beta 2. What a record adds is divided by its number of labels; without
  a label by 1, as the Challenge does (the PTB-XL benchmark has no such records).
- `challenge_2021`: Reyna et al. 2021, https://doi.org/10.23919/CinC53138.2021.9662687. A record gives each pair of a
  label and an answer its weight, divided by the number of classes that are either; 1 is the truth, 0 is sinus rhythm
  for every record.
- `calibration_error`: Guo et al. 2017, https://arxiv.org/abs/1706.04599, over 15 bins of equal width.

Shapes: R draws, N records, C classes, T thresholds, K different scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ecgfm.eval.bootstrap import LARGEST_BLOCK, Weights, add_ties

BETA = 2.0
BINS = 15
F_MAX_THRESHOLDS = np.arange(101) / 100

Floats = NDArray[np.float64]


def by_class(
    figure: Callable[[NDArray[np.bool_], Floats, Weights], Floats],
    target_NC: Floats,
    score_NC: Floats,
    weights_RN: Weights,
) -> Floats:
    """Return figure_RC of each class by itself, over the records where it is known; NaN where none is."""
    out = np.full((len(weights_RN), target_NC.shape[1]), np.nan)
    for column in range(target_NC.shape[1]):
        known = ~np.isnan(target_NC[:, column])
        if known.any():
            answers = target_NC[known, column] == 1
            weights = weights_RN if known.all() else weights_RN[:, known]
            out[:, column] = figure(answers, score_NC[known, column], weights)
    return out


def average_precision(positive_N: NDArray[np.bool_], scores_N: Floats, weights_RN: Weights) -> Floats:
    """Return the average precision of each draw; NaN when one class is empty, where it would be a constant."""
    order = np.argsort(-scores_N, kind="stable")
    ordered = scores_N[order]
    first_K = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positive = positive_N[order]
    block = max(1, LARGEST_BLOCK // len(order))
    parts = []
    for start in range(0, len(weights_RN), block):
        weights = weights_RN[start : start + block][:, order].astype(np.float64)
        all_RK, positive_RK = add_ties(weights, first_K), add_ties(weights * positive, first_K)
        answered_RK, found_RK = np.cumsum(all_RK, axis=1), np.cumsum(positive_RK, axis=1)
        total_R = found_RK[:, -1]
        precision_RK = np.divide(found_RK, answered_RK, out=np.zeros_like(found_RK), where=answered_RK > 0)
        both = (total_R > 0) & (total_R < answered_RK[:, -1])
        gained = (positive_RK * precision_RK).sum(axis=1)
        parts.append(np.divide(gained, total_R, out=np.full(len(gained), np.nan), where=both))
    return np.concatenate(parts)


def f_max(target_NC: Floats, score_NC: Floats, weights_RN: Weights) -> Floats:
    """Return the greatest F1 of each draw, from precision and recall by record."""
    known, truth = ~np.isnan(target_NC), target_NC == 1
    labels_N = truth.sum(axis=1)
    weights = weights_RN.astype(np.float64)
    recall_NT = np.zeros((len(truth), len(F_MAX_THRESHOLDS)))
    precision_NT, answered_NT = np.zeros_like(recall_NT), np.zeros_like(recall_NT)
    for place, threshold in enumerate(F_MAX_THRESHOLDS):
        answer = known & (score_NC >= threshold)
        right_N, answers_N = (answer & truth).sum(axis=1), answer.sum(axis=1)
        recall_NT[:, place] = right_N / np.maximum(labels_N, 1)
        precision_NT[:, place] = right_N / np.maximum(answers_N, 1)
        answered_NT[:, place] = answers_N > 0
    precision_RT = _share(weights @ precision_NT, weights @ answered_NT)
    recall_RT = _share(weights @ recall_NT, (weights @ (labels_N > 0))[:, None])
    # Where nothing is answered there is no precision, and with neither right answer no F1 but 0.
    f1_RT = _share(2 * precision_RT * recall_RT, precision_RT + recall_RT)
    best = np.nan_to_num(f1_RT, nan=0.0).max(axis=1)
    return np.where((weights @ (labels_N > 0)) > 0, best, np.nan)


def confusion(
    target_NC: Floats, answer_NC: NDArray[np.bool_], weights_RN: Weights, *, by_labels: bool = False
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return tp_RC, fp_RC, fn_RC and tn_RC; `by_labels` divides what a record adds by its number of labels."""
    known, truth = ~np.isnan(target_NC), target_NC == 1
    share_N = 1 / np.maximum(truth.sum(axis=1), 1) if by_labels else np.ones(len(truth))
    weights = weights_RN * share_N
    cells = (truth & answer_NC, known & ~truth & answer_NC, truth & ~answer_NC, known & ~truth & ~answer_NC)
    tp, fp, fn, tn = (weights @ cell.astype(np.float64) for cell in cells)
    return tp, fp, fn, tn


def f_beta(tp: Floats, fp: Floats, fn: Floats, beta: float = BETA) -> Floats:
    """Return (1 + beta^2) tp / ((1 + beta^2) tp + fp + beta^2 fn); NaN where there is neither label nor answer."""
    return _share((1 + beta**2) * tp, (1 + beta**2) * tp + fp + beta**2 * fn)


def g_beta(tp: Floats, fp: Floats, fn: Floats, beta: float = BETA) -> Floats:
    """Return tp / (tp + fp + beta fn); NaN where there is neither label nor answer."""
    return _share(tp, tp + fp + beta * fn)


def challenge_2021(
    target_NC: Floats, answer_NC: NDArray[np.bool_], weights_RN: Weights, *, worth_CC: Floats, normal: int
) -> Floats:
    """Return the Challenge's score of each draw.

    Args:
        target_NC: What is true.
        answer_NC: What the model says.
        weights_RN: How often each record is drawn.
        worth_CC: Of each answer (column) for each label (row).
        normal: Column of sinus rhythm.
    """
    truth, known = target_NC == 1, ~np.isnan(target_NC)
    inactive = np.zeros_like(truth)
    inactive[:, normal] = known[:, normal]
    # A record's part of the score, before it is set between sinus rhythm and the truth.
    observed_R, correct_R, inactive_R = (
        weights_RN @ (((truth @ worth_CC) * said).sum(axis=1) / np.maximum((truth | said).sum(axis=1), 1))
        for said in (answer_NC & known, truth, inactive)
    )
    span = correct_R - inactive_R
    # 0 where all records are in sinus rhythm alone, as the Challenge has it.
    score: Floats = np.divide(observed_R - inactive_R, span, out=np.zeros_like(span), where=span != 0)
    return score


def calibration_error(positive_N: NDArray[np.bool_], probability_N: Floats, weights_RN: Weights) -> Floats:
    """Return the mean distance of probability and frequency over the bins, each with its share of the records."""
    bins_NK = np.eye(BINS)[bin_of(probability_N)]
    gap_RK: Floats = weights_RN @ (bins_NK * (probability_N - positive_N)[:, None])
    return _share(np.abs(gap_RK).sum(axis=1), weights_RN.sum(axis=1).astype(np.float64))


def brier(positive_N: NDArray[np.bool_], probability_N: Floats, weights_RN: Weights) -> Floats:
    """Return the mean squared distance of probability and truth."""
    squared_R = weights_RN.astype(np.float64) @ np.square(probability_N - positive_N)
    return _share(squared_R, weights_RN.sum(axis=1).astype(np.float64))


def bin_of(probability_N: Floats) -> NDArray[np.int64]:
    """Return the bin of each probability: bin k holds (k / 15, (k + 1) / 15], the first one 0 as well."""
    return np.clip(np.ceil(probability_N * BINS).astype(np.int64) - 1, 0, BINS - 1)


def regression(truth_N: Floats, value_N: Floats, weights_RN: Weights) -> dict[str, Floats]:
    """Return mean absolute and root mean squared error, r2 (share of variance explained) and Pearson's correlation."""
    total_R = weights_RN.sum(axis=1).astype(np.float64)
    # About the means of all records: the sums of squares of a draw would cancel without.
    x, y = truth_N - truth_N.mean(), value_N - value_N.mean()
    error = value_N - truth_N
    mean = {
        name: _share(weights_RN @ each, total_R)
        for name, each in {
            "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y, "absolute": np.abs(error), "squared": error * error,
        }.items()
    }  # fmt: skip
    var_x, var_y = mean["xx"] - mean["x"] ** 2, mean["yy"] - mean["y"] ** 2
    # Of a constant the rounding of these differences is all that is left.
    var_x, var_y = (
        np.where(var > 1e-12 * scale, var, 0.0) for var, scale in ((var_x, mean["xx"]), (var_y, mean["yy"]))
    )
    return {
        "mae": mean["absolute"],
        "rmse": np.sqrt(mean["squared"]),
        "r2": 1 - _share(mean["squared"], var_x),
        "pearson": _share(mean["xy"] - mean["x"] * mean["y"], np.sqrt(var_x * var_y)),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    whole = np.broadcast_to(whole, np.broadcast_shapes(part.shape, whole.shape))
    out: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole != 0)
    return out
