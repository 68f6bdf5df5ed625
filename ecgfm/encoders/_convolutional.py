"""What the convolutional encoders share: a stem, blocks, feature steps instead of tokens, the mean as their pool.

Padding is such that a signal of N * patch_samples samples gives exactly N steps; other lengths are refused. A step sees
more than its own samples, so none can be left out: `drops_tokens` is False. Concatenated maximum and mean, as in the
heads of some papers, belong to a classifier's head and not here.

Shapes: B windows, L leads, T samples, N feature steps, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders.base import Encoder, check_signal
from ecgfm.errors import ConfigError
from ecgfm.nn.norms import Norm
from ecgfm.nn.recompute import Blocks


class Convolutional(Encoder):
    """A stem and blocks over time."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        """Settings that all of them have."""

        num_leads: int = 12
        """Leads of the signal."""
        norm: Norm = "batch"
        """batch: over the rows of all ranks; rank-batch: of each rank by itself, rank 0's averages are published;
        group: each record by itself."""

        def __post_init__(self) -> None:
            for name, value in vars(self).items():
                values = value if isinstance(value, tuple) else (value,)
                if not values:
                    raise ConfigError(f"{flag(name)} needs at least one value")
                if any(isinstance(number, int) and not isinstance(number, bool) and number < 1 for number in values):
                    raise ConfigError(f"{flag(name)} must be at least 1, got {value}")
                if "kernel" in name and any(number % 2 == 0 for number in values):
                    raise ConfigError(f"{flag(name)} must be odd, to be centred on a sample, got {value}")
            if self.patch_samples != (wanted := math.prod(self.strides_of_all())):
                raise ConfigError(
                    f"--encoder.patch-samples {self.patch_samples} must be {wanted}, to which the strides multiply"
                )

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what each part of the encoder shortens the signal."""
            raise NotImplementedError

        def whole_part(self, of: int) -> int:
            """Return the width over `of`.

            Raises:
                ConfigError: It is no multiple of that.
            """
            if self.width % of:
                raise ConfigError(f"--encoder.width {self.width} must be a multiple of {of}")
            return self.width // of

    config: Config
    stem: nn.Module
    """From the signal to the first features."""
    blocks: Blocks
    """What activation checkpointing may take one by one."""

    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND, the feature steps.

        Args:
            signal_BLT: Normalised signal. T must be a multiple of `patch_samples`, of any length.
            keep_BK: Must be None.

        Raises:
            SignalError: Another number of leads, or a length that steps do not fill.
        """
        assert keep_BK is None, "a convolution over time cannot leave steps out"
        check_signal(self.config, signal_BLT)
        tokens_BDN: Tensor = self.blocks(self.stem(signal_BLT.to(next(self.parameters()).dtype)))
        return tokens_BDN.transpose(1, 2)


def flag(name: str) -> str:
    """Return the option of a setting."""
    return f"--encoder.{name.replace('_', '-')}"
