"""Baseline shift: a segment moves up or down.

Bo et al. 2022, https://arxiv.org/abs/2211.07889: one segment, whose length is normal with a mean of 20 % of the
window and a standard deviation of a fifth of that, moves by up to .25, the same in all leads but for the sign.
In their code (and that of Oh et al. 2022) the amplitude is subtracted from the sign, so that every shift is by
0.75 to 1.25; here the two are multiplied. Lengths are cut to one sample and the whole window.

Shapes: B windows, E leads that are drawn for, S sources (1), T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._additive import Additive
from ecgfm.data.augment._segment import inside_segment
from ecgfm.data.augment.base import View, check_positive, check_share


class BaselineShift(Additive):
    """Adds a rectangle."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Additive.Config):
        """Settings of the shift."""

        amplitude_mv: tuple[float, float] = (0.0, 0.25)
        """Bounds of the shift in millivolt; its sign is drawn for each lead."""
        length_share: float = 0.2
        """Mean length of the segment as a share of the window."""
        length_sd: float = 0.2
        """Standard deviation of the length as a share of its mean."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "amplitude_mv")
            check_positive(self, "length_sd")
            check_share(self, "length_share")

    config: Config

    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return gains of either sign, and the rectangle."""
        spread_B1 = 1.0 + self.config.length_sd * view.normal("length", 1)
        length_B1 = (self.config.length_share * samples * spread_B1).floor().clamp(1, samples)
        inside_BT = inside_segment(length_B1, samples, view)
        sign_BE1 = torch.where(view.uniform("sign", leads, 1) < 0.5, -1.0, 1.0)
        gain_mv_BE1 = sign_BE1 * view.between("amplitude", self.config.amplitude_mv, 1, 1)
        return gain_mv_BE1, inside_BT[:, None]
