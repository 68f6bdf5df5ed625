"""Where the ventricles depolarise, and how much of that masks hide: do learned masks seek the QRS complexes?

The detector is that of Pan and Tompkins 1985 (https://doi.org/10.1109/TBME.1985.325532) in its outline, for whole
windows and all leads at once: slopes between 5 and 20 Hz, squared, added up over the leads (each over its own mean, so
that a large lead does not speak for all), smoothed over 60 ms; local maxima above a share of what the window's beats
reach; of two within 250 ms, the refractory time, the higher one. A complex is as long as the smoothed slopes stay above
a share of their maximum.

The settings were chosen on the Lobachevsky University database (https://doi.org/10.13026/eegm-h675), against what its
cardiologists marked as QRS in at least half of the leads: between the first and the last mark of its 200 recordings all
1,827 complexes are found, beside 5 that are none (4 of them in one recording), and of the samples 0.94 (Dice's
coefficient) are the same. Good for pictures and tables; it is no annotator.

Shapes: B windows, L leads, T samples, N masks, F frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BAND_HZ = (5.0, 20.0)
SMOOTH_S = 0.06
REFRACTORY_S = 0.25
LEAST_PEAK = 0.25
"""Share of the usual beat's maximum above which a maximum is a beat."""
EXTENT = 0.16
"""Share of a beat's maximum above which a sample belongs to it."""
FLAT = 1e-6
"""Share of the largest lead's slopes below which a lead counts for nothing."""
LONGEST_S = 0.1
"""How far a complex may reach on either side of its maximum."""


@dataclass(frozen=True, kw_only=True)
class QRSShare:
    """How much masks hide, in the QRS complexes and of everything."""

    qrs_BN: Tensor
    """Share of the QRS samples that each mask hides; NaN for a window without a complex."""
    all_BN: Tensor
    """Share of all samples that each mask hides: what `qrs_BN` is for a mask that knows no QRS."""


def qrs_share(mask_BNT: Tensor, signal_BLT: Tensor, rate_hz: float) -> QRSShare:
    """Return the share of the QRS samples that each mask hides, and its share of all samples.

    Args:
        mask_BNT: 1 where a mask hides, 0 where it does not, or between; N masks of all leads, or one for each lead.
        signal_BLT: In any unit, normalised or not.
        rate_hz: Samples a second.
    """
    qrs_B1T = qrs_of(signal_BLT, rate_hz)[:, None]
    mask_BNT = mask_BNT.to(torch.float64)
    inside_BN = (mask_BNT * qrs_B1T).sum(dim=2) / qrs_B1T.sum(dim=2)
    return QRSShare(qrs_BN=inside_BN, all_BN=mask_BNT.mean(dim=2))


def qrs_of(signal_BLT: Tensor, rate_hz: float) -> Tensor:
    """Return qrs_BT, bool: which samples are of a QRS complex.

    Args:
        signal_BLT: In any unit, normalised or not; a lead that is flat counts for nothing.
        rate_hz: Samples a second.
    """
    energy_BT = _slopes(signal_BLT.to(torch.float64), rate_hz)
    peak_BT = _peaks(energy_BT, rate_hz)
    reach = round(LONGEST_S * rate_hz)
    # The maximum of each sample's nearest beat, 0 where none is near; a beat's samples hang together by the smoothing.
    near_BT = _highest(torch.where(peak_BT, energy_BT, 0.0), reach)
    return (near_BT > 0) & (energy_BT > EXTENT * near_BT)


def _slopes(signal_BLT: Tensor, rate_hz: float) -> Tensor:
    """Return energy_BT: the squared slopes of the band, over all leads, smoothed."""
    samples = signal_BLT.shape[2]
    # Mirrored at both ends, which a spectrum would join to a step.
    pad = min(round(rate_hz), samples - 1)
    padded = torch.nn.functional.pad(signal_BLT, (pad, pad), mode="reflect")
    frequency_F = torch.fft.rfftfreq(padded.shape[2], 1.0 / rate_hz, dtype=torch.float64, device=signal_BLT.device)
    low, high = BAND_HZ
    # Butterworth's magnitudes, of order 2 on either side, and the derivative.
    gain_F = (
        frequency_F / (1 + (frequency_F / high) ** 4).sqrt() / (1 + (low / frequency_F.clamp(min=1e-9)) ** 4).sqrt()
    )
    slope_BLT = torch.fft.irfft(torch.fft.rfft(padded) * (2j * math.pi * gain_F), n=padded.shape[2])[..., pad:-pad]
    size_BL1 = slope_BLT.square().mean(dim=2, keepdim=True).sqrt()
    # A flat lead has the rounding of its offset, which is not to be weighed like the others.
    flat_BL1 = size_BL1 <= FLAT * size_BL1.amax(dim=1, keepdim=True)
    energy_BLT = (slope_BLT / size_BL1.masked_fill(flat_BL1, torch.inf)).square()
    return _mean(energy_BLT.mean(dim=1), round(SMOOTH_S * rate_hz))


def _peaks(energy_BT: Tensor, rate_hz: float) -> Tensor:
    """Return peak_BT, bool: the maximum of each beat."""
    local_BT = energy_BT == _highest(energy_BT, round(REFRACTORY_S * rate_hz))
    # The usual beat: the median over the seconds of what each reaches, for which a window needs a beat in most of them.
    second = min(round(1.5 * rate_hz), energy_BT.shape[1])
    usual_B1 = energy_BT.unfold(1, second, max(second // 3, 1)).amax(dim=2).median(dim=1, keepdim=True).values
    return local_BT & (energy_BT > LEAST_PEAK * usual_B1)


def _highest(values_BT: Tensor, reach: int) -> Tensor:
    """Return the maximum within `reach` samples on either side."""
    return torch.nn.functional.max_pool1d(values_BT[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]


def _mean(values_BT: Tensor, width: int) -> Tensor:
    """Return the mean over `width` samples around each; beyond the ends there are none."""
    width += 1 - width % 2
    return torch.nn.functional.avg_pool1d(
        values_BT[:, None], width, stride=1, padding=width // 2, count_include_pad=False
    )[:, 0]
