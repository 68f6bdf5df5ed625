"""A batch, and the random numbers that belong to its rows.

Shapes: B windows of this rank, L leads, T samples, K kept tokens, M hidden tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.rng import derive


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Windows on their way from the shards to the objective."""

    signal_BLT: Tensor
    """int16 counts as read; normalised float32 once `prepare` has run."""
    microvolt_per_count_B: Tensor
    """float32."""
    database_B: Tensor
    """int64: which folder of shards, and so which statistics."""
    keep_BK: Tensor | None = None
    """int64, indices of the tokens that the encoder sees, ascending."""
    hide_BM: Tensor | None = None
    """int64, indices of the other tokens, ascending."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; from pinned memory the copy does not wait."""
        return Batch(
            signal_BLT=self.signal_BLT.to(device, non_blocking=True),
            microvolt_per_count_B=self.microvolt_per_count_B.to(device, non_blocking=True),
            database_B=self.database_B.to(device, non_blocking=True),
        )


class Draws:
    """Random numbers of one optimizer step over all ranks and micro-batches, of which this micro-batch sees its rows.

    The numbers of a row depend on (seed, step, row) and not on the rank or the micro-batch that holds it, so two
    ranks with 8 rows draw what one rank with 16 rows draws. Every rank generates all rows; at 100 numbers a row
    this is nothing beside the step.

    Args:
        seed: The run's seed.
        step: Optimizer step.
        rows: This micro-batch's rows on this rank, [first, last).
        all_rows: Rows of the step.
        device: Where the numbers are wanted.
    """

    def __init__(self, *, seed: int, step: int, rows: tuple[int, int], all_rows: int, device: torch.device) -> None:
        self._key = (seed, step)
        self._rows = rows
        self._all_rows = all_rows
        self._device = device

    def _generator(self, purpose: str) -> torch.Generator:
        seed, step = self._key
        return torch.Generator(self._device).manual_seed(derive(seed, purpose, step))

    def rows(self, purpose: str, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), shape (B, *shape), float64, different in each row."""
        numbers = torch.rand(
            self._all_rows, *shape, generator=self._generator(purpose), device=self._device, dtype=torch.float64
        )
        return numbers[self._rows[0] : self._rows[1]]

    def shared(self, purpose: str) -> float:
        """Return one uniform number in [0, 1), the same on every rank. It costs no device a wait."""
        seed, step = self._key
        return derive(seed, purpose, step) / 2**63
