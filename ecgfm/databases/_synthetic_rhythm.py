"""When the heart beats: R peaks of six rhythms.

Sinus rhythms breathe: the RR interval swings with respiration (0.15 to 0.3 Hz) and with the 0.1 Hz wave, as in
McSharry et al. 2003, https://doi.org/10.1109/TBME.2003.808805, section III, where it is a spectrum with these two
summits; we take one sine for each and a small random part.

Shapes: N beats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATES_PER_MINUTE: dict[str, tuple[float, float]] = {
    "sinus": (63.0, 95.0),
    "sinus-bradycardia": (40.0, 56.0),
    "sinus-tachycardia": (106.0, 150.0),
    "atrial-fibrillation": (65.0, 135.0),
    "first-degree-av-block": (55.0, 88.0),
    "ventricular-ectopy": (58.0, 92.0),
}
"""Bounds of the mean heart rate, by label of the rhythm. A little inside of 60 and 100, as beats vary."""

WAVE_HZ = 0.1
SHORTEST_S = 0.30
"""No interval of atrial fibrillation is shorter: the atrioventricular node is refractory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Beats:
    """A train of beats that covers a recording and reaches over both ends."""

    peaks_s_N: NDArray[np.float64]
    intervals_s_N: NDArray[np.float64]
    """The interval that sets each beat's phase."""
    ectopic_N: NDArray[np.bool_]
    """Beats that start in a ventricle."""


@dataclass(frozen=True, kw_only=True)
class Breath:
    """How respiration moves the RR interval."""

    rate_hz: float
    phase: float
    """Radian, at the start of the recording."""
    depth: float
    """Largest change of the interval, as a share of it."""

    def at(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where the breath stands, from -1 to 1."""
        return np.asarray(np.sin(2 * np.pi * self.rate_hz * time_s + self.phase))


def beats(rhythm: str, rate_per_minute: float, breath: Breath, seconds: float, rng: np.random.Generator) -> Beats:
    """Return the beats of one recording.

    Args:
        rhythm: A key of `RATES_PER_MINUTE`.
        rate_per_minute: Mean heart rate.
        breath: Of the patient in this recording.
        seconds: Length of the recording.
        rng: Decides everything else.
    """
    interval_s = 60.0 / rate_per_minute
    if rhythm == "atrial-fibrillation":
        return _fibrillation(interval_s, seconds, rng)
    train = _sinus(interval_s, breath, seconds, rng)
    return _with_ectopy(train, interval_s, rng) if rhythm == "ventricular-ectopy" else train


def _sinus(interval_s: float, breath: Breath, seconds: float, rng: np.random.Generator) -> Beats:
    number = math.ceil((seconds + 3.0) / (0.7 * interval_s)) + 3
    about_s_N = interval_s * np.arange(number, dtype=np.float64)
    wave = 0.4 * breath.depth * np.sin(2 * np.pi * WAVE_HZ * about_s_N + rng.uniform(0, 2 * np.pi))
    jitter = 0.15 * breath.depth * rng.standard_normal(number)
    return _train(interval_s * (1 + breath.depth * breath.at(about_s_N) + wave + jitter), seconds, rng)


def _fibrillation(interval_s: float, seconds: float, rng: np.random.Generator) -> Beats:
    """Intervals without memory, from a gamma distribution."""
    spread = rng.uniform(0.18, 0.27)
    number = math.ceil((seconds + 3.0) / (0.5 * interval_s)) + 8
    intervals_s_N = np.maximum(rng.gamma(1 / spread**2, interval_s * spread**2, number), SHORTEST_S)
    train = _train(intervals_s_N, seconds, rng)
    # Repolarisation follows the interval only in part within a few beats.
    return Beats(
        peaks_s_N=train.peaks_s_N,
        intervals_s_N=0.7 * interval_s + 0.3 * train.intervals_s_N,
        ectopic_N=train.ectopic_N,
    )


def _train(intervals_s_N: NDArray[np.float64], seconds: float, rng: np.random.Generator) -> Beats:
    """Return beats from one to two intervals before the recording to the first beat 1 s after it."""
    peaks_s_N = np.cumsum(intervals_s_N) - intervals_s_N[0] * (1 + rng.uniform(1, 2))
    assert peaks_s_N[-1] > seconds + 0.5, "too few intervals drawn"
    kept = peaks_s_N < seconds + 1.0
    return Beats(
        peaks_s_N=peaks_s_N[kept], intervals_s_N=intervals_s_N[kept], ectopic_N=np.zeros(int(kept.sum()), dtype=bool)
    )


def _with_ectopy(train: Beats, interval_s: float, rng: np.random.Generator) -> Beats:
    """Replace every third to sixth beat by an early ventricular one.

    The sinus node does not notice: the next sinus beat comes when it would have come anyway, which is the full
    compensatory pause.
    """
    peaks_s_N = train.peaks_s_N.copy()
    ectopic_N = train.ectopic_N.copy()
    coupling = rng.uniform(0.56, 0.68)
    # The first lies within the first seconds, so that no record of this label is without one.
    place = int(np.searchsorted(peaks_s_N, 0.3)) + int(rng.integers(1, 3))
    while place < len(peaks_s_N):
        peaks_s_N[place] = peaks_s_N[place - 1] + interval_s * (coupling + 0.01 * rng.standard_normal())
        ectopic_N[place] = True
        place += int(rng.integers(3, 7))
    return Beats(peaks_s_N=peaks_s_N, intervals_s_N=train.intervals_s_N, ectopic_N=ectopic_N)
