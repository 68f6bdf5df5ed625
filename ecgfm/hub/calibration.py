"""Calibrated probabilities from logits, as plain numbers that fit into a `config.json`.

- `platt` (Platt 1999): a slope and an offset per class on the class's log-odds.
- `temperature` (Guo et al. 2017, https://arxiv.org/abs/1706.04599): one slope for all.
- `isotonic` (Zadrozny and Elkan 2002): a rising step-and-line function per class, given by its knots.

The log-odds of a class are its logit where classes are independent (`multilabel`). Where they exclude each other
(`multiclass`) they are those of its softmax probability, and a record's calibrated probabilities of `platt` and
`isotonic` are divided by their sum. Fitted by `ecgfm.eval.calibration`.

Shapes: N records, C classes, K knots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.errors import ConfigError, ContractError, SignalError

Method = Literal["platt", "temperature", "isotonic"]
Outputs = Literal["multilabel", "multiclass"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How logits become probabilities."""

    method: Method
    outputs: Outputs
    """Whether classes are independent of each other or exclude each other."""
    slope: tuple[float, ...] = ()
    """Of platt one per class; of temperature a single one, 1 / T."""
    offset: tuple[float, ...] = ()
    """Of platt, one per class."""
    knots_logit: tuple[tuple[float, ...], ...] = ()
    """Of isotonic, K rising log-odds per class. A class without any keeps its uncalibrated probability."""
    knots_probability: tuple[tuple[float, ...], ...] = ()
    """Of isotonic, the probability at each knot; a straight line between them, and constant outside."""

    def __post_init__(self) -> None:
        if self.method == "temperature":
            good = len(self.slope) == 1 and not (self.offset or self.knots_logit or self.knots_probability)
        elif self.method == "platt":
            good = len(self.slope) == len(self.offset) > 0 and not (self.knots_logit or self.knots_probability)
        else:
            lengths = [[len(knots) for knots in both] for both in (self.knots_logit, self.knots_probability)]
            good = lengths[0] == lengths[1] and bool(lengths[0]) and not (self.slope or self.offset)
            good = good and all(list(knots) == sorted(knots) for knots in (*self.knots_logit, *self.knots_probability))
            good = good and all(knots[0] >= 0.0 and knots[-1] <= 1.0 for knots in self.knots_probability if knots)
        if not good or not np.isfinite([*self.slope, *self.offset]).all():
            raise ConfigError(f"these numbers are no calibration by {self.method}: fit it again")

    @property
    def num_classes(self) -> int | None:
        """C, or None where any number of classes will do."""
        return None if self.method == "temperature" else max(len(self.offset), len(self.knots_logit))

    def apply(self, logit_NC: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probability_NC of logits, in [0, 1].

        Raises:
            SignalError: The logits have another number of classes, or are not finite.
        """
        logits = np.asarray(logit_NC, dtype=np.float64)
        if logits.ndim != 2 or self.num_classes not in (None, logits.shape[1]):
            raise SignalError(f"logits must be (records, {self.num_classes or 'classes'}), got {logits.shape}")
        if not np.isfinite(logits).all():
            raise SignalError("the logits hold values that are not finite, which no calibration maps")
        if self.method == "temperature":
            scaled = logits * self.slope[0]
            return sigmoid(scaled) if self.outputs == "multilabel" else softmax(scaled)
        odds = log_odds(logits, self.outputs)
        if self.method == "platt":
            probability_NC = sigmoid(odds * np.asarray(self.slope) + np.asarray(self.offset))
        else:
            probability_NC = sigmoid(odds)
            for column, (x, y) in enumerate(zip(self.knots_logit, self.knots_probability, strict=True)):
                if x:
                    probability_NC[:, column] = np.interp(odds[:, column], x, y)
        if self.outputs == "multilabel":
            return probability_NC
        total_N1 = probability_NC.sum(axis=1, keepdims=True)
        # Isotonic curves may all be 0 at a record: then nothing is known of it.
        even = np.full_like(probability_NC, 1 / logits.shape[1])
        shares: NDArray[np.float64] = np.divide(probability_NC, total_N1, out=even, where=total_N1 > 0)
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and words for JSON."""
        written: dict[str, Any] = config.to_dict(self)
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Return what `to_dict` wrote.

        Raises:
            ContractError: An entry is unknown, missing, of another type, or the numbers do not fit together.
        """
        try:
            return config.from_dict(cls, data, "calibration")
        except ConfigError as error:
            raise ContractError(str(error)) from error


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def softmax(logit_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's probabilities, which add up to 1."""
    raised = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return shares


def log_odds(logit_NC: NDArray[np.float64], outputs: Outputs) -> NDArray[np.float64]:
    """Return log(p / (1 - p)) of the uncalibrated probabilities.

    Of a softmax, log-odds do not change when a constant is added to all logits of a record, as the logits do.
    """
    if outputs == "multilabel":
        return logit_NC
    odds = np.empty_like(logit_NC)
    for column in range(logit_NC.shape[1]):
        others = np.delete(logit_NC, column, axis=1)
        top = others.max(axis=1, keepdims=True)
        odds[:, column] = logit_NC[:, column] - (top + np.log(np.exp(others - top).sum(axis=1, keepdims=True)))[:, 0]
    return odds
