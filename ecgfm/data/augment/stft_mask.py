"""Scale the short-time Fourier coefficients at random.

Bo et al. 2022, https://arxiv.org/abs/2211.07889, "STFT": every coefficient of every lead is multiplied by a number
of Beta(5, 2). Theirs is SciPy's transform: Hann windows of 999 samples that overlap by 499, zeros beyond both ends.

torch.istft asks the device whether the windows cover everything, which makes the host wait; ours adds the two
windows over each sample by shape alone.

Shapes: B windows, L leads, T samples, F frames, N samples of a frame, H hop, Q frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from ecgfm.data.augment._beta import beta_quantiles, take_quantiles
from ecgfm.data.augment.base import Augmentation, View
from ecgfm.errors import ConfigError


class STFTMask(Augmentation):
    """Multiplies short-time Fourier coefficients by beta numbers."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the mask."""

        frame_samples: int = 999
        """Samples of a Hann window; neighbours overlap by half of them."""
        beta: tuple[float, float] = (5.0, 2.0)
        """Of the beta distribution that the factors are drawn from: mean 5/7."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.frame_samples < 4 or not all(0.01 <= value <= 1000.0 for value in self.beta):
                raise ConfigError(
                    f"stft_mask needs frame_samples of 4 or more and beta in 0.01..1000, got {self.frame_samples} "
                    f"and {self.beta}"
                )

    config: Config
    window_N: Tensor
    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("window_N", torch.hann_window(config.frame_samples), persistent=False)
        self.register_buffer("quantiles", beta_quantiles(*config.beta).float(), persistent=False)

    @classmethod
    def check(cls, config: Augmentation.Config, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse windows that are shorter than a frame."""
        assert isinstance(config, STFTMask.Config)
        if samples < config.frame_samples:
            raise ConfigError(
                f"stft_mask: frame_samples {config.frame_samples} is longer than the window's {samples} samples"
            )

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the signal of the scaled coefficients."""
        samples = signal_BLT.shape[2]
        frame = self.config.frame_samples
        hop = frame - frame // 2
        frames = -(-(samples + 2 * (frame // 2) - frame) // hop) + 1
        after = (frames - 1) * hop + frame - samples - frame // 2
        padded = nn_functional.pad(signal_BLT, (frame // 2, after))
        spectrum_BLFQ = torch.fft.rfft(padded.unfold(2, frame, hop) * self.window_N)
        uniform_BLFQ = view.many("factors", *spectrum_BLFQ.shape[1:])
        spectrum_BLFQ = spectrum_BLFQ * take_quantiles(self.quantiles, uniform_BLFQ)
        mixed_BLFN = torch.fft.irfft(spectrum_BLFQ, n=frame) * self.window_N
        weight_FN = self.window_N.square().expand(frames, frame)
        whole_BLT = _overlap_add(mixed_BLFN, hop)[..., frame // 2 :][..., :samples]
        return whole_BLT / _overlap_add(weight_FN, hop)[frame // 2 :][:samples]


def _overlap_add(frames_FN: Tensor, hop: int) -> Tensor:
    """Return the sum of frames, shape (..., F, N), each `hop` after the last, where N <= 2 hop."""
    halves = nn_functional.pad(frames_FN, (0, 2 * hop - frames_FN.shape[-1]))
    first = nn_functional.pad(halves[..., :hop], (0, 0, 0, 1))
    second = nn_functional.pad(halves[..., hop:], (0, 0, 1, 0))
    return (first + second).flatten(-2)
