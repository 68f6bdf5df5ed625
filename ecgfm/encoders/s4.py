"""S4: structured state spaces over the steps of a convolutional stem.

Mehari and Strodthoff 2023, https://arxiv.org/abs/2308.15291, and Al-Masud and Strodthoff 2026,
https://arxiv.org/abs/2605.12241, which finds S4 ahead of transformers and convolutions under five objectives.
Paper says: 4 layers of width 512 with states of 8, both directions where nothing else is said and causal for CPC; a
stem of four convolutions at 240 Hz that halves the rate (kernels 3, 1, 1, 1), 2.5 s windows; 3.8 million parameters.
Code says: batch norm and ReLU after each convolution; S4's first form (diagonal and a rank of one); in a layer GELU,
dropout 0.2, a gated linear layer, and the layer norm after the sum. Ours: diagonal states (S4D, nn/s4.py), which their
authors find as good; no dropout; one step for 5 samples at 500 Hz, 100 a second as in the first of the two papers.
2,963,456 parameters causal; theirs count 3.8 million, and do not say of what.

`--encoder.kernels 1 --encoder.strides 1 --encoder.patch-samples 1` is a linear layer for a stem, at the full rate.

Shapes: B windows, N steps, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.encoders._contextual import Contextual
from ecgfm.errors import ConfigError
from ecgfm.nn.recompute import Blocks
from ecgfm.nn.s4 import Begin, S4Block


class S4(Contextual):
    """A stem, and blocks of diagonal state spaces."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Contextual.Config):
        """Settings of S4."""

        depth: int = 4
        """Blocks."""
        state: int = 8
        """Size of each feature's state, even: half as many oscillations."""
        causal: bool = False
        """Whether a step sees none after it, as CPC needs."""
        begin: Begin = "lin"
        """Frequencies that the states begin with: evenly spaced (S4D-Lin), or inversely (S4D-Inv)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.state % 2:
                raise ConfigError(f"--encoder.state {self.state} must be even, of conjugate pairs")

        def sees_later(self) -> bool:
            """Whether a step sees samples after its own."""
            return not self.causal

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks = Blocks(
            *(
                S4Block(config.width, config.state, causal=config.causal, begin=config.begin)
                for _ in range(config.depth)
            )
        )

    def context(self, latents_BND: Tensor) -> Tensor:
        """Return tokens_BND."""
        tokens_BND: Tensor = self.blocks(latents_BND)
        return tokens_BND
