"""Hide one block of time in each lead.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, "blockmask": a block of 20 % of the window at a random place,
another in each lead; what reaches over the end goes on at the start. Exactly floor(share T) samples are hidden.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_share


class BlockMask(Augmentation):
    """Hides a block."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the mask."""

        share: float = 0.2
        """Length of the block as a share of the window."""
        per_lead: bool = True
        """Another place in each lead; else the same in all leads."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with a block of zeros."""
        leads, samples = signal_BLT.shape[1:]
        # 0.29 of 100 is a little less than 29 in floating point.
        length = math.floor(round(self.config.share * samples, 6))
        start_BL1 = (view.uniform("start", leads if self.config.per_lead else 1, 1) * samples).to(torch.int32)
        after_BLT = torch.arange(samples, device=signal_BLT.device, dtype=torch.int32) - start_BL1
        # Both bounds hold where the block reaches over the end.
        hidden_BLT = ((after_BLT >= 0) & (after_BLT < length)) | (after_BLT < length - samples)
        return signal_BLT.masked_fill(hidden_BLT, 0.0)
