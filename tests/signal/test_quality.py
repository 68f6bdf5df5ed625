"""What is refused as no ECG, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ecgfm.errors import RecordError
from ecgfm.leads import LEADS
from ecgfm.signal.quality import Bounds, check, peak_to_peak_mv


@pytest.fixture
def signal_LT() -> NDArray[np.float64]:
    """Return twelve sine waves of 2 mV peak to peak."""
    return np.sin(2 * np.pi * np.arange(1000) / 250 + np.arange(12)[:, None])


def reason_of(signal_LT: NDArray[np.float64], bounds: Bounds | None = None) -> tuple[str, str]:
    with pytest.raises(RecordError) as caught:
        check(signal_LT, LEADS, bounds or Bounds())
    return caught.value.reason, caught.value.message


def test_an_ordinary_signal_passes(signal_LT: NDArray[np.float64]) -> None:
    check(signal_LT, LEADS, Bounds())


@given(signal_LT=hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(-50, 50)))
def test_the_span_is_that_of_the_sorted_samples(signal_LT: NDArray[np.float64]) -> None:
    for span, row in zip(peak_to_peak_mv(signal_LT), signal_LT, strict=True):
        ordered = sorted(row.tolist())
        last = len(ordered) - 1
        assert span == ordered[round(0.999 * last)] - ordered[round(0.001 * last)]


def test_single_spikes_do_not_count_as_amplitude(signal_LT: NDArray[np.float64]) -> None:
    signal_LT = np.tile(signal_LT, 5)
    signal_LT[3, 17] = 500.0  # one sample of 5000, a pacemaker's artefact
    check(signal_LT, LEADS, Bounds())


def test_missing_samples_are_counted_in_the_worst_lead(signal_LT: NDArray[np.float64]) -> None:
    signal_LT[2, 5] = np.nan
    signal_LT[8, 5:9] = np.nan
    assert reason_of(signal_LT) == ("samples-missing", "4 of 1000 samples missing in V3")


def test_leads_without_any_sample_are_named_before_anything_else(signal_LT: NDArray[np.float64]) -> None:
    signal_LT[[4, 11]] = np.nan
    signal_LT[0] = 0.0
    assert reason_of(signal_LT) == ("lead-all-missing", "no sample at all in aVL, V6")


@pytest.mark.parametrize("level", [0.0, 1.25])
def test_flat_leads_are_named(signal_LT: NDArray[np.float64], level: float) -> None:
    signal_LT[[1, 6]] = level
    reason, message = reason_of(signal_LT)
    assert reason == "lead-flat" and message.endswith("in II, V1")


@pytest.mark.parametrize(("factor", "words"), [(1e3, "2e+03 mV"), (1e-3, "0.002 mV"), (0.0005, "0.001 mV")])
def test_a_gain_off_by_a_thousand_is_refused(signal_LT: NDArray[np.float64], factor: float, words: str) -> None:
    reason, message = reason_of(signal_LT * factor)
    assert reason == "implausible-amplitude" and words in message and "gain" in message


def test_one_saturated_lead_is_refused_by_name(signal_LT: NDArray[np.float64]) -> None:
    signal_LT[9] *= 40.0
    reason, message = reason_of(signal_LT)
    assert reason == "implausible-amplitude" and "V4 is 80 mV" in message


def test_one_quiet_lead_is_believed(signal_LT: NDArray[np.float64]) -> None:
    signal_LT[9] *= 1e-3
    check(signal_LT, LEADS, Bounds())


@pytest.mark.parametrize("span_mv", [0.05, 20.0])
def test_the_bounds_themselves_are_believed(span_mv: float) -> None:
    square = np.where(np.arange(1000) % 2 == 0, 0.0, span_mv)
    check(np.tile(square, (12, 1)), LEADS, Bounds())


def test_other_bounds_are_obeyed(signal_LT: NDArray[np.float64]) -> None:
    reason, message = reason_of(signal_LT, Bounds(median_lead_mv=(3.0, 20.0)))
    assert reason == "implausible-amplitude" and "3 to 20 mV" in message


def test_a_lead_at_its_rail_is_refused_by_its_offset(signal_LT: NDArray[np.float64]) -> None:
    signal_LT[7] -= 80.0  # noise around the rail: not flat, and no larger than an ECG
    reason, message = reason_of(signal_LT)
    assert reason == "implausible-offset" and "the median of V2 is -80 mV" in message
    signal_LT[7] += 70.0
    check(signal_LT, LEADS, Bounds())
