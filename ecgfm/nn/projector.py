"""Heads of linear layers, which an objective compares features through and nobody publishes.

SimCLR, BYOL, MoCo v3, Barlow Twins, VICReg and others differ in the number of layers, in the norm between them and in
what ends them, and in nothing else. Weights begin as torch's do (uniform, of fan-in), as in those papers' code.

Shapes: B rows, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ecgfm.nn.norms import channel_norm

HeadNorm = Literal["none", "layer", "batch", "rank-batch", "group"]
"""After each hidden layer: nothing, a layer norm, or one of nn/norms.py."""


class Head(nn.Sequential):
    """Layers one after another, which take features of any type."""

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return features of the last layer, in the weights' type, autocast's or float32; without layers, what came."""
        if not len(self):
            return features_BD
        first = self[0]
        assert isinstance(first, nn.Linear)
        # An encoder pools in float32, and weights of 16 bits take no other type.
        features_BD = features_BD.float() if isinstance(first, Exact) else features_BD.to(first.weight.dtype)
        for layer in self:
            features_BD = layer(features_BD)
        return features_BD


class Exact(nn.Linear):
    """A linear layer that computes in float32 also with weights of 16 bits.

    Features of a batch are alike, at least at first, and batch norm stretches what little tells them apart: of values
    with 8 bits it would stretch their rounding.
    """

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the next features, float32 where the weights are not and autocast does not say otherwise."""
        if self.weight.dtype == torch.float32:
            return super().forward(features_BD)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(features_BD.float(), self.weight.float(), bias)


def projector(
    width: int,
    widths: tuple[int, ...],
    *,
    norm: HeadNorm = "none",
    last_norm: HeadNorm = "none",
    last_affine: bool = False,
    last_bias: bool = True,
    activation: Literal["relu", "gelu"] = "relu",
) -> Head:
    """Return linear layers features_BD -> (B, widths[-1]), with norm and activation after all but the last.

    Args:
        width: Features in.
        widths: Features out of each layer; with none, the head gives back what it gets.
        norm: After each hidden layer. Layers before a norm have no bias, which it would take off again.
        last_norm: After the last layer.
        last_affine: Whether that norm has a scale and a shift to learn.
        last_bias: Whether the last layer has a bias, where no norm follows.
        activation: After each hidden layer.
    """
    layers = Head()
    kinds = {norm, last_norm}
    linear = Exact if kinds & {"batch", "rank-batch"} and not kinds & {"layer", "group"} else nn.Linear
    for number, after in enumerate(widths):
        last = number == len(widths) - 1
        kind = last_norm if last else norm
        layers.append(linear(width, after, bias=kind == "none" and (last_bias or not last)))
        if kind != "none":
            layers.append(_norm(kind, after, affine=last_affine or not last))
        if not last:
            layers.append(nn.ReLU() if activation == "relu" else nn.GELU())
        width = after
    return layers


def _norm(kind: HeadNorm, width: int, *, affine: bool) -> nn.Module:
    assert kind != "none"
    norm: nn.Module = nn.LayerNorm(width) if kind == "layer" else channel_norm(kind, width)
    if not affine:
        # Buffers: a weight that is never trained is no weight, and no moving average's either.
        for name, value in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
            delattr(norm, name)
            norm.register_buffer(name, value)
    return norm
