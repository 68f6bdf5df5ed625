"""The transformer block of the ECG vision transformers, and how its weights begin.

timm's pre-norm block without any bias. Weights are truncated normal 0.02; the two projections that end in
the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2 (Radford et al. 2019, section 2.3).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORM_EPS = 1e-6
INIT_STD = 0.02


class Blocks(nn.Sequential):
    """Blocks one after another, which may forget what is within each and compute it again for the backward pass."""

    recomputed: bool = False
    """Whether they do. What lies between two blocks is kept."""

    def forward(self, tokens_BND: Tensor, sees_B1NN: Tensor | None = None) -> Tensor:
        """Return tokens_BND.

        Args:
            tokens_BND: What goes in.
            sees_B1NN: bool, which tokens (last) each token attends to; all of them by default.
        """
        inputs = () if sees_B1NN is None else (sees_B1NN,)
        for block in self:
            if self.recomputed and torch.is_grad_enabled():
                tokens_BND = checkpoint(block, tokens_BND, *inputs, use_reentrant=False)
            else:
                tokens_BND = block(tokens_BND, *inputs)
        return tokens_BND


def norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with a weight and no bias."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=False)


def blocks(width: int, depth: int, num_heads: int, mlp_ratio: float) -> Blocks:
    """Return `depth` pre-norm blocks, tokens_BND -> tokens_BND, with random weights."""
    layers = Blocks(
        *(
            Block(
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
