"""Disturbances that are added: a few sources in time, each with a gain in each lead.

Shapes: B windows, L leads, E leads that are drawn for, S sources, T samples.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ecgfm.data.augment._electrodes import leads_from_independent
from ecgfm.data.augment.base import Augmentation, View
from ecgfm.leads import LEADS


class Additive(Augmentation):
    """Adds gains times sources: one matrix product over the batch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings that all disturbances share."""

        limb_leads_follow: bool = True
        """Draw for I, II and V1 to V6, and let the other four follow from I and II as in a real recording
        (Oh et al. 2022; Bo et al. 2022 draw for each lead). Fewer or more than twelve leads are each drawn for."""

    config: Config
    weights_LE: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("weights_LE", leads_from_independent(), persistent=False)

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal with the disturbance."""
        leads, samples = signal_BLT.shape[1:]
        follow = self.config.limb_leads_follow and leads == len(LEADS)
        gain_mv_BES, source_BST = self.disturbance(self.weights_LE.shape[1] if follow else leads, samples, view)
        gain_mv_BLS = self.weights_LE @ gain_mv_BES if follow else gain_mv_BES
        gain_BLS = gain_mv_BLS / view.std_mv_BL[:, :, None]
        return torch.baddbmm(signal_BLT, gain_BLS.float(), source_BST.float())

    @abc.abstractmethod
    def disturbance(self, leads: int, samples: int, view: View) -> tuple[Tensor, Tensor]:
        """Return gain_mv_BES in millivolt, float64, for so many leads (E), and source_BST."""


def seconds(samples: int, view: View) -> Tensor:
    """Return the times of the samples, shape (T,), float64."""
    return torch.arange(samples, device=view.std_mv_BL.device, dtype=torch.float64) / view.rate_hz
