"""Temporal-spatial network: convolutions over time within each lead, then one across the leads.

Paper says (Nakamoto et al. 2021, MoCo for left ventricular dysfunction): 12 x 5000 samples; six temporal blocks of 1xK
convolutions within each lead, one spatial block 12x1, a fully connected layer to 128. It names neither K nor channels
nor pooling, and no code is public. The design is that of Attia et al. 2019
(https://doi.org/10.1038/s41591-018-0240-2), which others have written again with kernels 5, 5, 5, 3, 3, 3, channels 16,
16, 32, 32, 64, 64, norm, ReLU and maxima over 2, 2, 4, 2, 2, 4 after each, together 256 samples. Ours: these kernels
and channels, and 128 channels across leads; the maxima are over 2, 1, 5, 1, 5 and 5, together 250 samples, half a
second at 500 Hz, so that windows of 10 s, 5 s and 2.5 s are filled; and the fully connected layer acts on each step,
where theirs takes all steps flattened and so one length only. The mean over steps and a linear layer may change places,
so `pool` gives that layer of the mean features, one vector of 128 as in the paper.

Shapes: B windows, L leads, T samples, C channels, N feature steps, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.errors import ConfigError
from ecgfm.nn.convolutions import begin_
from ecgfm.nn.norms import Norm, channel_norm
from ecgfm.nn.recompute import Blocks


class TSCNN(Convolutional):
    """Temporal blocks that all leads share, a spatial block, a fully connected layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings of the temporal-spatial network."""

        width: int = 128
        """Features of a step, of the fully connected layer."""
        patch_samples: int = 250
        """Samples of one step: the product of the pools."""
        channels: tuple[int, ...] = (16, 16, 32, 32, 64, 64)
        """Of the temporal blocks."""
        kernels: tuple[int, ...] = (5, 5, 5, 3, 3, 3)
        """Samples of each temporal block's convolution."""
        pools: tuple[int, ...] = (2, 1, 5, 1, 5, 5)
        """Samples of which each temporal block keeps the maximum."""
        spatial: int = 128
        """Channels of the block across the leads."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not len(self.channels) == len(self.kernels) == len(self.pools) > 0:
                raise ConfigError(
                    "--encoder.channels, --encoder.kernels and --encoder.pools need one value for each temporal block, "
                    f"got {len(self.channels)}, {len(self.kernels)} and {len(self.pools)}"
                )

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what each block shortens the signal."""
            return self.pools

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Unflatten(1, (1, config.num_leads))  # leads become an axis beside the channels
        self.blocks = Blocks()
        before = 1
        for channels, kernel, pool in zip(config.channels, config.kernels, config.pools, strict=True):
            self.blocks.append(_block(before, channels, (1, kernel), norm=config.norm).append(nn.MaxPool2d((1, pool))))
            before = channels
        self.blocks.append(
            _block(before, config.spatial, (config.num_leads, 1), norm=config.norm).append(nn.Flatten(2))
        )
        begin_(self, "fan_in")
        self.project = nn.Linear(config.spatial, config.width)

    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND, the fully connected layer's steps; see `Convolutional.forward`."""
        tokens_BND: Tensor = self.project(super().forward(signal_BLT, keep_BK))
        return tokens_BND


def _block(before: int, channels: int, kernel: tuple[int, int], *, norm: Norm) -> nn.Sequential:
    """Return a convolution over time that keeps its length, or one across all leads, with norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, channels, kernel, padding=(0, kernel[1] // 2), bias=False),
        channel_norm(norm, channels),
        nn.ReLU(),
    )
