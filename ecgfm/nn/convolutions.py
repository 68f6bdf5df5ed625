"""Convolutions over time that keep, or exactly divide, a length, and how their weights begin.

Shapes: B windows, C channels, D channels given out, T samples or steps.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ecgfm.nn.norms import Norm, channel_norm


def conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv1d:
    """Return a convolution without bias that makes T / stride steps of a T which stride divides.

    Args:
        channels: In.
        width: Out.
        kernel: Odd, and not below the stride, so that every sample is seen.
        stride: Samples from one step to the next.
    """
    assert kernel == 1 or (kernel % 2 and kernel >= stride), (kernel, stride)
    return nn.Conv1d(channels, width, kernel, stride=stride, padding=max(0, (kernel - stride + 1) // 2), bias=False)


def conv_norm(
    channels: int, width: int, kernel: int, stride: int = 1, *, norm: Norm, relu: bool = True
) -> nn.Sequential:
    """Return a centred convolution (padding of half the kernel), its norm, and ReLU if asked for."""
    layers = [
        nn.Conv1d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        channel_norm(norm, width),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def begin_(module: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw all convolutions as He et al. 2015 (https://arxiv.org/abs/1502.01852, section 2.2) do before ReLU."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class PreActivation(nn.Module):
    """Two convolutions around which the signal passes, with norm and ReLU before each of them.

    He et al. 2016, https://arxiv.org/abs/1603.05027, figure 4 e. The second one shortens the signal, and a maximum
    over as many samples does where it passes by.

    Args:
        channels: In.
        width: Out.
        kernel: Odd, and not below the stride.
        stride: By what the signal is shortened.
        norm: Of the two.
        first: Whether norm and ReLU before the first convolution are left out: the stem has just normalised.
    """

    def __init__(
        self, channels: int, width: int, kernel: int, stride: int = 1, *, norm: Norm, first: bool = False
    ) -> None:
        super().__init__()
        self.before = nn.Identity() if first else nn.Sequential(channel_norm(norm, channels), nn.ReLU())
        self.conv1 = conv(channels, width, kernel)
        self.between = nn.Sequential(channel_norm(norm, width), nn.ReLU())
        self.conv2 = conv(width, width, kernel, stride)
        pool = nn.MaxPool1d(stride) if stride > 1 else nn.Identity()
        self.skip = nn.Sequential(pool, conv(channels, width, 1) if channels != width else nn.Identity())

    def forward(self, map_BCT: Tensor) -> Tensor:
        """Return map_BDT, T divided by the stride."""
        out_BDT: Tensor = self.skip(map_BCT) + self.conv2(self.between(self.conv1(self.before(map_BCT))))
        return out_BDT
