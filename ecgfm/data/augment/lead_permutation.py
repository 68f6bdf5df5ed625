"""Permute the leads, as electrodes that were exchanged do.

What is permuted is millivolt: a lead that takes another's place is normalised as that place is.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS

LIMB_LEADS = 6


class LeadPermutation(Augmentation):
    """Puts the leads in a random order."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the permutation."""

        within: Literal["all", "limb and chest"] = "all"
        """Exchange any leads, or limb leads among themselves and chest leads among themselves."""

    config: Config

    @classmethod
    def check(cls, config: Augmentation.Config, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse to tell limb from chest leads in other than the twelve."""
        assert isinstance(config, LeadPermutation.Config)
        if config.within != "all" and num_leads != len(LEADS):
            raise ConfigError(f"lead_permutation: within 'limb and chest' needs the 12 leads, got {num_leads}; use all")

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the leads in another order, in the normalisation of their new places."""
        leads = signal_BLT.shape[1]
        self.check(self.config, leads, signal_BLT.shape[2], view.rate_hz)
        key_BL = view.uniform("order", leads)
        if self.config.within != "all":
            key_BL = key_BL + (torch.arange(leads, device=key_BL.device) >= LIMB_LEADS)
        from_BL = key_BL.argsort(dim=1)
        mean_mv_BL, std_mv_BL = view.mean_mv_BL, view.std_mv_BL
        factor_BL = std_mv_BL.gather(1, from_BL) / std_mv_BL
        shift_BL = (mean_mv_BL.gather(1, from_BL) - mean_mv_BL) / std_mv_BL
        moved_BLT = signal_BLT.gather(1, from_BL[:, :, None].expand_as(signal_BLT))
        return torch.addcmul(shift_BL.float()[:, :, None], moved_BLT, factor_BL.float()[:, :, None])
