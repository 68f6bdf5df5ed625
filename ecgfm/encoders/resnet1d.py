"""Residual networks over time: ResNet-18 and -34, and the one of Wang et al.

ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385, table 1) with one axis instead of two, all leads together in
the first convolution.

`RESNET18`, the default. Paper says (Bo et al. 2022, adversarial masking): ResNet-18-1D, hidden 512. Code says:
torchvision's network with kernels 7 and 3 along time, weights of fan-out, then a linear layer 512 -> 512 on the mean.
Ours: without that last layer, which a projector or a classifier follows at once, and which is no part of ResNet-18.

`WANG`. Paper says (Wang et al. 2017, https://arxiv.org/abs/1611.06455): three residual blocks of three convolutions,
kernels 8, 5, 3, of 64, 128 and 128 filters, no shortening. Code says (the PTB-XL benchmark, Strodthoff et al. 2020,
https://arxiv.org/abs/2004.13701): a stem of kernel 7 and three blocks of two convolutions, kernels 5 and 3, 128
filters everywhere, the second and third block with stride 2. Ours: the benchmark's, whose figures are the ones that
others compare with; its weights begin as torch's do, ours as ResNet's.

A step is 32 samples of ResNet-18 and 4 of Wang's: at 500 Hz, windows of 9.984 s (4992 samples) or 2.496 s fill the
former, 10 s (5000) the latter.

Shapes: B windows, C channels, D channels given out, T samples or steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.errors import ConfigError
from ecgfm.nn.convolutions import begin_, conv_norm
from ecgfm.nn.norms import Norm
from ecgfm.nn.recompute import Blocks


class ResNet1d(Convolutional):
    """Stages of residual blocks; each but the first halves the steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings of the residual network; the defaults are ResNet-18."""

        width: int = 512
        """Features of a step, those of the last stage."""
        patch_samples: int = 32
        """Samples of one step; follows from the strides."""
        layers: tuple[int, ...] = (2, 2, 2, 2)
        """Blocks of each stage."""
        doubles: bool = True
        """Whether each stage has twice the features of the one before."""
        kernels: tuple[int, int] = (3, 3)
        """Samples of a block's two convolutions."""
        stem_kernel: int = 7
        """Samples of the first convolution."""
        stem_stride: int = 2
        """Samples from one step of the first convolution to the next."""
        stem_pool: bool = True
        """Whether a maximum over 3 samples with stride 2 follows the first convolution."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.stem_stride > self.stem_kernel:
                raise ConfigError(
                    f"--encoder.stem-stride {self.stem_stride} must not be above --encoder.stem-kernel "
                    f"{self.stem_kernel}, or samples between two steps are not seen"
                )
            self.whole_part(2 ** (len(self.layers) - 1) if self.doubles else 1)

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what stem, pooling and each stage shorten the signal."""
            return self.stem_stride, 2 if self.stem_pool else 1, *(2 for _ in self.layers[1:])

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        last = len(config.layers) - 1
        widths = [config.width // 2 ** (last - stage) if config.doubles else config.width for stage in range(last + 1)]
        self.stem = conv_norm(config.num_leads, widths[0], config.stem_kernel, config.stem_stride, norm=config.norm)
        if config.stem_pool:
            self.stem.append(nn.MaxPool1d(3, stride=2, padding=1))
        self.blocks = Blocks()
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, config.layers, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(Basic(channels, width, config.kernels, stride, norm=config.norm))
                channels = width
        begin_(self, "fan_out")


class Basic(nn.Module):
    """Two convolutions and the signal that passes around them (figure 5, left).

    Args:
        channels: In.
        width: Out.
        kernels: Samples of the two.
        stride: Of the first.
        norm: After each.
    """

    def __init__(self, channels: int, width: int, kernels: tuple[int, int], stride: int, *, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(channels, width, kernels[0], stride, norm=norm),
            conv_norm(width, width, kernels[1], norm=norm, relu=False),
        )
        same = stride == 1 and channels == width
        self.skip = nn.Identity() if same else conv_norm(channels, width, 1, stride, norm=norm, relu=False)

    def forward(self, map_BCT: Tensor) -> Tensor:
        """Return map_BDT, T divided by the stride."""
        out_BDT: Tensor = self.skip(map_BCT) + self.residual(map_BCT)
        return out_BDT.relu()


RESNET18 = ResNet1d.Config()
"""3.85 M parameters."""
RESNET34 = ResNet1d.Config(layers=(3, 4, 6, 3))
"""7.22 M parameters."""
WANG = ResNet1d.Config(
    width=128, patch_samples=4, layers=(1, 1, 1), doubles=False, kernels=(5, 3), stem_stride=1, stem_pool=False
)
"""0.44 M parameters."""
