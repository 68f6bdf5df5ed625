"""Random lead masking (RLM): hide whole leads.

Oh et al. 2022, https://arxiv.org/abs/2203.06889: each lead is set to zero with a chance of .5. There, one window in
4096 loses all twelve leads; here it keeps one of them, picked at random.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_share


class LeadMask(Augmentation):
    """Hides leads, each by its own draw."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the mask."""

        share: float = 0.5
        """Chance of each lead to be hidden."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with leads of zeros."""
        uniform_BL1 = view.uniform("hidden", signal_BLT.shape[1], 1)
        hidden_BL1 = (uniform_BL1 < self.config.share) & (uniform_BL1 < uniform_BL1.amax(dim=1, keepdim=True))
        return signal_BLT.masked_fill(hidden_BL1, 0.0)
