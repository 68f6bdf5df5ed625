"""Hide single samples.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, "mask": each sample of each lead is set to zero with a chance of
.2. Where a lead is hidden its mean is put, which is 0 after normalisation; so in all masks.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_share


class TimeMask(Augmentation):
    """Hides samples, each by its own draw."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the mask."""

        share: float = 0.2
        """Chance of each sample to be hidden."""
        per_lead: bool = True
        """Draw for each lead; else for all leads together."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with zeros."""
        leads, samples = signal_BLT.shape[1:]
        uniform_BLT = view.many("hidden", leads if self.config.per_lead else 1, samples)
        return signal_BLT.masked_fill(uniform_BLT < self.config.share, 0.0)
