"""What an objective must offer. The training loop knows no method: it asks for a dict of losses.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel, view_panels
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import ConfigError
from ecgfm.kernels import ema
from ecgfm.schedules import warmup_cosine

Losses = dict[str, Tensor]
"""`loss` is the one that is minimised; the others are logged. Scalars, on the device."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the run stands."""

    step: int
    """Finished optimizer steps."""
    schedule_steps: int
    """Length of the schedules."""
    measure: bool = False
    """Whether costly figures are wanted at this step."""


@dataclass(frozen=True, kw_only=True)
class OwnOptim:
    """AdamW of a part that does not follow --optim, such as an adversary."""

    lr: float = 1e-4
    """Learning rate; of a cosine the highest one."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The same learning rate over the whole run, or a linear warm-up and a cosine over --optim.schedule-steps, with the
    three settings below in place of those of --optim."""
    lr_start: float = 1e-6
    """Learning rate of the first step of a warm-up."""
    lr_end: float = 1e-6
    """Learning rate that a cosine ends at."""
    warmup_share: float = 0.1
    """Share of the schedule that a warm-up takes."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW's moving averages."""
    eps: float = 1e-8
    """Of AdamW."""
    weight_decay: float = 0.0
    """On the weights of linear layers and convolutions only."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_start", "lr_end", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} of a part must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share of a part must be in 0..1 and below 1, got {self.warmup_share}")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.eps < 1:
            raise ConfigError(f"betas {self.betas} of a part must be in 0..1 and its eps {self.eps} above 0")

    def rate(self, at: Progress) -> float:
        """Return the learning rate of the step that `at` begins."""
        if self.schedule == "constant":
            return self.lr
        warmup_steps = round(self.warmup_share * at.schedule_steps)
        return warmup_cosine(at.step, at.schedule_steps, warmup_steps, self.lr_start, self.lr, self.lr_end)


class Objective(nn.Module, abc.ABC):
    """Holds the encoder that is trained, and whatever the method needs beside it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of an objective; each objective nests its own."""

    takes_counts: ClassVar[bool] = False
    """Whether it takes a batch whose `signal_BLT` are still counts, which its encoder cuts into patches."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    @classmethod
    @abc.abstractmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse a pair that cannot work, before anything is built.

        Raises:
            ConfigError: Why the encoder, the window and the objective do not fit.
        """

    @classmethod
    def labels(cls, config: Objective.Config) -> tuple[str, ...]:
        """Return the labels, as `scheme:code`, whose columns the batch must have."""
        return ()

    @classmethod
    def asks_patients(cls, config: Objective.Config) -> bool:
        """Tell whether the batch must say whose each window is."""
        return False

    def own_optim(self) -> tuple[tuple[nn.Module, OwnOptim], ...]:
        """Return parts of this objective that are trained with settings of their own."""
        return ()

    @abc.abstractmethod
    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Return the batch with its masks or augmentations, on the device, for all rows together."""

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return what a picture shows of a prepared batch: each window, and its views. Nothing here is for training."""
        seen = self.views(batch, draws)
        views = [] if seen.views_BVLT is None else view_panels(seen.views_BVLT)
        return (Panel(title="window", signal_BLT=batch.signal_BLT), *views)

    @abc.abstractmethod
    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return the losses of a micro-batch, as means over its windows."""

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return modules whose weights are moving averages, each with the alike module that it follows.

        Whoever trains moves them, once per OPTIMIZER step and in float32: see `move_averages_`. Only parameters are
        averaged; the follower's are not trained, and the followed ones all are.
        """
        return ()

    def momentum(self, at: Progress) -> float:
        """Return the share of itself that an average keeps in the step that `at` begins."""
        raise NotImplementedError(f"{type(self).__name__} has moving averages and must say their momentum")

    def after_step(self, at: Progress) -> dict[str, float]:
        """Move a queue or the like, once per OPTIMIZER step, after the averages; return figures to log."""
        return {}

    @abc.abstractmethod
    def published(self) -> Encoder:
        """Return the encoder that a checkpoint publishes."""


@torch.no_grad()
def lerp_(targets: list[Tensor], sources: list[Tensor], momentum: float, *, copies: list[Tensor] | None = None) -> None:
    """Move each target towards its source: momentum * target + (1 - momentum) * source, in float32.

    In bfloat16 a momentum of 0.9995 would move nothing at all.

    Args:
        targets: float32.
        sources: float32.
        momentum: From 0.5 to 1.
        copies: Where the moved targets are written too, rounded to the type of these.
    """
    assert all(weight.dtype == torch.float32 for weight in targets + sources), "the moving average needs float32"
    ema.move_(targets, sources, 1.0 - momentum, copies)


def move_averages_(objective: Objective, at: Progress) -> dict[str, float]:
    """Move the averages of an objective that no engine holds; return figures to log."""
    pairs = objective.averages()
    if not pairs:
        return {}
    momentum = objective.momentum(at)
    for target, source in pairs:
        lerp_(list(target.parameters()), list(source.parameters()), momentum)
    return {"momentum": momentum}


def objective_class(config: Objective.Config) -> type[Objective]:
    """Return the class that a configuration belongs to."""
    return parts.load("ecgfm.objectives", parts.kind_of(type(config)), Objective)  # type: ignore[type-abstract]


def build_objective(
    config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float
) -> Objective:
    """Return a new objective around a new encoder, with random weights from torch's generator.

    Raises:
        ConfigError: The encoder cannot do what the objective needs.
    """
    owner = objective_class(config)
    owner.check(config, encoder, window_samples, rate_hz)
    return owner(config, build_encoder(encoder))
