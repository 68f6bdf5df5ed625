"""InceptionTime: convolutions of several lengths side by side, at the signal's own rate.

Ismail Fawaz et al. 2020, https://arxiv.org/abs/1909.04939, section 3.1. Paper says: six modules, each a bottleneck of
32 followed by kernels 10, 20 and 40 beside a maximum over 3, 32 filters each; a linear shortcut around every third.
Code says (the PTB-XL benchmark, Strodthoff et al. 2020, https://arxiv.org/abs/2004.13701): kernels 39, 19 and 9, which
are centred; a bottleneck also on the first module. Ours: the benchmark's; one network and not the paper's ensemble of
five; no bias before a norm.

There is no stride: a step is one sample, any length is taken, and a window of 10 s at 500 Hz gives 5000 steps. An
objective that works on single steps pays for that.

Shapes: B windows, C channels, D channels given out, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.errors import ConfigError
from ecgfm.nn.convolutions import begin_, conv, conv_norm
from ecgfm.nn.norms import Norm, channel_norm
from ecgfm.nn.recompute import Blocks

MODULES = 3
"""Modules that one shortcut passes around."""


class Inception1d(Convolutional):
    """Groups of three inception modules, each with a shortcut."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings of InceptionTime."""

        width: int = 128
        """Features of a step: the kernels' and the maximum's, the same number of each."""
        patch_samples: int = 1
        """Samples of one step: nothing shortens the signal."""
        depth: int = 6
        """Modules; a multiple of 3."""
        bottleneck: int = 32
        """Features that the kernels see."""
        kernels: tuple[int, ...] = (39, 19, 9)
        """Samples of the convolutions side by side."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.whole_part(len(self.kernels) + 1)
            if self.depth % MODULES:
                raise ConfigError(f"--encoder.depth {self.depth} must be a multiple of {MODULES}")

        def strides_of_all(self) -> tuple[int, ...]:
            """Return that nothing shortens the signal."""
            return (1,)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Identity()
        self.blocks = Blocks(
            *(Group(config, config.width if group else config.num_leads) for group in range(config.depth // MODULES))
        )
        begin_(self, "fan_in")


class Group(nn.Module):
    """Three inception modules and a linear shortcut around them.

    Args:
        config: Of the network.
        channels: In; the width comes out.
    """

    def __init__(self, config: Inception1d.Config, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(
                Inception(
                    config.width if module else channels, config.width, config.bottleneck, config.kernels, config.norm
                )
                for module in range(MODULES)
            )
        )
        self.skip = conv_norm(channels, config.width, 1, norm=config.norm, relu=False)

    def forward(self, map_BCT: Tensor) -> Tensor:
        """Return map_BDT."""
        out_BDT: Tensor = self.skip(map_BCT) + self.residual(map_BCT)
        return out_BDT.relu()


class Inception(nn.Module):
    """Convolutions of several lengths on a bottleneck, beside a maximum, then norm and ReLU."""

    def __init__(self, channels: int, width: int, bottleneck: int, kernels: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        share = width // (len(kernels) + 1)
        self.bottleneck = conv(channels, bottleneck, 1)
        self.convs = nn.ModuleList(conv(bottleneck, share, kernel) for kernel in kernels)
        self.pooled = nn.Sequential(nn.MaxPool1d(3, stride=1, padding=1), conv(channels, share, 1))
        self.norm = channel_norm(norm, width)

    def forward(self, map_BCT: Tensor) -> Tensor:
        """Return map_BDT."""
        narrow_BCT = self.bottleneck(map_BCT)
        side_by_side = [convolution(narrow_BCT) for convolution in self.convs]
        joined: Tensor = self.norm(torch.cat([*side_by_side, self.pooled(map_BCT)], dim=1))
        return joined.relu()


INCEPTION = Inception1d.Config()
"""0.47 M parameters."""
