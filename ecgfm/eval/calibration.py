"""Fit a calibration on the validation part: Platt, temperature or isotonic.

Platt 1999 ("Probabilistic outputs for support vector machines") with its targets (P + 1) / (P + 2) and 1 / (N + 2),
which keep the slope finite when the classes are apart; temperature by Guo et al. 2017,
https://arxiv.org/abs/1706.04599; isotonic by Zadrozny and Elkan 2002, https://doi.org/10.1145/775047.775151. Which
numbers they leave is said in `ecgfm.hub.calibration`.

Never fit on the part that is reported: the figures of calibration would be those of the training of a model.

Shapes: N records, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ecgfm.errors import ConfigError
from ecgfm.hub.calibration import Calibration, Method, Outputs, log_odds, sigmoid, softmax

SLOPES = (0.01, 100.0)
"""Bounds of 1 / temperature: of data that a model sorts without a fault the best slope is infinite."""

FLAT = 1e-3
"""Slope of Platt, over the largest log-odds, where the best one would turn the order of the records round."""


def fit(
    method: Method,
    logit_NC: NDArray[np.floating[Any]],
    target_NC: NDArray[np.floating[Any]],
    *,
    outputs: Outputs = "multilabel",
) -> Calibration:
    """Return the calibration that fits logits to what is true.

    Args:
        method: `platt`, `temperature` or `isotonic`.
        logit_NC: Of the validation part.
        target_NC: 1, 0, or NaN where it is unknown; unknown cells are left out. Of `multiclass`, one 1 in each row.
        outputs: Whether classes are independent of each other or exclude each other.

    Raises:
        ConfigError: Shapes differ, logits are not finite, targets are not 0 or 1, or nothing is known.
    """
    logits, targets = np.asarray(logit_NC, dtype=np.float64), np.asarray(target_NC, dtype=np.float64)
    _check(logits, targets, outputs)
    if outputs == "multiclass":
        known = ~np.isnan(targets).any(axis=1)
        logits, targets = logits[known], targets[known]
    if method == "temperature":
        return Calibration(method=method, outputs=outputs, slope=(_slope(logits, targets, outputs),))
    odds = log_odds(logits, outputs)
    columns = [(odds[known, c], targets[known, c]) for c, known in enumerate((~np.isnan(targets)).T)]
    if method == "platt":
        lines = [_platt(x, y) for x, y in columns]
        return Calibration(
            method=method,
            outputs=outputs,
            slope=tuple(slope for slope, _ in lines),
            offset=tuple(offset for _, offset in lines),
        )
    knots = [_isotonic(x, y) for x, y in columns]
    return Calibration(
        method=method,
        outputs=outputs,
        knots_logit=tuple(x for x, _ in knots),
        knots_probability=tuple(y for _, y in knots),
    )


def _check(logits: NDArray[np.float64], targets: NDArray[np.float64], outputs: Outputs) -> None:
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ConfigError(f"logits and targets must be (records, classes) both, got {logits.shape} and {targets.shape}")
    if outputs == "multiclass" and logits.shape[1] < 2:
        raise ConfigError("classes that exclude each other are two or more; for one label give outputs='multilabel'")
    known = targets[~np.isnan(targets)]
    if not len(known):
        raise ConfigError("no target of the validation part is known: there is nothing to fit a calibration to")
    if not np.isin(known, (0.0, 1.0)).all():
        raise ConfigError("targets must be 0, 1 or NaN: a regression has no probabilities to calibrate")
    if not np.isfinite(logits).all():
        raise ConfigError("the logits hold values that are not finite")
    if outputs == "multiclass" and not (np.nansum(targets, axis=1)[~np.isnan(targets).any(axis=1)] == 1).all():
        raise ConfigError("of classes that exclude each other each row needs exactly one 1")


def _slope(logits: NDArray[np.float64], targets: NDArray[np.float64], outputs: Outputs) -> float:
    """Return the slope of least negative log-likelihood, which is convex in it: its derivative rises through 0."""
    known = ~np.isnan(targets)

    def derivative(slope: float) -> float:
        probability = sigmoid(logits * slope) if outputs == "multilabel" else softmax(logits * slope)
        return float(((probability - targets) * logits)[known].sum())

    low, high = np.log(SLOPES)
    for _ in range(60):  # halves the bracket of 9.2 to below 1e-17
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def _platt(odds: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and offset. A class that is in all records or in none stays as it is."""
    positive, negative = int(target.sum()), int((1 - target).sum())
    if not positive or not negative:
        return 1.0, 0.0
    soft = np.where(target == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    # A target between 0 and 1 is both answers, each with its weight. Scaling the odds is for the solver's sake.
    scale = max(float(np.abs(odds).max()), 1e-12)
    twice = np.concatenate([odds, odds])[:, None] / scale
    answer = np.repeat([1, 0], len(odds))
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(twice, answer, sample_weight=np.concatenate([soft, 1 - soft]))
    if model.coef_[0, 0] <= 0:
        # Validated no better than chance: a falling line would turn the model's order round, and the test part's
        # figures would be another model's. What is left is the share, and the order.
        share = float(soft.mean())
        return FLAT / scale, math.log(share / (1 - share))
    return float(model.coef_[0, 0]) / scale, float(model.intercept_[0])


def _isotonic(odds: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the knots. A class that is in all records or in none has none."""
    if len(np.unique(target)) < 2:
        return (), ()
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(odds, target)
    return tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_))
