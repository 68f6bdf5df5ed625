"""A batch, and the random numbers that belong to its rows.

Shapes: B windows of this rank, V views, L leads, T samples, K kept tokens, M hidden tokens, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.kernels.ingest import Counts
from ecgfm.rng import derive

# SplitMix64's constants, as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Windows on their way from the shards to the objective."""

    signal_BLT: Tensor
    """int16 counts as read; normalised float32 once `prepare` has run, unless it leaves them to `counts`."""
    microvolt_per_count_B: Tensor
    """float32."""
    database_B: Tensor
    """int64: which folder of shards, and so which statistics."""
    labels_BC: Tensor | None = None
    """float32: 1 for a label that the record has, 0 for one that it has not, NaN where its database says nothing."""
    patient_B: Tensor | None = None
    """int64: whose each window is, of an objective that asks; see `ecgfm.data.patients`."""
    databases: tuple[str, ...] = ()
    """The database of each folder that `database_B` counts, once `prepare` has run."""
    rate_hz: float | None = None
    """Samples a second, once `prepare` has run."""
    mean_mv_BL: Tensor | None = None
    """What `prepare` subtracted from each lead."""
    std_mv_BL: Tensor | None = None
    """What `prepare` divided each lead by."""
    counts: Counts | None = None
    """`signal_BLT` and how it becomes normalised values, where `prepare` has left that to the encoder."""
    views_BVLT: Tensor | None = None
    """Augmented copies of each window, of an objective that compares several."""
    short_BSLT: Tensor | None = None
    """Augmented pieces of each window that are shorter than those in `views_BVLT`, S of them."""
    uniform_BR: Tensor | None = None
    """Uniform numbers in [0, 1) of each row, of an objective that draws in its forward."""
    keep_BK: Tensor | None = None
    """int64, indices of the tokens that the encoder sees, ascending."""
    hide_BM: Tensor | None = None
    """int64, indices of the other tokens, ascending."""

    @property
    def signal(self) -> Tensor | Counts:
        """What an encoder takes, that takes counts."""
        return self.signal_BLT if self.counts is None else self.counts

    def to(self, device: torch.device) -> Batch:
        """Return a batch that was read on a device; from pinned memory the copy does not wait."""
        if self.signal_BLT.device == device:
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return a batch that was read in page-locked memory; what is there already stays."""
        return self._each(Tensor.pin_memory)

    def arrive(self, copied: torch.cuda.Event) -> None:
        """Have the current stream wait for the copy that brought the batch, which another stream made.

        From then on the memory belongs to both: it is not used again before what the current stream does has ended.
        """
        stream = torch.cuda.current_stream(self.signal_BLT.device)
        stream.wait_event(copied)
        for tensor in (self.signal_BLT, self.microvolt_per_count_B, self.database_B, self.labels_BC, self.patient_B):
            if tensor is not None:
                tensor.record_stream(stream)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return what is read of a batch, changed; the rest, which `prepare` adds, is not there yet."""
        return Batch(
            signal_BLT=change(self.signal_BLT),
            microvolt_per_count_B=change(self.microvolt_per_count_B),
            database_B=change(self.database_B),
            labels_BC=None if self.labels_BC is None else change(self.labels_BC),
            patient_B=None if self.patient_B is None else change(self.patient_B),
        )


class Draws:
    """Random numbers of one optimizer step over all ranks and micro-batches, of which this micro-batch sees its rows.

    The numbers of a row depend on (seed, step, row) and not on the rank or the micro-batch that holds it, so two
    ranks with 8 rows draw what one rank with 16 rows draws. For `rows`, every rank generates all rows; at 100
    numbers a row this is nothing beside the step. `many` and `normal` are for signals' worth of numbers.

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

    @property
    def first_row(self) -> int:
        """Number of this micro-batch's first row among those of the step."""
        return self._rows[0]

    def _generator(self, purpose: str) -> torch.Generator:
        seed, step = self._key
        return torch.Generator(self._device).manual_seed(derive(seed, purpose, step))

    def rows(self, purpose: str, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), shape (B, *shape), float64, different in each row."""
        numbers = torch.rand(
            self._all_rows, *shape, generator=self._generator(purpose), device=self._device, dtype=torch.float64
        )
        return numbers[self._rows[0] : self._rows[1]]

    def many(self, purpose: str, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), shape (B, *shape), float32: multiples of 2**-24, different in each row.

        For numbers by the thousand a row: a rank generates its own rows only, by hashing (seed, step, row,
        place). Exact integer arithmetic, the same on every device.
        """
        bits_BC = self._bits(purpose, -(-math.prod(shape) // 2)).view(torch.int32)
        uniform_BC = (bits_BC >> 8).float().mul_(2.0**-24).add_(0.5)
        return uniform_BC[:, : math.prod(shape)].reshape(-1, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Return standard normal numbers, shape (B, *shape), float32; each rank generates its own rows, as in `many`.

        Box and Muller's transform of 32-bit numbers. Beyond 5.8 standard deviations, one number in 100 million,
        the values are coarse, and none is beyond 6.8. Logarithm and cosine differ in the last bit between devices.
        """
        count = -(-math.prod(shape) // 2)
        bits_BC2 = self._bits(purpose, count).view(torch.int32).view(-1, count, 2)
        radius_BC = bits_BC2[..., 0].float().mul_(2.0**-32).add_(0.5).clamp_(min=2.0**-33).log_().mul_(-2.0).sqrt_()
        angle_BC = bits_BC2[..., 1].float().mul_(2.0**-31 * math.pi)
        normal_BC = torch.cat([angle_BC.cos().mul_(radius_BC), angle_BC.sin_().mul_(radius_BC)], dim=1)
        return normal_BC[:, : math.prod(shape)].reshape(-1, *shape)

    def _bits(self, purpose: str, count: int) -> Tensor:
        """Return 64 random bits for each row and place, shape (B, count), int64.

        SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195): its stream for the step
        gives each row a seed, and the row's own stream the bits.
        """
        seed, step = self._key
        row_B = torch.arange(self._rows[0] + 1, self._rows[1] + 1, device=self._device)
        place_C = torch.arange(1, count + 1, device=self._device)
        seed_B = _mix_(row_B.mul_(_GOLDEN).add_(derive(seed, purpose, step)))
        return _mix_(seed_B[:, None] + place_C.mul_(_GOLDEN))

    def shared(self, purpose: str) -> float:
        """Return one uniform number in [0, 1), the same on every rank. It costs no device a wait."""
        seed, step = self._key
        return derive(seed, purpose, step) / 2**63


def _mix_(bits: Tensor) -> Tensor:
    """Mix int64 in place as SplitMix64 does: exclusive or with itself shifted right, and multiply."""
    for shift, factor in _MIX:
        # The shift of a signed number brings its sign in from the left.
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_((1 << 33) - 1))
