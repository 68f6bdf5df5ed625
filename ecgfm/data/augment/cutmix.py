"""Cutmix: a segment of time comes from another row.

Yun et al. 2019, https://arxiv.org/abs/1905.04899, in one dimension: the segment's share of the window is uniform in
0..1 (alpha 1), its place random within the window, and the labels mix by that share, to half a sample. Who the partner
is: see `_mixing.py`. Normalised values are exchanged.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._mixing import Mixing, partners
from ecgfm.data.augment._segment import inside_segment
from ecgfm.data.augment.base import View, check_share


class Cutmix(Mixing):
    """Puts a segment of its partner into each row."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixing.Config):
        """Settings of cutmix."""

        share: tuple[float, float] = (0.0, 1.0)
        """Bounds of the segment's share of the window."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def own_share(self, view: View) -> Tensor:
        """Return what is left of the row: a share of the time; the segment is rounded to samples."""
        return 1.0 - view.between("share", self.config.share)

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the rows with their partners' segments."""
        samples = signal_BLT.shape[2]
        length_B1 = ((1.0 - self.own_share(view)) * samples).round()[:, None]
        inside_B1T = inside_segment(length_B1, samples, view)[:, None]
        return torch.where(inside_B1T, partners(signal_BLT, view), signal_BLT)
