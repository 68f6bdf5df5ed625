"""Hide the peaks, or everything else.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, "peakmask": where the mean over the leads exceeds the mean over
leads and time, or, with equal chance, where it does not. Means are those in millivolt.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_share


class PeakMask(Augmentation):
    """Hides the instants at which the leads' mean is high, or those at which it is low."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the mask."""

        inverse: float = 0.5
        """Chance that the peaks stay and the rest is hidden."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "inverse")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with zeros in all leads at the same instants."""
        # What was subtracted from the leads moves both means alike, and takes no part.
        mean_mv_B1T = torch.bmm(view.std_mv_BL.float()[:, None], signal_BLT)
        peak_B1T = mean_mv_B1T > mean_mv_B1T.mean(dim=2, keepdim=True)
        inverse_B11 = view.uniform("inverse", 1, 1) < self.config.inverse
        return signal_BLT.masked_fill(peak_B1T ^ inverse_B11, 0.0)
