"""Masks that hide a share of each lead.

Where a lead is hidden its mean is put, which is 0 after normalisation; so in all masks.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, check_share


class Hiding(Augmentation):
    """Hides samples of each lead, or the same ones in all leads."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings that these masks share."""

        share: float = 0.2
        """Share of the window that is hidden."""
        per_lead: bool = True
        """Draw for each lead; else for all leads together."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_share(self, "share")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with zeros."""
        leads, samples = signal_BLT.shape[1:]
        return signal_BLT.masked_fill(self.hidden(leads if self.config.per_lead else 1, samples, view), 0.0)

    @abc.abstractmethod
    def hidden(self, leads: int, samples: int, view: View) -> Tensor:
        """Return hidden_BLT, bool, of so many leads (L)."""
