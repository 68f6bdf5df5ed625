"""What an encoder must offer, whatever its architecture.

Shapes: B windows, L leads, T samples, S steps, N tokens (or feature steps), K kept tokens, D width.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ecgfm import parts
from ecgfm.errors import ConfigError, SignalError
from ecgfm.kernels.ingest import Counts


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
        """Samples of one token or feature step: S = T // patch_samples steps."""
        leads_apart: ClassVar[bool] = False
        """Whether each lead has tokens of its own, one lead's after another's: N = L * S tokens, and otherwise S."""

        def tokens(self, samples: int) -> int:
            """Return N, the tokens of a signal of so many samples."""
            return samples // self.patch_samples * (self.num_leads if self.leads_apart else 1)

    config: Config
    """What it was built from."""
    drops_tokens: ClassVar[bool] = False
    """Whether it can encode only the kept tokens (`keep_BK`)."""
    takes_counts: ClassVar[bool] = False
    """Whether it takes `ecgfm.kernels.ingest.Counts` in the place of a normalised signal."""

    @abc.abstractmethod
    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND of a normalised signal (tokens_BKD of the kept ones only, with `keep_BK`).

        Raises:
            SignalError: The signal's leads or length are not what the architecture takes.
        """

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """Return features_BD, float32: the mean over the tokens, or what the encoder has in its place."""
        return tokens_BND.float().mean(dim=1)

    def encode(self, signal_BLT: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens_BND of a normalised signal, and features_BD, for which a pool may need more than the tokens.

        Raises:
            SignalError: The signal's leads or length are not what the architecture takes.
        """
        tokens_BND: Tensor = self(signal_BLT)
        return tokens_BND, self.pool(tokens_BND)


def build_encoder(config: Encoder.Config) -> Encoder:
    """Return a new encoder with random weights, of the class that `config` belongs to."""
    owner = parts.load("ecgfm.encoders", parts.kind_of(type(config)), Encoder)  # type: ignore[type-abstract]
    return owner(config)


def check_signal(config: Encoder.Config, signal_BLT: Tensor | Counts) -> None:
    """Refuse a signal with other leads than the encoder's, or of a length that its steps do not fill.

    Raises:
        SignalError: With the shape, and the lengths next to it that would do.
    """
    samples = signal_BLT.shape[-1]
    if signal_BLT.shape[1] != config.num_leads or samples == 0 or samples % config.patch_samples:
        raise SignalError(
            f"the encoder takes (batch, {config.num_leads}, samples) with samples a multiple of "
            f"{config.patch_samples}, such as {_next_to(samples, config.patch_samples)}, got {tuple(signal_BLT.shape)}"
        )


def check_window(config: Encoder.Config, window_samples: int) -> None:
    """Refuse windows that the encoder's steps do not fill, before anything is built.

    Raises:
        ConfigError: With the lengths next to it that would do.
    """
    if window_samples == 0 or window_samples % config.patch_samples:
        raise ConfigError(
            f"windows of {window_samples} samples are not filled by the steps of {config.patch_samples} that "
            f"{parts.kind_of(type(config))} makes; change --data.window-s to "
            f"{_next_to(window_samples, config.patch_samples)} samples"
        )


def _next_to(samples: int, step: int) -> str:
    below = samples - samples % step
    return " or ".join(str(length) for length in (below, below + step) if length)
