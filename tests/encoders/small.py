"""Every encoder of the folder, small enough for a test; a new one is built at its own size until it is here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ecgfm import parts
from ecgfm.encoders.base import Encoder, build_encoder

LEADS = ("II", "V1", "aVF")
SIZES: dict[str, dict[str, Any]] = {
    "inception1d": {"width": 16, "bottleneck": 4, "depth": 3},
    "lstm": {"width": 16},
    "resnet1d": {"width": 32},
    "s4": {"width": 16, "depth": 2},
    "ts_cnn": {"width": 16, "channels": (4, 4, 4, 4, 4, 4), "spatial": 8},
    "u_resnet": {"width": 16, "widths": (4, 6, 8, 8)},
    "vit": {"width": 16, "depth": 2, "num_heads": 2},
    "vit_leadtime": {"width": 16, "depth": 2, "num_heads": 2},
    "xresnet1d": {"width": 32},
}


def small(name: str, **options: Any) -> Encoder.Config:
    """Return the settings of an encoder of a few leads."""
    kind = parts.load("ecgfm.encoders", name, Encoder)  # type: ignore[type-abstract]
    return replace(kind.Config(), **{"num_leads": len(LEADS), **SIZES.get(name, {}), **options})  # type: ignore[call-arg]


def stirred(settings: Encoder.Config) -> Encoder:
    """Return an encoder in training whose weights and running averages are far from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(settings)
        with torch.no_grad():
            for name, values in [*encoder.named_parameters(), *encoder.named_buffers()]:
                if name.endswith("running_var"):
                    values.copy_(0.5 + torch.rand(values.shape))
                elif values.is_floating_point():
                    values.add_(0.1 * torch.randn(values.shape))
    return encoder.train()
