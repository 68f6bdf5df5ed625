"""A U-Net over time that says where to hide a signal, and the sign that makes it an adversary.

Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, over one axis, as Bo et al. 2022,
https://arxiv.org/abs/2211.07889, use it: four halvings of the time and four doublings. Each level is two convolutions
of 3 samples with norm and ReLU; the way down shortens by a maximum of two, the way up by a transposed convolution, and
the maps of one length are joined. Code says: widths of 512, 1024, 1536 and 2048. Ours: any; lengths that the halvings
do not divide are filled up with zeros, each lead's mean, and cut again.

Shapes: B windows, L leads, T samples, N masks, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgfm.nn.convolutions import begin_, conv_norm
from ecgfm.nn.norms import Norm


class Masker(nn.Module):
    """Turns a signal into values of N masks, of any size, for each sample.

    Args:
        num_leads: Of the signal.
        masks: N.
        widths: Channels of the levels, the longest first. The time is halved once for each of them, and the last one
            is the width of what is below too.
        norm: After each convolution.
    """

    def __init__(self, num_leads: int, masks: int, widths: Sequence[int], *, norm: Norm = "batch") -> None:
        super().__init__()
        self.down, self.widen, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = num_leads
        for width in widths:
            self.down.append(_level(channels, width, norm))
            channels = width
        self.bottom = _level(channels, channels, norm)
        for width in reversed(widths):
            self.widen.append(nn.ConvTranspose1d(channels, width, 2, stride=2, bias=False))
            self.join.append(_level(2 * width, width, norm))
            channels = width
        # A bias: each mask may be larger or smaller as a whole.
        self.last = nn.Conv1d(channels, masks, 1)
        begin_(self, "fan_in")

    def forward(self, signal_BLT: Tensor) -> Tensor:
        """Return values_BNT, float32."""
        samples = signal_BLT.shape[2]
        map_BCT = functional.pad(signal_BLT, (0, -samples % 2 ** len(self.down)))
        # Weights of 16 bits take no other signal.
        map_BCT = map_BCT.to(self.last.weight.dtype)
        levels = []
        for level in self.down:
            levels.append(level(map_BCT))
            map_BCT = functional.max_pool1d(levels[-1], 2)
        map_BCT = self.bottom(map_BCT)
        for widen, join in zip(self.widen, self.join, strict=True):
            map_BCT = join(torch.cat([widen(map_BCT), levels.pop()], dim=1))
        values: Tensor = self.last(map_BCT)
        return values[..., :samples].float()


def _level(channels: int, width: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(conv_norm(channels, width, 3, norm=norm), conv_norm(width, width, 3, norm=norm))


def reverse_gradient(values: Tensor) -> Tensor:
    """Return the same values; what comes before gets the gradient of what comes after with the other sign.

    Ganin and Lempitsky 2015, https://arxiv.org/abs/1409.7495, section 3: whatever made the values climbs where the
    rest descends.
    """
    reversed_values: Tensor = _Reverse.apply(values)
    return reversed_values


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]
