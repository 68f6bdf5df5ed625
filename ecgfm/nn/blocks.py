"""The transformer block of the ECG vision transformers, and how its weights begin.

timm's pre-norm block without any bias. Weights are truncated normal 0.02; the two projections that end in
the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2 (Radford et al. 2019, section 2.3).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from timm.layers.attention import AttentionRope
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ecgfm.nn.recompute import Blocks

NORM_EPS = 1e-6
INIT_STD = 0.02


class RotaryBlock(Block):
    """A block whose queries and keys are turned by the place of their token, each pair of features at its own speed.

    Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.2: what a token gives to another depends on how far
    apart they are. Feature i of a head is turned together with feature i + E / 2, as in LLaMA's code.

    Args:
        width: Features of a token.
        num_heads: Attention heads; E = width / num_heads features of each, even.
        options: Of the block.
    """

    def __init__(self, width: int, num_heads: int, **options: Any) -> None:
        super().__init__(width, num_heads, **options)
        self.attn = AttentionRope(
            width, num_heads, qkv_bias=False, proj_bias=False, num_prefix_tokens=0, rotate_half=True
        )

    def forward(  # type: ignore[override]  # timm's takes no places
        self, tokens_BND: Tensor, turn_B1NF: Tensor, sees_B1NN: Tensor | None = None
    ) -> Tensor:
        """Return tokens_BND.

        Args:
            tokens_BND: What goes in.
            turn_B1NF: Of each token, from `positions.rotary_turns`.
            sees_B1NN: bool, which tokens (last) each token attends to; all of them by default.
        """
        mixed_BND: Tensor = self.attn(self.norm1(tokens_BND), rope=turn_B1NF, attn_mask=sees_B1NN)
        tokens_BND = tokens_BND + mixed_BND
        out_BND: Tensor = tokens_BND + self.mlp(self.norm2(tokens_BND))
        return out_BND


def norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with a weight and no bias."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=False)


def blocks(width: int, depth: int, num_heads: int, mlp_ratio: float, *, rotary: bool = False) -> Blocks:
    """Return `depth` pre-norm blocks, tokens_BND -> tokens_BND, with random weights.

    Each takes besides a mask, bool of shape (B, 1, N, N): which tokens (last) each token attends to; all of them
    without it. Rotary ones take turn_B1NF before it; see `RotaryBlock`.
    """
    kind = RotaryBlock if rotary else Block
    layers = Blocks(
        *(
            kind(
                width,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=False,
                proj_bias=False,
                norm_layer=partial(nn.LayerNorm, eps=NORM_EPS, bias=False),  # type: ignore[arg-type]
            )
            for _ in range(depth)
        )
    )
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            residual = name.endswith(("attn.proj", "mlp.fc2"))
            nn.init.trunc_normal_(module.weight, std=INIT_STD / math.sqrt(2 * depth) if residual else INIT_STD)
    return layers
