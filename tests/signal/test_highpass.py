"""The high-pass filter against its transfer function, run as a difference equation, and against what it promises."""

from __future__ import annotations

import cmath
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.errors import SignalError
from ecgfm.signal.highpass import highpass, mirrored_samples


def poles_of(rate_hz: float, cutoff_hz: float) -> list[complex]:
    """Return the four poles in z: Butterworth's circle, low-pass to high-pass, bilinear transform."""
    warped = 2 * rate_hz * math.tan(math.pi * cutoff_hz / rate_hz)
    analogue = [warped / cmath.exp(1j * math.pi * (2 * k + 5) / 8) for k in range(4)]
    return [(2 * rate_hz + s) / (2 * rate_hz - s) for s in analogue]


def run_once(values: list[float], poles: list[complex]) -> list[float]:
    """Return the response of (1 - 1/z)^4 / prod(1 - p/z), 1 at half the rate, sample by sample."""
    stage = [complex(value) for value in values]
    for pole in poles:
        gain = (1 + pole) / 2
        out, last_in, last_out = [], stage[0], 0j  # at rest at the first value, of which a high-pass leaves nothing
        for value in stage:
            last_out = pole * last_out + gain * (value - last_in)
            last_in = value
            out.append(last_out)
        stage = out
    return [value.real for value in stage]


def slow_highpass(values: list[float], rate_hz: float, cutoff_hz: float, mirrored: int) -> list[float]:
    poles = poles_of(rate_hz, cutoff_hz)
    mirror = values[mirrored:0:-1] + values + values[-2 : -2 - mirrored : -1]
    both = run_once(run_once(mirror, poles)[::-1], poles)[::-1]
    return both[mirrored : mirrored + len(values)]


