"""What the vision transformers share: registers, positions, blocks, and how their tokens become features.

Shapes: B windows, L leads, T samples, S steps, N tokens, K kept tokens, R registers, E extra tokens, V values of a
patch, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional

from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.kernels.assemble import assemble
from ecgfm.nn.blocks import INIT_STD, blocks, norm
from ecgfm.nn.positions import HeldPositions, rotary_turns

Pooling = Literal["mean", "register", "attentive"]


class Patch(nn.Conv1d):
    """The convolution that cuts a signal into patches and maps each, (B, L, T) to (B, D, S), without bias.

    Of patches that are cut already it is a product, which has no work with those that nobody wants.

    Args:
        num_leads: L.
        width: D.
        patch_samples: Of one lead in a patch.
    """

    def __init__(self, num_leads: int, width: int, patch_samples: int) -> None:
        super().__init__(num_leads, width, patch_samples, stride=patch_samples, bias=False)

    def forward(self, signal: Tensor, *, cut: bool = False) -> Tensor:
        """Return tokens_BDS of signal_BLT; or tokens_BKD of patches_BKV, those being cut."""
        return functional.linear(signal, self.weight.flatten(1)) if cut else super().forward(signal)


class Transformer(Encoder):
    """Patches, registers beside them, pre-norm blocks.

    Args:
        config: Settings.
        patch: From samples to tokens, without bias.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        """Settings that all of them have; the defaults are ViT-S."""

        width: int = 384
        """Features of a token."""
        num_leads: int = 12
        """Leads of the signal."""
        depth: int = 8
        """Transformer blocks."""
        num_heads: int = 6
        """Attention heads; must divide the width."""
        mlp_ratio: float = 4.0
        """Hidden width of the perceptron over the width."""
        num_registers: int = 1
        """Tokens without a position that take part in attention and are not given out."""
        positions: Literal["sincos", "rotary"] = "sincos"
        """How a token's place in time is told: fixed sines and cosines are added to it, or the queries and keys of each
        block are turned by it (rotary), so that attention sees how far apart two tokens are."""
        pooling: Pooling = "mean"
        """What features are made of: the mean over the tokens; the first register (register); or attention of one
        learned query (attentive). The latter two are for objectives whose loss passes through the features, such as
        dino, moco or simclr, and are refused by others."""

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
            if self.positions == "rotary" and self.width // self.num_heads % 2:
                raise ConfigError(
                    f"--encoder.positions rotary turns pairs of features: --encoder.width {self.width} over "
                    f"--encoder.num-heads {self.num_heads} must be even, got {self.width // self.num_heads}"
                )
            if self.pooling == "register" and not self.num_registers:
                raise ConfigError("--encoder.pooling register needs --encoder.num-registers of at least 1")

    config: Config
    drops_tokens: ClassVar[bool] = True
    takes_counts: ClassVar[bool] = True

    def __init__(self, config: Config, patch: nn.Conv1d | nn.Linear, patch_std: float = INIT_STD) -> None:
        super().__init__()
        self.config = config
        self.patch = patch
        rotary = config.positions == "rotary"
        registers = torch.empty(1, config.num_registers, config.width)
        self.register = nn.Parameter(registers) if config.num_registers else None
        self.blocks = blocks(config.width, config.depth, config.num_heads, config.mlp_ratio, rotary=rotary)
        self.norm = norm(config.width)
        self._positions = HeldPositions(config.width // config.num_heads if rotary else config.width)
        nn.init.trunc_normal_(self.patch.weight, std=patch_std)
        if self.register is not None:
            nn.init.trunc_normal_(self.register, std=INIT_STD)
        # The one-query cross-attention under which Weimann and Conrad 2024 read a frozen encoder, as timm has it: a
        # projection, and a perceptron around which it passes, after the attention.
        self.pooler = (
            AttentionPoolLatent(
                config.width, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio, norm_layer=nn.LayerNorm
            )
            if config.pooling == "attentive"
            else None
        )

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """Return features_BD, float32, of the tokens alone: the mean, or what the attentive pool makes of them."""
        assert self.config.pooling != "register", "the register is not among the tokens: see encode"
        if self.pooler is None:
            return super().pool(tokens_BND)
        # The weights' type: those of 16 bits take no other.
        features_BD: Tensor = self.pooler(tokens_BND.to(self.pooler.latent.dtype))
        return features_BD.float()

    def encode(self, signal_BLT: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens_BND of a normalised signal, and features_BD; see `Encoder.encode`."""
        if self.config.pooling != "register":
            return super().encode(signal_BLT)
        both: Tensor = self(signal_BLT, registers=True)
        return both[:, self.config.num_registers :], both[:, 0].float()

    def _attend(
        self,
        tokens_BKD: Tensor,
        step_BK: Tensor,
        steps: int,
        *,
        position_ND: Tensor | None = None,
        keep_BK: Tensor | None = None,
        beside: Sequence[Tensor] = (),
        sees_B1NN: Tensor | None = None,
        registers: bool,
    ) -> Tensor:
        """Return tokens_BKD after the blocks, or with the registers before them.

        Args:
            tokens_BKD: Without their positions.
            step_BK: Of each token, of one row or of B.
            steps: S.
            position_ND: What is added to the token at each place, if anything.
            keep_BK: Places of the tokens; all of them by default.
            beside: Tokens without a step that stand after the registers, (1, n, D) each.
            sees_B1NN: Which of registers, what stands beside, and tokens see each other.
            registers: Whether these are given out too.
        """
        extra = [*([] if self.register is None else [self.register]), *beside]
        others: list[Tensor | None] = [sees_B1NN]
        num_beside = sum(each.shape[1] for each in extra)
        if self.config.positions == "rotary":
            # What has no step stands at 0, where nothing is turned.
            step_BN = functional.pad(step_BK, (num_beside, 0))
            others = [rotary_turns(self._positions(steps, tokens_BKD.device), step_BN), sees_B1NN]
        if position_ND is None:
            extra = [each.expand(len(tokens_BKD), -1, -1).to(tokens_BKD.dtype) for each in extra]
            stream_BND = torch.cat([*extra, tokens_BKD], dim=1)
        else:
            stream_BND = assemble(
                tokens_BKD,
                position_ND,
                keep_BK,
                before_ED=torch.cat(extra, dim=1)[0] if extra else None,
                # The weight's type and not the tokens': under autocast the residual stream stays float32.
                dtype=torch.promote_types(tokens_BKD.dtype, position_ND.dtype),
            )
        mixed_BND: Tensor = self.norm(self.blocks(stream_BND, *others))
        tokens_BKD = mixed_BND[:, num_beside:]
        return torch.cat([mixed_BND[:, : self.config.num_registers], tokens_BKD], dim=1) if registers else tokens_BKD
