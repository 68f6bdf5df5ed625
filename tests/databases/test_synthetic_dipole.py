"""The dipole against the papers' differential equation, and Dower's matrix against its inverse and a real heart."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from numpy.typing import NDArray

from ecgfm.databases import _synthetic_dipole as module
from ecgfm.databases._synthetic_dipole import (
    DOWER_L3,
    INDEPENDENT_LEADS,
    Waves,
    dipole,
    rotation,
    twelve_leads,
)
from ecgfm.databases._synthetic_waves import MORPHOLOGIES, as_waves
from ecgfm.databases._wfdb_files import read_counts
from ecgfm.databases._wfdb_header import lead_names, read_header, scale

# Edenbrandt and Pahlm 1988, the inverse Dower matrix as printed: rows X, Y, Z, columns V1 to V6, I, II. They count
# Z to the front, Frank's Z is to the back; three digits are given.
INVERSE_DOWER = [
    [-0.172, -0.074, 0.122, 0.231, 0.239, 0.194, 0.156, -0.010],
    [0.057, -0.019, -0.106, -0.022, 0.041, 0.048, -0.227, 0.887],
    [0.229, 0.310, 0.246, 0.063, -0.055, -0.108, -0.022, -0.102],
]


def slow_dipole(waves: Waves, peaks_s: list[float], intervals_s: list[float], time_s: float) -> list[float]:
    """Return one sample in plain Python: the sum of Gaussians over all beats, waves and components."""
    total = [0.0, 0.0, 0.0]
    for peak_s, interval_s in zip(peaks_s, intervals_s, strict=True):
        phase = 2 * math.pi * (time_s - peak_s) / interval_s
        for wave in range(len(waves.centre_s_W)):
            factor = math.sqrt(interval_s) if waves.stretches_W[wave] else 1.0
            centre = 2 * math.pi * float(waves.centre_s_W[wave]) * factor / interval_s
            width = 2 * math.pi * float(waves.width_s_W[wave]) * factor / interval_s
            value = math.exp(-((phase - centre) ** 2) / (2 * width**2))
            for axis in range(3):
                total[axis] += float(waves.peak_mv_W3[wave, axis]) * value
    return total


def waves_of(morphology: str) -> Waves:
    table = MORPHOLOGIES[morphology]
    return as_waves(table, np.ones(len(table)))


@pytest.mark.parametrize("morphology", MORPHOLOGIES)
@pytest.mark.parametrize("rate_hz", [100.0, 500.0])
def test_dipole_is_the_sum_of_gaussians_over_beats_that_reach_over_both_ends(morphology: str, rate_hz: float) -> None:
    peaks_s, intervals_s = [-0.8, -0.1003, 0.6117, 1.02, 2.1009, 3.1], [0.9, 0.71, 0.69, 0.4, 1.1, 1.0]
    waves = waves_of(morphology)
    fast_3T = dipole(waves, np.array(peaks_s), np.array(intervals_s), int(3 * rate_hz), rate_hz)
    for sample in range(0, fast_3T.shape[1], 7):
        slow = slow_dipole(waves, peaks_s, intervals_s, sample / rate_hz)
        # Waves are cut off at 4.5 widths, where 1 mV has fallen to 0.04 microvolt; several overlap.
        np.testing.assert_allclose(fast_3T[:, sample], slow, rtol=0, atol=3e-4)


def test_dipole_solves_the_equations_of_the_papers() -> None:
    # Sameni et al. 2007, equation 4, at a constant angular velocity, by the midpoint rule in steps of 0.1 ms; phases
    # wrap into -pi to pi. At one beat a second no wave is stretched.
    waves, rate_hz, steps_a_sample = waves_of("normal"), 500.0, 20
    omega, step_s = 2 * math.pi, 1 / (500.0 * steps_a_sample)
    centre_W, width_W = omega * waves.centre_s_W, omega * waves.width_s_W

    def slope(time_s: float) -> NDArray[np.float64]:
        away_W = np.mod(omega * time_s - centre_W + math.pi, 2 * math.pi) - math.pi
        return np.asarray(-(omega * away_W / width_W**2 * np.exp(-(away_W**2) / (2 * width_W**2))) @ waves.peak_mv_W3)

    start_s = 0.55  # between T and P, where every wave is at rest
    state_3, samples = np.zeros(3), []
    for step in range(int(rate_hz) * steps_a_sample):
        if step % steps_a_sample == 0:
            samples.append(state_3.copy())
        state_3 = state_3 + step_s * slope(start_s + (step + 0.5) * step_s)
    peaks_s = np.arange(-2.0, 4.0)
    fast_3T = dipole(waves, peaks_s, np.ones(6), 1000, rate_hz)[:, 275:775]
    # The midpoint rule is off by some (0.1 ms / 8 ms)^2 / 24 of a wave.
    np.testing.assert_allclose(fast_3T.T, samples, rtol=0, atol=2e-3 * 0.1)


def test_inverse_of_the_lead_matrix_is_the_published_inverse_dower_matrix() -> None:
    published = np.array(INVERSE_DOWER)[:, [6, 7, 0, 1, 2, 3, 4, 5]] * np.array([[1.0], [1.0], [-1.0]])
    assert INDEPENDENT_LEADS == ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    np.testing.assert_allclose(np.linalg.pinv(DOWER_L3), published, rtol=0, atol=1.1e-3)


def test_axes_of_the_lead_matrix_are_those_of_real_frank_leads(ecg_data: Path) -> None:
    path = next(iter(sorted((ecg_data / "ptbdb").rglob("s0010_re.hea"))), None)
    if path is None:
        pytest.skip("s0010_re of the PTB database is not among the recordings")
    header = read_header(path)
    microvolt_L, offset_L = scale(header)
    signal_LT = (read_counts(header, path.parent) - offset_L[:, None]) * microvolt_L[:, None] * 1e-3
    high_pass = scipy.signal.butter(2, 1.0, "highpass", fs=header.rate_hz, output="sos")
    by_name = dict(zip(lead_names(header), scipy.signal.sosfiltfilt(high_pass, signal_LT, axis=1), strict=True))
    frank_3T = np.stack([by_name[name] for name in ("vx", "vy", "vz")])
    agreement = {}
    for signs in itertools.product((1, -1), repeat=3):
        predicted_LT = DOWER_L3 @ (np.array(signs)[:, None] * frank_3T)
        pairs = zip(INDEPENDENT_LEADS, predicted_LT, strict=True)
        agreement[signs] = float(np.mean([np.corrcoef(row, by_name[lead.lower()])[0, 1] for lead, row in pairs]))
    best, second = sorted(agreement.values(), reverse=True)[:2]
    # The patient has an infarction, and one matrix does not fit all chests: the correlation is far from 1.
    assert agreement[1, 1, 1] == best > 0.6 and second < best - 0.1


def test_limb_leads_follow_from_one_and_two_exactly_and_stay_within_a_count() -> None:
    rng = np.random.default_rng(0)
    signal_mv_LT = rng.uniform(-5, 5, (8, 4000))
    one, two, three, avr, avl, avf, *chest = twelve_leads(signal_mv_LT).astype(np.int64)
    np.testing.assert_array_equal(three, two - one)
    np.testing.assert_array_equal(2 * avr, -(one + two))
    np.testing.assert_array_equal(2 * avl, 2 * one - two)
    np.testing.assert_array_equal(2 * avf, 2 * two - one)
    assert np.abs(one - 1000 * signal_mv_LT[0]).max() <= 1 and np.abs(two - 1000 * signal_mv_LT[1]).max() <= 1
    assert np.abs(np.stack(chest) - 1000 * signal_mv_LT[2:]).max() <= 0.5


def test_rotation_keeps_lengths_and_turns_the_axis_towards_feet_and_back() -> None:
    turn = rotation(30, 20)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(turn) == pytest.approx(1.0)
    left = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(rotation(60, 0) @ left, [0.5, math.sqrt(0.75), 0], atol=1e-15)
    np.testing.assert_allclose(rotation(0, 90) @ left, [0, 0, 1], atol=1e-15)


def test_cut_off_of_the_gaussians_is_below_a_tenth_of_a_count() -> None:
    assert math.exp(-(module._REACH_WIDTHS**2) / 2) * module.COUNTS_PER_MV < 0.1