@pytest.mark.parametrize(
    ("samples", "rate_hz", "cutoff_hz"), [(3000, 500.0, 0.5), (4000, 257.0, 0.5), (700, 100.0, 0.67), (50, 400.0, 0.5)]
)
def test_equals_the_difference_equation_run_forward_and_backward(
    samples: int, rate_hz: float, cutoff_hz: float
) -> None:
    random = np.random.default_rng(samples)
    signal_LT = np.cumsum(random.normal(0, 0.05, (2, samples)), axis=1) + 3.0
    mirrored = min(mirrored_samples(rate_hz, cutoff_hz), samples - 1)
    found_LT = highpass(signal_LT, rate_hz, cutoff_hz)
    for found_T, row_T in zip(found_LT, signal_LT, strict=True):
        expected_T = slow_highpass(row_T.tolist(), rate_hz, cutoff_hz, mirrored)
        # Signals of some millivolt; poles within 0.01 of the unit circle cost four of sixteen digits.
        np.testing.assert_allclose(found_T, expected_T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("hz", [0.05, 0.5, 1.0, 5.0])
def test_response_is_that_of_the_squared_filter_without_phase(hz: float) -> None:
    rate_hz, cutoff_hz = 100.0, 0.5
    time_s = np.arange(40_000) / rate_hz
    middle = slice(10_000, 30_000)  # whole periods of every frequency, far from the edges
    sine, cosine = np.sin(2 * np.pi * hz * time_s), np.cos(2 * np.pi * hz * time_s)
    out_T = highpass(sine[None], rate_hz, cutoff_hz)[0][middle]
    in_phase, out_of_phase = 2 * np.mean(out_T * sine[middle]), 2 * np.mean(out_T * cosine[middle])
    ratio = math.tan(math.pi * cutoff_hz / rate_hz) / math.tan(math.pi * hz / rate_hz)
    assert in_phase == pytest.approx(1 / (1 + ratio**8), abs=1e-6)
    assert abs(out_of_phase) < 1e-6


@pytest.mark.parametrize("level", [0.0, -80.0, 1e6])
def test_a_constant_vanishes_and_an_offset_changes_nothing(level: float) -> None:
    random_LT = np.random.default_rng(0).normal(0, 1, (2, 2000))
    assert not highpass(np.full((2, 900), level), 500.0, 0.5).any()
    # 1e6 mV plus 1 mV keeps ten digits of the 1 mV.
    np.testing.assert_allclose(highpass(random_LT + level, 500.0, 0.5), highpass(random_LT, 500.0, 0.5), atol=1e-8)


def test_time_reversed_is_the_same_but_for_the_edges() -> None:
    signal_LT = np.random.default_rng(1).normal(0, 1, (2, 20_000))
    there_LT, back_LT = highpass(signal_LT, 100.0, 0.5), highpass(signal_LT[:, ::-1], 100.0, 0.5)[:, ::-1]
    np.testing.assert_allclose(there_LT[:, 3000:-3000], back_LT[:, 3000:-3000], atol=1e-9)


def test_leads_and_lengths_do_not_touch_each_other() -> None:
    signal_LT = np.random.default_rng(2).normal(0, 1, (12, 60_000))  # too long for all leads at once
    together_LT = highpass(signal_LT, 500.0, 0.5)
    for lead in (0, 7, 11):
        np.testing.assert_array_equal(together_LT[lead], highpass(signal_LT[lead : lead + 1], 500.0, 0.5)[0])


def beats(per_minute: float, rate_hz: float = 500.0) -> NDArray[np.float64]:
    """Return 20 s of beats with a QRS of 1 mV and an ST segment raised by 0.2 mV; the line before is at 0."""
    since_s = (np.arange(int(20 * rate_hz)) / rate_hz) % (60 / per_minute)
    qrs = np.exp(-(((since_s - 0.30) / 0.012) ** 2))
    return np.asarray(qrs + 0.2 * ((since_s > 0.34) & (since_s < 0.50)))


@pytest.mark.parametrize(("per_minute", "lost_mv"), [(60.0, 0.01), (75.0, 0.01), (100.0, 0.01)])
def test_the_st_level_against_the_line_before_the_qrs_stays(per_minute: float, lost_mv: float) -> None:
    out_T = highpass(beats(per_minute)[None], 500.0, 0.5)[0]
    # The tenth beat or so: its line 60 ms before the QRS, its ST 80 ms after it.
    start = round(10 * 60 / per_minute * 500)
    assert out_T[start + 190] - out_T[start + 120] == pytest.approx(0.2, abs=lost_mv)
    assert abs(out_T.mean()) < 0.005 and out_T[start + 120] < -0.02  # the isoelectric line itself has moved


def test_a_piece_of_a_recording_is_filtered_as_in_the_whole(ecg_data: Path) -> None:
    values = np.fromfile(ecg_data / "ptbdb" / "s0010_re.dat", dtype="<i2").reshape(-1, 12).T / 2000.0
    rate_hz, edge = 1000.0, 1000
    whole_LT = highpass(values, rate_hz, 0.5)
    errors = []
    for start in (8000, 12_345, 20_000):
        piece = slice(start, start + 10_000)
        errors.append(highpass(values[:, piece], rate_hz, 0.5) - whole_LT[:, piece])
    error_KLT = np.stack(errors)
    assert np.sqrt((error_KLT[..., 3 * edge : -3 * edge] ** 2).mean()) < 0.001
    assert np.sqrt((error_KLT[..., :edge] ** 2).mean()) < 0.03 and np.abs(error_KLT).max() < 0.2


def test_half_an_hour_takes_the_memory_of_a_few_leads() -> None:
    signal_LT = np.zeros((12, 462_600), dtype=np.float32)
    tracemalloc.start()
    try:
        out_LT = highpass(signal_LT, 257.0, 0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    lead_bytes = out_LT.nbytes // 12
    assert peak < out_LT.nbytes + 6 * lead_bytes


@pytest.mark.parametrize("cutoff_hz", [0.0, -1.0, 50.0, 70.0, math.nan])
def test_a_cutoff_that_is_none_is_refused(cutoff_hz: float) -> None:
    with pytest.raises(SignalError, match="half the rate"):
        highpass(np.zeros((1, 100)), 100.0, cutoff_hz)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_missing_samples_are_refused_and_not_spread(value: float) -> None:
    signal_LT = np.zeros((2, 100))
    signal_LT[1, 40] = value
    with pytest.raises(SignalError, match="fill the gaps"):
        highpass(signal_LT, 100.0, 0.5)
