"""Baseline wander: three slow cosines.

Bo et al. 2022, https://arxiv.org/abs/2211.07889: frequencies uniform in .01-.2 Hz, amplitudes in 0..0.5, phases
random; each lead sees the sum with a gain of its own, normal with mean 1 and standard deviation .5.

Shapes: B windows, E leads that are drawn for, S sources (the cosines), T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment._additive import Additive, seconds
from ecgfm.data.augment.base import View, check_positive
from ecgfm.errors import ConfigError


class BaselineWander(Additive):
    """Adds slow cosines."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Additive.Config):
        """Settings of the wander."""

        amplitude_mv: tuple[float, float] = (0.0, 0.5)
        """Bounds of each cosine's amplitude in millivolt."""
        frequency_hz: tuple[float, float] = (0.01, 0.2)
        """Bounds of each cosine's frequency."""
        num_cosines: int = 3
        """How many are added up."""
        lead_sd: float = 0.5
        """Standard deviation of a lead's gain about 1."""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("amplitude_mv", "frequency_hz", "lead_sd"):
                check_positive(self, name)
            if self.num_cosines < 1:
                raise ConfigError(f"baseline_wander: num_cosines must be at least 1, got {self.num_cosines}")

    config: Config

    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return gains, amplitude times the lead's own, and the cosines."""
        number = self.config.num_cosines
        frequency_hz_BS1 = view.between("frequency", self.config.frequency_hz, number, 1)
        phase_BST = 2 * math.pi * (frequency_hz_BS1 * seconds(samples, view) + view.uniform("phase", number, 1))
        amplitude_mv_B1S = view.between("amplitude", self.config.amplitude_mv, 1, number)
        lead_BE1 = 1.0 + self.config.lead_sd * view.normal("lead", leads, 1)
        return lead_BE1 * amplitude_mv_B1S, phase_BST.cos()
