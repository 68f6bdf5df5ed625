"""Resampling against scipy and against sine waves, whose resampled form is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from ecgfm.errors import SignalError
from ecgfm.signal.resample import ratio, resample, resampled_length

RATES = [
    (1000.0, 500.0),
    (400.0, 500.0),
    (257.0, 500.0),
    (100.0, 500.0),
    (500.0, 100.0),
    (500.0, 400.0),
    (250.0, 500.0),
]


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_scipy_gives_the_same_away_from_the_edges(from_hz: float, to_hz: float) -> None:
    signal = np.random.default_rng(0).normal(size=(3, 1500))
    up, down = ratio(from_hz, to_hz).numerator, ratio(from_hz, to_hz).denominator
    ours = resample(signal, from_hz, to_hz)
    theirs = resample_poly(signal, up, down, axis=-1, window=("kaiser", 5.0))
    assert ours.shape == theirs.shape == (3, resampled_length(1500, from_hz, to_hz))
    # The filter is the same but for the sum of each phase, which we set to 1: scipy's are off by up to some 1e-3.
    edge = round(25 * max(1.0, to_hz / from_hz))
    np.testing.assert_allclose(ours[:, edge:-edge], theirs[:, edge:-edge], rtol=0, atol=5e-3)


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_dividing_scipys_own_response_to_a_constant_gives_ours(from_hz: float, to_hz: float) -> None:
    signal = np.random.default_rng(1).normal(size=1500)
    up, down = ratio(from_hz, to_hz).numerator, ratio(from_hz, to_hz).denominator
    theirs = resample_poly(signal, up, down, window=("kaiser", 5.0))
    constant = resample_poly(np.ones(1500), up, down, window=("kaiser", 5.0))
    edge = round(25 * max(1.0, to_hz / from_hz))
    # Away from the edges the response to a constant is exactly the sum of the phase: both filters are then equal.
    np.testing.assert_allclose(
        resample(signal, from_hz, to_hz)[edge:-edge], (theirs / constant)[edge:-edge], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_a_slow_sine_keeps_its_amplitude_and_phase(from_hz: float, to_hz: float) -> None:
    frequency_hz = 7.0  # far below half of the lowest rate, 50 Hz
    samples = round(6 * from_hz)
    sine = np.sin(2 * np.pi * frequency_hz * np.arange(samples) / from_hz)
    ours = resample(sine, from_hz, to_hz)
    truth = np.sin(2 * np.pi * frequency_hz * np.arange(ours.size) / to_hz)
    inside = slice(round(to_hz), round(5 * to_hz))
    np.testing.assert_allclose(ours[inside], truth[inside], rtol=0, atol=2e-3)  # the pass band's ripple


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    hum = np.sin(2 * np.pi * 180.0 * np.arange(5000) / 500.0)  # 180 Hz would fold to 20 Hz at 100 Hz
    assert np.abs(resample(hum, 500.0, 100.0)[50:-50]).max() < 1e-2


@given(
    level=st.floats(-100, 100),
    samples=st.integers(1, 300),
    rates=st.sampled_from(RATES),
)
def test_a_constant_stays_constant_to_the_edges(level: float, samples: int, rates: tuple[float, float]) -> None:
    resampled = resample(np.full(samples, level), *rates)
    np.testing.assert_allclose(resampled, level, rtol=1e-12, atol=1e-12)


@settings(max_examples=50)
@given(samples=st.integers(1, 400), rates=st.sampled_from(RATES))
def test_the_length_is_the_exact_quotient_rounded_up(samples: int, rates: tuple[float, float]) -> None:
    from_hz, to_hz = rates
    exact = Fraction(samples) * Fraction(to_hz) / Fraction(from_hz)
    expected = int(exact) + (exact.denominator > 1)
    assert resampled_length(samples, from_hz, to_hz) == resample(np.zeros(samples), from_hz, to_hz).size == expected


def test_resampling_is_linear() -> None:
    one, two = np.random.default_rng(2).normal(size=(2, 400))
    both = resample(2.0 * one - 3.0 * two, 400.0, 500.0)
    np.testing.assert_allclose(
        both, 2.0 * resample(one, 400.0, 500.0) - 3.0 * resample(two, 400.0, 500.0), rtol=0, atol=1e-12
    )


def test_einthovens_law_survives() -> None:
    one, two = np.random.default_rng(3).normal(size=(2, 1000))
    legs = resample(np.stack([one, two, two - one]), 257.0, 500.0)
    np.testing.assert_allclose(legs[2], legs[1] - legs[0], rtol=0, atol=1e-12)


def test_the_same_rate_gives_the_same_samples_and_not_the_same_array() -> None:
    signal = np.random.default_rng(4).normal(size=(2, 50))
    same = resample(signal, 500.0, 500.0)
    np.testing.assert_array_equal(same, signal)
    assert not np.shares_memory(same, signal)


@pytest.mark.parametrize("rate_hz", [0.0, -500.0, float("nan"), float("inf"), 1e7])
def test_an_impossible_rate_is_refused_with_its_value(rate_hz: float) -> None:
    with pytest.raises(SignalError, match=str(rate_hz)):
        resample(np.zeros(10), rate_hz, 500.0)
    with pytest.raises(SignalError, match=str(rate_hz)):
        resample(np.zeros(10), 500.0, rate_hz)


def test_a_ratio_that_is_too_fine_is_refused() -> None:
    with pytest.raises(SignalError, match="too fine"):
        ratio(499.99991, 500.0)
