"""LSTM over the steps of a convolutional stem: the encoder of CPC for ECG.

Mehari and Strodthoff 2022, https://doi.org/10.1016/j.compbiomed.2021.105114. Paper says: four layers of 512, two LSTM
layers of 512, at 100 Hz. Code says: the stem's convolutions see one sample each (kernels 1, strides 1) in the runs
that are reported; batch norm and ReLU. Ours: the first convolution takes 5 samples at 500 Hz to one step, so that there
are 100 a second as well.

LSTM weights have no weight decay here, which is for linear layers and convolutions only. Activation checkpointing
finds no blocks in it.

Shapes: B windows, N steps, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ecgfm.encoders._contextual import Contextual


class LSTM(Contextual):
    """A stem, and a causal LSTM."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Contextual.Config):
        """Settings of the LSTM."""

        depth: int = 2
        """Layers of the LSTM."""

        def sees_later(self) -> bool:
            """Whether a step sees samples after its own: never."""
            return False

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.recurrent = nn.LSTM(config.width, config.width, num_layers=config.depth, batch_first=True)

    def context(self, latents_BND: Tensor) -> Tensor:
        """Return tokens_BND."""
        tokens_BND: Tensor
        tokens_BND, _ = self.recurrent(latents_BND)
        return tokens_BND
