"""What encoders share that have a stem of convolutions and, over its steps, a context: the two halves of CPC.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 2.2. The stem turns some samples into a latent; the
context turns the latents up to a step into that step's features. Mehari and Strodthoff 2022
(https://doi.org/10.1016/j.compbiomed.2021.105114) take four layers of 512, with norm and ReLU, at 100 steps a second.

Where the context is causal the stem is too: step n sees samples up to its own last one, n * patch_samples +
patch_samples - 1. In training a batch norm (`--encoder.norm batch`, the papers') still shares mean and variance.

Shapes: B windows, L leads, T samples, C channels, N steps, D width.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._convolutional import Convolutional
from ecgfm.encoders.base import check_signal
from ecgfm.errors import ConfigError
from ecgfm.nn.convolutions import begin_
from ecgfm.nn.norms import channel_norm


class Contextual(Convolutional):
    """A stem of convolutions, and a context over its steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Convolutional.Config):
        """Settings that all of them have."""

        width: int = 512
        """Features of a step, of the stem and of the context."""
        patch_samples: int = 5
        """Samples of one step: 5 at 500 Hz are 10 ms. The product of the strides."""
        kernels: tuple[int, ...] = (5, 1, 1, 1)
        """Samples of each of the stem's convolutions; a causal one sees those before its step, and else both sides."""
        strides: tuple[int, ...] = (5, 1, 1, 1)
        """By what each of them shortens the signal."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.kernels) != len(self.strides) or any(
                kernel < stride for kernel, stride in zip(self.kernels, self.strides, strict=True)
            ):
                raise ConfigError(
                    f"--encoder.kernels {self.kernels} needs one for each of --encoder.strides {self.strides}, none "
                    "below its stride, so that no sample goes unseen"
                )

        def strides_of_all(self) -> tuple[int, ...]:
            """Return by what each convolution shortens the signal."""
            return self.strides

        def sees_later(self) -> bool:
            """Whether a step sees samples after its own."""
            raise NotImplementedError

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential()
        before = config.num_leads
        for kernel, stride in zip(config.kernels, config.strides, strict=True):
            beyond = kernel - stride
            later = beyond // 2 if config.sees_later() else 0
            if beyond:
                self.stem.append(nn.ConstantPad1d((beyond - later, later), 0.0))
            self.stem.append(nn.Conv1d(before, config.width, kernel, stride=stride, bias=False))
            self.stem.append(channel_norm(config.norm, config.width)).append(nn.ReLU())
            before = config.width
        begin_(self.stem, "fan_in")

    def forward(self, signal_BLT: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Return tokens_BND, the context of each step; see `Convolutional.forward`."""
        assert keep_BK is None, "a recurrence over time cannot leave steps out"
        return self.context(self.latents(signal_BLT))

    def latents(self, signal_BLT: Tensor) -> Tensor:
        """Return latents_BND, the stem's steps.

        Raises:
            SignalError: Another number of leads, or a length that steps do not fill.
        """
        check_signal(self.config, signal_BLT)
        weight = next(self.stem.parameters())
        # A float32 signal for weights of 16 bits; autocast's weights are float32.
        latents_BDN: Tensor = self.stem(signal_BLT.to(weight.dtype))
        return latents_BDN.transpose(1, 2)

    @abc.abstractmethod
    def context(self, latents_BND: Tensor) -> Tensor:
        """Return tokens_BND, of each step and those before it; of those after it too, where it is not causal."""
