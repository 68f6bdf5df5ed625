"""The transformer block of the ECG vision transformers, and how its weights begin.

timm's pre-norm block without any bias. Weights are truncated normal 0.02; the two projections that end in
the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2 (Radford et al. 2019, section 2.3).
"""

from __future__ import annotations

import math
from functools import partial

from timm.models.vision_transformer import Block
from torch import nn

NORM_EPS = 1e-6
INIT_STD = 0.02


def norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with a weight and no bias."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=False)


def blocks(width: int, depth: int, num_heads: int, mlp_ratio: float) -> nn.Sequential:
    """Return `depth` pre-norm blocks, tokens_BND -> tokens_BND, with random weights."""
    layers = nn.Sequential(
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
