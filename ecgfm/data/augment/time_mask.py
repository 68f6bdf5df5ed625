"""Hide single samples.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, "mask": each sample of each lead is set to zero with a chance of
.2.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment._hiding import Hiding
from ecgfm.data.augment.base import View


class TimeMask(Hiding):
    """Hides samples, each by its own draw."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Hiding.Config):
        """Settings of the mask: `share` is the chance of each sample."""

    def hidden(self, leads: int, samples: int, view: View) -> Tensor:
        """Return single samples."""
        return view.many("hidden", leads, samples) < self.config.share
