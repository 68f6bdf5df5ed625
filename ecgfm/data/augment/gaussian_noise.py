"""White Gaussian noise of one size.

Bo et al. 2022, https://arxiv.org/abs/2211.07889: standard deviation .05. In their code all leads get the
same noise; here each lead has its own (see `limb_leads_follow`).

Shapes: B windows, E leads that are drawn for, S sources, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._additive import Additive
from ecgfm.data.augment.base import View, check_positive


class GaussianNoise(Additive):
    """Adds white noise."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Additive.Config):
        """Settings of the white noise."""

        sd_mv: float = 0.05
        """Standard deviation in millivolt, of the leads that are drawn for."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "sd_mv")

    config: Config

    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return the same gain for a source of each lead."""
        gain_EE = torch.eye(leads, device=view.std_mv_BL.device, dtype=torch.float64) * self.config.sd_mv
        source_BST = view.many_normal("noise", leads, samples)
        return gain_EE.expand(len(source_BST), -1, -1), source_BST
