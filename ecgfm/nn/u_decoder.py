"""The way back from a U-ResNet's levels to a signal.

Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, section 2: widen in time by a transposed convolution whose
kernel is its stride, join the encoder's map of that length, convolve. The convolutions are the encoder's residual
blocks, so that both halves look alike (Gedon et al. 2021).

Shapes: B windows, L leads, T samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ecgfm.nn.convolutions import PreActivation, begin_
from ecgfm.nn.norms import Norm, channel_norm


class UDecoder(nn.Module):
    """Joins maps from the shortest to the longest, and ends in a signal.

    Args:
        widths: Channels of the levels, from the longest to the shortest.
        strides: By what each level is shorter than the one before; one fewer than widths.
        num_leads: Leads of the signal that comes out.
        kernel: Samples of a convolution.
        norm: Of the blocks.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], num_leads: int, *, kernel: int = 17, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        assert len(widths) == len(strides) + 1, (widths, strides)
        self.widen = nn.ModuleList()
        self.join = nn.ModuleList()
        for level in reversed(range(len(strides))):
            deep, flat, stride = widths[level + 1], widths[level], strides[level]
            self.widen.append(nn.ConvTranspose1d(deep, flat, stride, stride=stride, bias=False))
            self.join.append(PreActivation(2 * flat, flat, kernel, norm=norm))
        self.last = nn.Sequential(channel_norm(norm, widths[0]), nn.ReLU(), nn.Conv1d(widths[0], num_leads, 1))
        begin_(self, "fan_in")
        for widen in self.widen:
            # Each output is the sum over channels at one sample: the stride is not part of what comes in.
            assert isinstance(widen, nn.ConvTranspose1d)
            nn.init.normal_(widen.weight, std=widen.in_channels**-0.5)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return signal_BLT, as long as the first level.

        Args:
            levels: Maps (B, C, steps) from the longest to the shortest, as `UResNet.levels` gives them.
        """
        assert len(levels) == len(self.join) + 1, len(levels)
        *before, map_BCT = levels
        for widen, join, level in zip(self.widen, self.join, reversed(before), strict=True):
            map_BCT = join(torch.cat([widen(map_BCT), level], dim=1))
        signal_BLT: Tensor = self.last(map_BCT)
        return signal_BLT
