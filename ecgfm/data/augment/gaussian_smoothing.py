"""Gaussian smoothing, of another strength in each row.

Nakamoto et al. 2021 name it among five transforms and give no magnitude; ours: a standard deviation of 2 to 10 ms,
which leaves 100 to 20 Hz at -6 dB or more (the attenuation is exp(-(2 pi f sd)^2 / 2)).

The kernel is sampled, cut at 4 standard deviations of the strongest and normalised; beyond its ends the signal
goes on with its last value. The product is done in the frequency domain: all rows at once, each with its own kernel.

Shapes: B windows, L leads, T samples, K taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from ecgfm.data.augment.base import Augmentation, View, check_positive
from ecgfm.errors import ConfigError


class GaussianSmoothing(Augmentation):
    """Convolves each lead with a Gaussian."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the smoothing."""

        sd_ms: tuple[float, float] = (2.0, 10.0)
        """Bounds of the Gaussian's standard deviation in milliseconds."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "sd_ms")
            if self.sd_ms[0] == 0.0:
                raise ConfigError(f"gaussian_smoothing: sd_ms must be above 0, got {self.sd_ms}; use a smaller p")

    config: Config

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the smoothed signal."""
        samples = signal_BLT.shape[2]
        reach = math.ceil(4.0 * self.config.sd_ms[1] * 1e-3 * view.rate_hz)
        sd_B1 = view.between("strength", self.config.sd_ms, 1) * 1e-3 * view.rate_hz
        tap_K = torch.arange(-reach, reach + 1, device=signal_BLT.device)
        kernel_BK = torch.exp(-0.5 * (tap_K / sd_B1).square())
        kernel_BK = (kernel_BK / kernel_BK.sum(dim=1, keepdim=True)).float()
        length = _round_length(samples + 2 * reach)
        spectrum_BLQ = torch.fft.rfft(nn_functional.pad(signal_BLT, (reach, reach), mode="replicate"), n=length)
        response_B1Q = torch.fft.rfft(kernel_BK, n=length)[:, None]
        smooth_BLT: Tensor = torch.fft.irfft(spectrum_BLQ * response_B1Q, n=length)
        return smooth_BLT[..., 2 * reach : 2 * reach + samples]


def _round_length(least: int) -> int:
    """Return the next length that has no prime factor above 5, for which the Fourier transform is fast."""
    length = least
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
