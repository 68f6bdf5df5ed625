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

from ecgfm.data.augment._hiding import Hiding
from ecgfm.data.augment.base import View


class BlockMask(Hiding):
    """Hides a block."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Hiding.Config):
        """Settings of the mask: `share` is the length of the block."""

    def hidden(self, leads: int, samples: int, view: View) -> Tensor:
        """Return a block at a random place."""
        # 0.29 of 100 is a little less than 29 in floating point.
        length = math.floor(round(self.config.share * samples, 6))
        start_BL1 = (view.uniform("start", leads, 1) * samples).to(torch.int32)
        after_BLT = torch.arange(samples, device=start_BL1.device, dtype=torch.int32) - start_BL1
        # Both bounds hold where the block reaches over the end.
        return ((after_BLT >= 0) & (after_BLT < length)) | (after_BLT < length - samples)
