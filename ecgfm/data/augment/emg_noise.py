"""Muscle noise: white, of another size in each lead.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, code: standard deviation uniform in 0..0.1 (Oh et al. 2022,
https://arxiv.org/abs/2203.06889, code: 0..0.5). A real electromyogram is not white; theirs and ours is.

Shapes: B windows, E leads that are drawn for, S sources, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment._additive import Additive
from ecgfm.data.augment.base import View, check_positive


class EMGNoise(Additive):
    """Adds white noise of a random size in each lead."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Additive.Config):
        """Settings of the muscle noise."""

        sd_mv: tuple[float, float] = (0.0, 0.1)
        """Bounds of the standard deviation in millivolt, drawn for each lead."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "sd_mv")

    config: Config

    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return the drawn gain for a source of each lead."""
        return view.between("size", self.config.sd_mv, leads).diag_embed(), view.many_normal("noise", leads, samples)
