"""XResNet over time: a residual network with the bag of tricks.

He et al. 2018, https://arxiv.org/abs/1812.01187, section 4: the stem is three small convolutions (ResNet-C), a block
shortens the signal in its middle convolution (ResNet-B), what passes by is averaged and not skipped (ResNet-D), and
the last norm of each block begins at zero, so that the network begins shallow.

Paper says (Strodthoff et al. 2020, https://arxiv.org/abs/2004.13701, the PTB-XL benchmark; Verma et al. 2021 use it
too): xresnet1d50 and 101 are among the best on PTB-XL. Code says: kernels of 5, stem of 32, 32 and 64 channels, and
every stage 64 channels wide inside and 256 outside where the original doubles; windows of 2.5 s; a head on
concatenated maximum and mean. Ours: the same, down to the weights' start, without the head.

A step is 32 samples: at 500 Hz, windows of 9.984 s (4992 samples) or 2.496 s (1248) fill it.

Shapes: B windows, C channels, D channels given out, T samples or steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.nn.convolutions import begin_, conv_norm
from ecgfm.nn.norms import Norm
from ecgfm.nn.recompute import Blocks

EXPANSION = 4
"""Features outside of a block over those inside."""


class XResNet1d(Convolutional):
    """A stem of three convolutions, stages of bottlenecks; each stage but the first halves the steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings of XResNet; the defaults are xresnet1d50."""

        width: int = 256
        """Features of a step, the same in every stage."""
        patch_samples: int = 32
        """Samples of one step; follows from the number of stages."""
        layers: tuple[int, ...] = (3, 4, 6, 3)
        """Blocks of each stage."""
        kernel: int = 5
        """Samples of a convolution, in the stem and in the blocks."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.whole_part(2 * EXPANSION)

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what stem, pooling and each stage shorten the signal."""
            return 2, 2, *(2 for _ in self.layers[1:])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        kernel, norm = config.kernel, config.norm
        inside = config.width // EXPANSION
        self.stem = nn.Sequential(
            conv_norm(config.num_leads, inside // 2, kernel, 2, norm=norm),
            conv_norm(inside // 2, inside // 2, kernel, norm=norm),
            conv_norm(inside // 2, inside, kernel, norm=norm),
            nn.MaxPool1d(3, stride=2, padding=1),
        )
        self.blocks = Blocks()
        channels = inside
        for stage, depth in enumerate(config.layers):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(Bottleneck(channels, config.width, kernel, stride, norm=norm))
                channels = config.width
        begin_(self, "fan_in")


class Bottleneck(nn.Module):
    """A convolution between two that narrow and widen, and the signal that passes around them.

    Args:
        channels: In.
        width: Out; inside it is a fourth.
        kernel: Samples of the middle convolution.
        stride: Of the middle convolution.
        norm: After each.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int, *, norm: Norm) -> None:
        super().__init__()
        inside = width // EXPANSION
        widen = conv_norm(inside, width, 1, norm=norm, relu=False)
        nn.init.zeros_(widen[-1].get_parameter("weight"))
        self.residual = nn.Sequential(
            conv_norm(channels, inside, 1, norm=norm),
            conv_norm(inside, inside, kernel, stride, norm=norm),
            widen,
        )
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.append(nn.AvgPool1d(stride))
        if channels != width:
            self.skip.append(conv_norm(channels, width, 1, norm=norm, relu=False))

    def forward(self, map_BCT: Tensor) -> Tensor:
        """Return map_BDT, T divided by the stride."""
        out_BDT: Tensor = self.skip(map_BCT) + self.residual(map_BCT)
        return out_BDT.relu()


X50 = XResNet1d.Config()
"""xresnet1d50: 0.89 M parameters."""
X101 = XResNet1d.Config(layers=(3, 4, 23, 3))
"""xresnet1d101: 1.80 M parameters."""
