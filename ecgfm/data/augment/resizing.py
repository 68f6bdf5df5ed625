"""Resizing: play the window faster or slower.

Nakamoto et al. 2021 name it among five transforms and give no magnitude; ours: time runs slower or faster by up to
a fifth, with which the heart rate and all intervals change. The length stays: a stretched window keeps a part at
a random place, and a shrunk one is put at a random place among zeros. Samples are interpolated linearly.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_positive
from ecgfm.errors import ConfigError


class Resizing(Augmentation):
    """Stretches or shrinks time by one factor in each row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the resizing."""

        stretch: tuple[float, float] = (0.8, 1.25)
        """Bounds of the factor by which intervals get longer."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "stretch")
            if self.stretch[0] == 0.0:
                raise ConfigError(f"resizing: stretch must be above 0, got {self.stretch}")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal on another time axis."""
        samples = signal_BLT.shape[2]
        step_B1 = 1.0 / view.between("stretch", self.config.stretch, 1)
        # The first sample's place; room is negative where the window shrinks, and then so is the place.
        first_B1 = view.uniform("place", 1) * (samples - 1) * (1.0 - step_B1)
        place_BT = first_B1 + step_B1 * torch.arange(samples, device=signal_BLT.device)
        whole_BT = place_BT.floor().clamp(0, max(samples - 2, 0))
        rest_B1T = (place_BT - whole_BT).float()[:, None]
        index_BLT = whole_BT.long()[:, None].expand_as(signal_BLT)
        left_BLT = signal_BLT.gather(2, index_BLT)
        right_BLT = signal_BLT.gather(2, (index_BLT + 1).clamp_(max=samples - 1))
        # Rounding may put an end a hair outside of the window.
        outside_B1T = ((place_BT < -1e-6) | (place_BT > samples - 1 + 1e-6))[:, None]
        return torch.lerp(left_BLT, right_BLT, rest_B1T).masked_fill(outside_B1T, 0.0)
