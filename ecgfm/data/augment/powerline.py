"""Hum of the mains, 50 or 60 Hz.

Bo et al. 2022, https://arxiv.org/abs/2211.07889: amplitude uniform in 0..0.5, either frequency with equal
chance, one phase and amplitude for all leads.

Shapes: B windows, E leads that are drawn for, S sources (1), T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._additive import Additive, seconds
from ecgfm.data.augment.base import Augmentation, View, check_positive
from ecgfm.errors import ConfigError

MAINS_HZ = (50.0, 60.0)


class Powerline(Additive):
    """Adds a cosine of 50 or 60 Hz."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Additive.Config):
        """Settings of the hum."""

        amplitude_mv: tuple[float, float] = (0.0, 0.5)
        """Bounds of the amplitude in millivolt."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "amplitude_mv")

    config: Config

    @classmethod
    def check(cls, config: Augmentation.Config, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse a rate at which 60 Hz would look like something else."""
        if rate_hz <= 2 * max(MAINS_HZ):
            raise ConfigError(f"powerline: 60 Hz needs more than 120 samples a second, got {rate_hz:g}; leave it out")

    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return one gain for all leads, and the cosine."""
        low, high = MAINS_HZ
        rate_hz_B1 = torch.where(view.uniform("mains", 1) < 0.5, low, high)
        phase_BT = 2 * math.pi * (rate_hz_B1 * seconds(samples, view) + view.uniform("phase", 1))
        gain_mv_B11 = view.between("amplitude", self.config.amplitude_mv, 1, 1)
        return gain_mv_B11.expand(-1, leads, 1), phase_BT.cos()[:, None]
