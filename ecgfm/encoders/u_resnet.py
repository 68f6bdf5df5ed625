"""U-ResNet: the residual encoder of masked-segment reconstruction, and the maps that its decoder takes.

Gedon et al. 2021, "First steps towards self-supervised pretraining of the 12-lead ECG".
Paper says: a residual encoder and decoder with U-Net skips; the encoder is what is fine-tuned. Code says (nothing of
this paper is public; the same group's ECG network, Lima et al. 2021, https://doi.org/10.1038/s41467-021-25351-7):
4096 samples at 400 Hz, kernels of 17, filters 64/128/196/256/320 at 4096/1024/256/64/16 steps, norm and ReLU before
each convolution but the first, a maximum where the signal passes by, dropout 0.8. Ours: the same blocks without
dropout, which belongs to the supervised training there; and by default strides of 5, 5, 5 and 2 instead of 4, 4, 4
and 4, so that a step is 250 samples, half a second at 500 Hz, and windows of 10 s (5000 samples, 20 steps), 5 s and
2.5 s are filled. `PAPER` has theirs.

`nn.u_decoder.UDecoder` turns `levels` back into a signal; the encoder alone is published.

Shapes: B windows, L leads, T samples, C channels, N feature steps, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.encoders.base import check_signal
from ecgfm.errors import ConfigError
from ecgfm.nn.convolutions import PreActivation, begin_, conv
from ecgfm.nn.norms import channel_norm
from ecgfm.nn.recompute import Blocks


class UResNet(Convolutional):
    """A stem at the signal's rate and residual blocks, each but the first shorter and wider than the one before."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings of the U-ResNet's encoder."""

        width: int = 320
        """Features of a step, those of the last block."""
        patch_samples: int = 250
        """Samples of one step: the product of the strides."""
        widths: tuple[int, ...] = (64, 128, 196, 256)
        """Features of the blocks before the last; the first of them does not shorten the signal."""
        strides: tuple[int, ...] = (5, 5, 5, 2)
        """By what each block after the first shortens the signal."""
        kernel: int = 17
        """Samples of a convolution."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.widths) != len(self.strides):
                raise ConfigError(
                    f"--encoder.strides needs one for each of the {len(self.widths)} blocks after the first, got "
                    f"{self.strides}"
                )
            if max(self.strides, default=1) > self.kernel:
                raise ConfigError(
                    f"--encoder.strides {self.strides} must not be above --encoder.kernel {self.kernel}, or samples "
                    "between two steps are not seen"
                )

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what each block shortens the signal."""
            return self.strides

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        kernel, norm = config.kernel, config.norm
        widths = (*config.widths, config.width)
        self.stem = nn.Sequential(conv(config.num_leads, widths[0], kernel), channel_norm(norm, widths[0]))
        self.blocks = Blocks(PreActivation(widths[0], widths[0], kernel, norm=norm, first=True))
        for channels, width, stride in zip(widths, widths[1:], config.strides, strict=False):
            self.blocks.append(PreActivation(channels, width, kernel, stride, norm=norm))
        self.last = nn.Sequential(channel_norm(norm, config.width), nn.ReLU())
        begin_(self, "fan_in")

    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND, the last of the levels; see `levels`."""
        assert keep_BK is None, "a convolution over time cannot leave steps out"
        return self.levels(signal_BLT)[-1].transpose(1, 2)

    def levels(self, signal_BLT: Tensor) -> list[Tensor]:
        """Return the map of each block, (B, C, steps), from T steps to N; the last one normalised, as tokens are.

        Args:
            signal_BLT: Normalised signal. T must be a multiple of `patch_samples`, of any length.

        Raises:
            SignalError: Another number of leads, or a length that steps do not fill.
        """
        check_signal(self.config, signal_BLT)
        *maps, last = self.blocks.each(self.stem(signal_BLT.to(next(self.parameters()).dtype)))
        return [*maps, self.last(last)]


PAPER = UResNet.Config(patch_samples=256, strides=(4, 4, 4, 4))
"""The nearest published strides: 4096 samples to 16 steps. 6.92 M parameters, as with any strides."""
