"""What an encoder must offer, whatever its architecture.

Shapes: B windows, L leads, T samples, N tokens (or feature steps), K kept tokens, D width.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ecgfm import parts


class Encoder(nn.Module, abc.ABC):
    """Turns a normalised signal into tokens, and tokens into one vector of features."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of an encoder; each encoder nests its own."""

        width: int
        """Features of a token, D."""
        num_leads: int
        """Leads that it takes, L."""
        patch_samples: int
        """Samples of one token or feature step: N = T // patch_samples."""

    config: Config
    """What it was built from."""
    drops_tokens: ClassVar[bool] = False
    """Whether it can encode only the kept tokens (`keep_BK`)."""

    @abc.abstractmethod
    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND of a normalised signal (tokens_BKD of the kept ones only, with `keep_BK`).

        Raises:
            SignalError: The signal's leads or length are not what the architecture takes.
        """

    @abc.abstractmethod
    def pool(self, tokens_BND: Tensor) -> Tensor:
        """Return features_BD."""


def build_encoder(config: Encoder.Config) -> Encoder:
    """Return a new encoder with random weights, of the class that `config` belongs to."""
    owner = parts.load("ecgfm.encoders", parts.kind_of(type(config)), Encoder)  # type: ignore[type-abstract]
    return owner(config)
