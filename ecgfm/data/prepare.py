"""The one pass over the signal on the device: counts to millivolt to normalised values.

Shapes: B windows, L leads, T samples, S sources (folders of shards).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ecgfm.data.batch import Batch


class Prepare(nn.Module):
    """Scale int16 counts, subtract the mean and divide by the standard deviation of their database, clip.

    (count * microvolt_per_count / 1000 - mean) / std is one multiply and one add a sample, with the
    factors computed once a window.

    Args:
        mean_mv_SL: Per folder of shards and lead.
        std_mv_SL: Likewise.
        clip: Largest absolute value that is let through.
    """

    mean_mv_SL: Tensor
    std_mv_SL: Tensor

    def __init__(self, mean_mv_SL: Tensor, std_mv_SL: Tensor, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean_mv_SL", mean_mv_SL.float(), persistent=False)
        self.register_buffer("std_mv_SL", std_mv_SL.float(), persistent=False)
        self.clip = clip

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """Return the batch with float32 signal_BLT, without a unit."""
        std_BL = self.std_mv_SL[batch.database_B]
        factor_BL = batch.microvolt_per_count_B[:, None] * 1e-3 / std_BL
        shift_BL = self.mean_mv_SL[batch.database_B] / -std_BL
        signal_BLT = batch.signal_BLT.float().mul_(factor_BL[:, :, None]).add_(shift_BL[:, :, None])
        return replace(batch, signal_BLT=signal_BLT.clamp_(-self.clip, self.clip))
