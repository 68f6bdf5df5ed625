"""The transformer block of the ECG vision transformers, and how its weights begin.

timm's pre-norm block without any bias. Weights are truncated normal 0.02; the two projections that end in
the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2 (Radford et al. 2019, section 2.3).

Shapes: B windows, N tokens, H heads, E features of a head, D = H * E width.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from ecgfm.nn.recompute import Blocks

NORM_EPS = 1e-6
INIT_STD = 0.02


def attend(query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, sees_B1NN: Tensor | None = None) -> Tensor:
    """Return mixed_BHNE, softmax(q k^T / sqrt(E)) v: torch's, except for 16 bits on a CPU, where it is slow.

    There its backward pass takes two to three times that of the three operations written out, and more than float32's
    (tools/bench_step.py measures both). These keep a matrix of N x N for each head; torch's keeps none.

    Args:
        query_BHNE: What asks.
        key_BHNE: What is asked.
        value_BHNE: What is given.
        sees_B1NN: bool, which tokens (last) each token attends to; all of them by default.
    """
    if query_BHNE.device.type != "cpu" or query_BHNE.dtype == torch.float32:
        return functional.scaled_dot_product_attention(query_BHNE, key_BHNE, value_BHNE, attn_mask=sees_B1NN)
    scores_BHNN = (query_BHNE * query_BHNE.shape[-1] ** -0.5) @ key_BHNE.transpose(-1, -2)
    if sees_B1NN is not None:
        scores_BHNN = scores_BHNN.masked_fill(~sees_B1NN, -math.inf)
    mixed_BHNE: Tensor = scores_BHNN.softmax(dim=-1) @ value_BHNE
    return mixed_BHNE


class PlainAttention(Attention):
    """timm's attention, through `attend`."""

    def forward(self, tokens_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return mixed_BND; the names are timm's, whose block calls it."""
        assert not is_causal
        if not self.fused_attn:  # as whoever wants to see its probabilities has set
            out_BND: Tensor = super().forward(tokens_BND, attn_mask=attn_mask)
            return out_BND
        return _mixed(self, tokens_BND, attn_mask)


class RotaryAttention(AttentionRope):
    """timm's rotary attention, through `attend`."""

    def forward(  # type: ignore[override]
        self, tokens_BND: Tensor, rope: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Return mixed_BND; the names are timm's."""
        if not self.fused_attn:
            out_BND: Tensor = super().forward(tokens_BND, rope=rope, attn_mask=attn_mask)
            return out_BND
        return _mixed(self, tokens_BND, attn_mask, rope)


class PlainBlock(Block):
    """A block whose tokens attend to each other wherever they are.

    Args:
        width: Features of a token.
        num_heads: Attention heads.
        options: Of the block.
    """

    def __init__(self, width: int, num_heads: int, **options: Any) -> None:
        super().__init__(width, num_heads, **options)
        with torch.random.fork_rng(devices=[]):  # made a second time, which must move no later weight
            self.attn = PlainAttention(width, num_heads, qkv_bias=False, proj_bias=False)


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
        self.attn = RotaryAttention(
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


def _mixed(layer: Any, tokens_BND: Tensor, sees_B1NN: Tensor | None, turn_B1NF: Tensor | None = None) -> Tensor:
    """Return what a layer of timm's attention gives, without the norms and the dropout that ours do not have."""
    rows, tokens, width = tokens_BND.shape
    qkv = layer.qkv(tokens_BND).reshape(rows, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    query_BHNE, key_BHNE, value_BHNE = qkv.unbind(0)
    if turn_B1NF is not None:
        query_BHNE, key_BHNE = (
            apply_rot_embed_cat(each, turn_B1NF, half=True).type_as(value_BHNE) for each in (query_BHNE, key_BHNE)
        )
    mixed_BHNE = attend(query_BHNE, key_BHNE, value_BHNE, sees_B1NN)
    out_BND: Tensor = layer.proj(mixed_BHNE.transpose(1, 2).reshape(rows, tokens, width))
    return out_BND


def norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with a weight and no bias."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=False)


def blocks(width: int, depth: int, num_heads: int, mlp_ratio: float, *, rotary: bool = False) -> Blocks:
    """Return `depth` pre-norm blocks, tokens_BND -> tokens_BND, with random weights.

    Each takes besides a mask, bool of shape (B, 1, N, N): which tokens (last) each token attends to; all of them
    without it. Rotary ones take turn_B1NF before it; see `RotaryBlock`.
    """
    kind = RotaryBlock if rotary else PlainBlock
    layers = Blocks(
        *(
            kind(
                width,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=False,
                proj_bias=False,
                norm_layer=partial(nn.LayerNorm, eps=NORM_EPS, bias=False),
            )
            for _ in range(depth)
        )
    )
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            residual = name.endswith(("attn.proj", "mlp.fc2"))
            nn.init.trunc_normal_(module.weight, std=INIT_STD / math.sqrt(2 * depth) if residual else INIT_STD)
    return layers
