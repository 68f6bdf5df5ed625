"""The heart as one moving dipole: Gaussian waves in the beat's phase, seen by the leads through Dower's matrix.

McSharry et al. 2003, https://doi.org/10.1109/TBME.2003.808805 (one lead), and Sameni et al. 2007,
https://doi.org/10.1155/2007/43407 (equations 3 and 4: the three Frank components X, Y, Z). The papers integrate
d(component)/dt = -sum_i (a_i w / b_i^2) theta_i exp(-theta_i^2 / (2 b_i^2)); with a constant angular velocity w the
solution is the sum of a_i exp(-theta_i^2 / (2 b_i^2)), which we evaluate directly. We differ in three ways: a beat's
phase is counted from its own R peak and is not wrapped, so that neighbouring beats add up without a step; all three
components share the waves' places and widths; and these are kept in seconds, because QRS keeps its length at
any heart rate, while P and T move and stretch with the square root of the interval (as in McSharry's own program).

Frank axes: X to the left, Y to the feet, Z to the back. Values are millivolt.

Shapes: N beats, W waves, S samples of a beat's window, T samples, L leads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.leads import LEADS

INDEPENDENT_LEADS: tuple[str, ...] = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
"""The leads that do not follow from others."""

# Dower 1968, J Electrocardiol 1:101; its inverse is in Edenbrandt and Pahlm 1988,
# https://doi.org/10.1016/0022-0736(88)90113-6. Rows as in INDEPENDENT_LEADS, columns X, Y, Z.
DOWER_L3: NDArray[np.float64] = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
"""Leads from the Frank components."""

COUNTS_PER_MV = 1000
# exp(-4.5^2 / 2) is 4e-5: a wave of 1 mV is cut off below a tenth of a count.
_REACH_WIDTHS = 4.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Waves:
    """The Gaussian waves of one kind of beat, at an interval of one second."""

    centre_s_W: NDArray[np.float64]
    """From the R peak."""
    width_s_W: NDArray[np.float64]
    """Standard deviations."""
    peak_mv_W3: NDArray[np.float64]
    stretches_W: NDArray[np.bool_]
    """Whether a wave follows the heart rate: P, ST and T do, QRS does not."""


def dipole(
    waves: Waves, peaks_s_N: NDArray[np.float64], intervals_s_N: NDArray[np.float64], samples: int, rate_hz: float
) -> NDArray[np.float64]:
    """Return the dipole of a train of beats, shape (3, T), in millivolt.

    Args:
        waves: Of every beat.
        peaks_s_N: When the R peaks are; they may lie outside of the recording, and their waves reach in.
        intervals_s_N: The RR interval that sets each beat's phase.
        samples: T.
        rate_hz: Samples per second.
    """
    stretch_NW = np.where(waves.stretches_W, np.sqrt(intervals_s_N)[:, None], 1.0)
    centre_NW, width_NW = waves.centre_s_W * stretch_NW, waves.width_s_W * stretch_NW
    first = int(np.floor((centre_NW - _REACH_WIDTHS * width_NW).min() * rate_hz)) - 1
    last = int(np.ceil((centre_NW + _REACH_WIDTHS * width_NW).max() * rate_hz)) + 1
    nearest_N = np.rint(peaks_s_N * rate_hz).astype(np.int64)
    time_s_NS = (nearest_N[:, None] + np.arange(first, last)) / rate_hz - peaks_s_N[:, None]
    radian_per_s_N11 = (2 * np.pi / intervals_s_N)[:, None, None]
    phase_N1S = time_s_NS[:, None, :] * radian_per_s_N11
    away_NWS = (phase_N1S - centre_NW[:, :, None] * radian_per_s_N11) / (width_NW[:, :, None] * radian_per_s_N11)
    beats_N3S = np.matmul(waves.peak_mv_W3.T, np.exp(-0.5 * np.square(away_NWS)))
    total_3T = np.zeros((3, samples))
    for start, beat_3S in zip((nearest_N + first).tolist(), beats_N3S):
        low, high = max(start, 0), min(start + last - first, samples)
        if low < high:
            total_3T[:, low:high] += beat_3S[:, low - start : high - start]
    return total_3T


def rotation(frontal_deg: float, horizontal_deg: float) -> NDArray[np.float64]:
    """Return the matrix, shape (3, 3), that turns the heart.

    Args:
        frontal_deg: Clockwise as seen from the front, as the heart's axis is counted: from left to feet.
        horizontal_deg: From left to back.
    """
    frontal, horizontal = np.deg2rad(frontal_deg), np.deg2rad(horizontal_deg)
    in_frontal = np.array(
        [[np.cos(frontal), -np.sin(frontal), 0.0], [np.sin(frontal), np.cos(frontal), 0.0], [0.0, 0.0, 1.0]]
    )
    in_horizontal = np.array(
        [[np.cos(horizontal), 0.0, -np.sin(horizontal)], [0.0, 1.0, 0.0], [np.sin(horizontal), 0.0, np.cos(horizontal)]]
    )
    return np.asarray(in_horizontal @ in_frontal)


def twelve_leads(independent_mv_LT: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return the twelve leads as counts, shape (12, T), from the eight of `INDEPENDENT_LEADS` in millivolt.

    I and II are rounded to even counts, so that III = II - I, aVR = -(I + II) / 2, aVL = I - II / 2 and
    aVF = II - I / 2 are whole numbers and hold exactly.
    """
    counts_LT = np.rint(independent_mv_LT * COUNTS_PER_MV).astype(np.int32)
    half_2T = np.rint(independent_mv_LT[:2] * (COUNTS_PER_MV / 2)).astype(np.int32)
    half_one, half_two = half_2T
    rows: Sequence[NDArray[np.int32]] = (
        2 * half_one,
        2 * half_two,
        2 * (half_two - half_one),
        -(half_one + half_two),
        2 * half_one - half_two,
        2 * half_two - half_one,
        *counts_LT[2:],
    )
    twelve_LT = np.stack(rows)
    assert len(twelve_LT) == len(LEADS) and np.abs(twelve_LT).max() < 32_768, np.abs(twelve_LT).max()
    return twelve_LT.astype(np.int16)
