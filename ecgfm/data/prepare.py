"""The one pass over the signal on the device: counts to millivolt to normalised values.

Shapes: B windows, L leads, T samples, S sources (folders of shards).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ecgfm.data.batch import Batch
from ecgfm.kernels.dispatch import triton_runs
from ecgfm.kernels.ingest import Counts, values
from ecgfm.signal.contract import LEAST_STD_MV


class Prepare(nn.Module):
    """Scale int16 counts, subtract a mean and divide by a standard deviation, clip.

    (count * microvolt_per_count / 1000 - mean) / std is one multiply and one add a sample, with the
    factors computed once a window. Where they are the window's own, that is one look at it more.

    Args:
        mean_mv_SL: Per folder of shards and lead.
        std_mv_SL: Likewise.
        clip: Largest absolute value that is let through.
        rate_hz: Samples a second, which the batch is told.
        per_window: Take each window's own mean and standard deviation, per lead, instead of those.
        databases: The database of each folder, which the batch is told.
        keep_counts: Leave counts as they are where a kernel cuts them into patches, and say how they become values: an
            encoder that takes this reads 2 bytes a sample for 4, and no float32 signal is ever written.
    """

    mean_mv_SL: Tensor
    std_mv_SL: Tensor

    def __init__(
        self,
        mean_mv_SL: Tensor,
        std_mv_SL: Tensor,
        clip: float,
        *,
        rate_hz: float = 500.0,
        per_window: bool = False,
        databases: tuple[str, ...] = (),
        keep_counts: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mean_mv_SL", mean_mv_SL.float(), persistent=False)
        self.register_buffer("std_mv_SL", std_mv_SL.float(), persistent=False)
        self.clip = clip
        self.rate_hz = rate_hz
        self.per_window = per_window
        self.databases = databases
        self.keep_counts = keep_counts

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Return the batch with float32 signal_BLT, without a unit, or with `counts`."""
        counts_BLT = batch.signal_BLT
        millivolt_B1 = batch.microvolt_per_count_B[:, None] * 1e-3
        if self.per_window:
            var_BL, mean_BL = torch.var_mean(counts_BLT.float(), dim=2, correction=0)
            std_mv_BL = (var_BL.sqrt() * millivolt_B1).clamp_(min=LEAST_STD_MV)
            mean_mv_BL = mean_BL * millivolt_B1
            # Subtracted first: a quiet lead may lie far from zero.
            offset_BL, factor_BL, shift_BL = mean_BL, millivolt_B1 / std_mv_BL, None
        else:
            std_mv_BL, mean_mv_BL = self.std_mv_SL[batch.database_B], self.mean_mv_SL[batch.database_B]
            offset_BL, factor_BL, shift_BL = None, millivolt_B1 / std_mv_BL, mean_mv_BL / -std_mv_BL
        counts = Counts(
            counts_BLT=counts_BLT, offset_BL=offset_BL, factor_BL=factor_BL, shift_BL=shift_BL, clip=self.clip
        )
        keep = self.keep_counts and triton_runs(counts_BLT)
        return replace(
            batch,
            signal_BLT=counts_BLT if keep else values(counts),
            counts=counts if keep else None,
            databases=self.databases,
            rate_hz=self.rate_hz,
            mean_mv_BL=mean_mv_BL,
            std_mv_BL=std_mv_BL,
        )
