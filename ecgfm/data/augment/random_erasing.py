"""Random erasing: noise, or nothing, in place of one segment of all leads.

Zhong et al. 2020, https://arxiv.org/abs/1708.04896: a region of 2 to 40 % of the picture is filled with random values.
Nakamoto et al. 2021 name it among five transforms of the ECG without magnitudes. Ours: a segment of time in all leads,
2 to 40 % of the window, filled with standard normal noise of the normalised signal.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ecgfm.data.augment._segment import inside_segment
from ecgfm.data.augment.base import Augmentation, View, check_share


class RandomErasing(Augmentation):
    """Overwrites a segment."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the erasing."""

        share: tuple[float, float] = (0.02, 0.4)
        """Bounds of the segment's length as a share of the window."""
        fill: Literal["noise", "zero"] = "noise"
        """What is written: normal noise of the normalised signal's size, or the leads' means."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal without a segment."""
        leads, samples = signal_BLT.shape[1:]
        length_B1 = (view.between("length", self.config.share, 1) * samples).floor()
        erased_B1T = inside_segment(length_B1, samples, view)[:, None]
        if self.config.fill == "zero":
            return signal_BLT.masked_fill(erased_B1T, 0.0)
        return torch.where(erased_B1T, view.many_normal("fill", leads, samples), signal_BLT)
