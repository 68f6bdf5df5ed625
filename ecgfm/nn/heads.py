"""Heads that are thrown away after pretraining, and exact arithmetic for the losses on them.

Shapes: B views, D width of the features, K prototypes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from ecgfm.nn.blocks import INIT_STD
from ecgfm.nn.projector import HeadNorm, projector


class PrototypeHead(nn.Module):
    """The head of DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294, appendix C).

    A perceptron of three layers with GELU, a narrow last layer whose vectors are brought to length 1, and their cosines
    with K prototypes of length 1 (weight norm whose factor is fixed at 1).

    Args:
        width: Of the features.
        hidden: Width of the two hidden layers.
        bottleneck: Width of the vectors.
        prototypes: K.
        norm: After the two hidden layers; the paper's head has none.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, norm: HeadNorm = "none") -> None:
        super().__init__()
        self.layers = projector(width, (hidden, hidden, bottleneck), norm=norm, activation="gelu")
        self.prototypes = Directions(bottleneck, prototypes)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return cosines_BK."""
        cosines_BK: Tensor = self.prototypes(nn.functional.normalize(self.layers(features_BD).float(), dim=-1))
        return cosines_BK


class Directions(nn.Linear):
    """A linear layer whose rows count by their direction only.

    Args:
        width: Of a row.
        count: Rows.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count, bias=False)
        nn.init.trunc_normal_(self.weight, std=INIT_STD)

    def forward(self, unit_BD: Tensor) -> Tensor:
        """Return the products of vectors with the rows at length 1, shape (B, count)."""
        weight_KD = nn.functional.normalize(self.weight.float(), dim=-1)
        return nn.functional.linear(unit_BD.to(self.weight.dtype), weight_KD.to(self.weight.dtype))


def exact(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products of float32 are float32 also under autocast."""
    # The meta device, on which operations are counted, knows no autocast.
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
