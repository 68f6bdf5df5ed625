"""Vision transformer over time: one token for each 50 ms of all leads.

Weimann and Conrad 2024, https://arxiv.org/abs/2410.13867, with the details of the authors' code: one
convolution cuts the signal into patches, fixed sine-cosine positions, one register token without a
position, pre-norm blocks, no bias anywhere, no dropout and no LayerScale. Rotary positions and other pools than the
mean are options of ours.

Shapes: B windows, L leads, T samples, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.encoders._transformer import Patch, Transformer
from ecgfm.encoders.base import check_signal
from ecgfm.kernels.ingest import Counts, patches, product_dtype


class ViT(Transformer):
    """Patches of time, a register token, pre-norm blocks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config):
        """Settings of the vision transformer; the defaults are ViT-S."""

        patch_samples: int = 25
        """Samples of one token: 25 at 500 Hz are 50 ms."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config, Patch(config.num_leads, config.width, config.patch_samples))

    def forward(self, signal_BLT: Tensor | Counts, keep_BK: Tensor | None = None, *, registers: bool = False) -> Tensor:
        """Return tokens_BND, or tokens_BKD of the kept patches only.

        Args:
            signal_BLT: Normalised signal, or counts and how they become one. T must be a multiple of `patch_samples`,
                of any length.
            keep_BK: Indices of the patches to encode; the others take no part.
            registers: Whether the registers are given out too, before the tokens.

        Raises:
            SignalError: Another number of leads, or a length that patches do not fill.
        """
        check_signal(self.config, signal_BLT)
        size, weight = self.config.patch_samples, self.patch.weight
        steps, device = signal_BLT.shape[2] // size, signal_BLT.device
        if isinstance(signal_BLT, Counts) or keep_BK is not None:
            dtype = product_dtype(weight)
            tokens_BKD = self.patch(patches(signal_BLT, size, keep_BK, leads_apart=False, dtype=dtype), cut=True)
        else:
            # A float32 signal for weights of 16 bits; autocast's weights are float32.
            tokens_BKD = self.patch(signal_BLT.to(weight.dtype)).transpose(1, 2)
        fixed = self.config.positions == "sincos"
        return self._attend(
            tokens_BKD,
            torch.arange(steps, device=device)[None] if keep_BK is None else keep_BK,
            steps,
            position_ND=self._positions(steps, device).to(weight.dtype) if fixed else None,
            keep_BK=keep_BK,
            registers=registers,
        )


XS = ViT.Config(width=192, depth=8, num_heads=4)
"""3.60 M parameters."""
S = ViT.Config(width=384, depth=8, num_heads=6)
"""14.28 M parameters."""
B = ViT.Config(width=768, depth=12, num_heads=12)
"""85.19 M parameters."""
