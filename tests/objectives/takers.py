"""Small encoders, and the first of them that an objective takes."""

from __future__ import annotations

import pytest

from ecgfm import parts
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.s4 import S4
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, objective_class

ENCODERS: tuple[Encoder.Config, ...] = (
    ViT.Config(width=16, num_leads=12, patch_samples=25, depth=1, num_heads=2),
    UResNet.Config(width=16, num_leads=12, patch_samples=25, widths=(8, 8), strides=(5, 5)),
    S4.Config(width=16, patch_samples=25, kernels=(25,), strides=(25,), norm="group", depth=1, causal=True),
)


def encoder_for(settings: Objective.Config, window_samples: int, rate_hz: float) -> Encoder.Config:
    """Return the settings of the first encoder that an objective takes."""
    for encoder in ENCODERS:
        try:
            objective_class(settings).check(settings, encoder, window_samples, rate_hz)
        except ConfigError:
            continue
        return encoder
    pytest.fail(f"{parts.kind_of(type(settings))} takes none of the encoders: add one that it takes")
