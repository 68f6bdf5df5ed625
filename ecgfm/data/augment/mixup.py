"""Mixup: a weighted mean of two rows.

Zhang et al. 2018, https://arxiv.org/abs/1710.09412: x' = w x + (1 - w) x_partner with w of Beta(alpha, alpha), alpha .2
(theirs: .1 to .4), and the labels likewise. Who the partner is: see `_mixing.py`. Normalised values are mixed.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._beta import beta_quantiles, take_quantiles
from ecgfm.data.augment._mixing import Mixing, partners
from ecgfm.data.augment.base import View
from ecgfm.errors import ConfigError


class Mixup(Mixing):
    """Mixes each row with its partner."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixing.Config):
        """Settings of mixup."""

        alpha: float = 0.2
        """Of the beta distribution of a row's own weight: small values leave one of the two nearly whole."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.01 <= self.alpha <= 1000.0:
                raise ConfigError(f"mixup: alpha must lie in 0.01..1000, got {self.alpha}")

    config: Config
    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("quantiles", beta_quantiles(config.alpha, config.alpha), persistent=False)

    def own_share(self, view: View) -> Tensor:
        """Return the row's own weight."""
        return take_quantiles(self.quantiles, view.uniform("weight"))

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the mixture."""
        own_B11 = self.own_share(view).float()[:, None, None]
        return torch.lerp(partners(signal_BLT, view), signal_BLT, own_B11)
