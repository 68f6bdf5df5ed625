"""Vision transformer over time: one token for each 50 ms of all leads.

Weimann and Conrad 2024, https://arxiv.org/abs/2410.13867, with the details of the authors' code: one
convolution cuts the signal into patches, fixed sine-cosine positions, one register token without a
position, pre-norm blocks, no bias anywhere, no dropout and no LayerScale.

Shapes: B windows, L leads, T samples, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError, SignalError
from ecgfm.nn.blocks import INIT_STD, blocks, norm
from ecgfm.nn.positions import HeldPositions
from ecgfm.nn.tokens import take


class ViT(Encoder):
    """Patches of time, a register token, pre-norm blocks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        """Settings of the vision transformer; the defaults are ViT-S."""

        width: int = 384
        """Features of a token."""
        num_leads: int = 12
        """Leads of the signal."""
        patch_samples: int = 25
        """Samples of one token: 25 at 500 Hz are 50 ms."""
        depth: int = 8
        """Transformer blocks."""
        num_heads: int = 6
        """Attention heads; must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the perceptron over the width."""
        num_registers: int = 1
        """Tokens without a position that take part in attention and are not given out."""

        def __post_init__(self) -> None:
            for name in ("width", "num_leads", "patch_samples", "depth", "num_heads"):
                if getattr(self, name) < 1:
                    raise ConfigError(
                        f"--encoder.{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                    )
            if self.num_registers < 0 or not 0 < self.mlp_ratio < math.inf:
                raise ConfigError(
                    f"--encoder.num-registers {self.num_registers} must be 0 or more and --encoder.mlp-ratio "
                    f"{self.mlp_ratio} above 0"
                )
            if self.width % self.num_heads or self.width % 4:
                raise ConfigError(
                    f"--encoder.width {self.width} must be a multiple of 4 and of --encoder.num-heads {self.num_heads}"
                )

    config: Config
    drops_tokens: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv1d(
            config.num_leads, config.width, config.patch_samples, stride=config.patch_samples, bias=False
        )
        self.register = nn.Parameter(torch.empty(1, config.num_registers, config.width))
        self.blocks = blocks(config.width, config.depth, config.num_heads, config.mlp_ratio)
        self.norm = norm(config.width)
        self._positions = HeldPositions(config.width)
        nn.init.trunc_normal_(self.patch.weight, std=INIT_STD)
        nn.init.trunc_normal_(self.register, std=INIT_STD)

    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND, or tokens_BKD of the kept patches only.

        Args:
            signal_BLT: Normalised signal. T must be a multiple of `patch_samples`, of any length.
            keep_BK: Indices of the patches to encode; the others take no part.

        Raises:
            SignalError: Another number of leads, or a length that patches do not fill.
        """
        samples = signal_BLT.shape[-1]
        if signal_BLT.shape[1] != self.config.num_leads or samples == 0 or samples % self.config.patch_samples:
            raise SignalError(
                f"the encoder takes (batch, {self.config.num_leads}, samples) with samples a multiple of "
                f"{self.config.patch_samples}, got {tuple(signal_BLT.shape)}"
            )
        # A float32 signal for weights of 16 bits; autocast's weights are float32.
        tokens_BND = self.patch(signal_BLT.to(self.patch.weight.dtype)).transpose(1, 2)
        # The weight's type and not the tokens': under autocast the residual stream stays float32.
        positions_ND = self.positions(tokens_BND.shape[1], tokens_BND.device).to(self.patch.weight.dtype)
        tokens_BND = tokens_BND + positions_ND
        if keep_BK is not None:
            tokens_BND = take(tokens_BND, keep_BK)
        register = self.register.expand(len(tokens_BND), -1, -1).to(tokens_BND.dtype)
        tokens_BND = self.norm(self.blocks(torch.cat([register, tokens_BND], dim=1)))
        kept: Tensor = tokens_BND[:, self.config.num_registers :]
        return kept

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """Return features_BD, the mean over the tokens."""
        return tokens_BND.float().mean(dim=1)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Return positions_ND."""
        return self._positions(tokens, device)


XS = ViT.Config(width=192, depth=8, num_heads=4)
"""3.60 M parameters."""
S = ViT.Config(width=384, depth=8, num_heads=6)
"""14.28 M parameters."""
B = ViT.Config(width=768, depth=12, num_heads=12)
"""85.19 M parameters."""
