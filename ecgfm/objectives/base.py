"""What an objective must offer. The training loop knows no method: it asks for a dict of losses.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder, build_encoder

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


class Objective(nn.Module, abc.ABC):
    """Holds the encoder that is trained, and whatever the method needs beside it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of an objective; each objective nests its own."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder

    @classmethod
    @abc.abstractmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int) -> None:
        """Refuse a pair that cannot work, before anything is built.

        Raises:
            ConfigError: Why the encoder, the window and the objective do not fit.
        """

    @abc.abstractmethod
    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Return the batch with its masks or augmentations, on the device, for all rows together."""

    @abc.abstractmethod
    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return the losses of a micro-batch, as means over its windows."""

    def after_step(self, at: Progress) -> dict[str, float]:
        """Move what follows the weights (an EMA, a queue), once per OPTIMIZER step; return figures to log."""
        return {}

    @abc.abstractmethod
    def published(self) -> Encoder:
        """Return the encoder that a checkpoint publishes."""


def objective_class(config: Objective.Config) -> type[Objective]:
    """Return the class that a configuration belongs to."""
    return parts.load("ecgfm.objectives", parts.kind_of(type(config)), Objective)  # type: ignore[type-abstract]


def build_objective(config: Objective.Config, encoder: Encoder.Config, window_samples: int) -> Objective:
    """Return a new objective around a new encoder, with random weights from torch's generator.

    Raises:
        ConfigError: The encoder cannot do what the objective needs.
    """
    owner = objective_class(config)
    owner.check(config, encoder, window_samples)
    return owner(config, build_encoder(encoder))
