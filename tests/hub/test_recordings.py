"""Windows cover a record."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ecgfm.hub.recordings import _least_span, peak_to_peak_mv, to_contract, windows
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract
from ecgfm.signal.highpass import highpass
from ecgfm.signal.resample import resample


@given(signal_LT=hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(-50, 50)))
def test_the_span_is_that_of_the_sorted_samples(signal_LT: NDArray[np.float64]) -> None:
    for span, row in zip(peak_to_peak_mv(signal_LT), signal_LT, strict=True):
        ordered = sorted(row.tolist())
        last = len(ordered) - 1
        assert span == ordered[round(0.999 * last)] - ordered[round(0.001 * last)]


def test_a_contract_with_a_filter_filters_before_it_resamples() -> None:
    contract = SignalContract(
        rate_hz=250.0, mean_mv=(0.0,) * 12, std_mv=(0.2,) * 12, window_samples=2500, highpass_hz=0.5
    )
    signal_LT = np.random.default_rng(0).normal(0.0, 0.02, (12, 6000)).cumsum(axis=1)
    ours_LT = to_contract(signal_LT, rate_hz=500.0, leads=LEADS, unit="mV", contract=contract, name="x")
    theirs_LT = resample(highpass(signal_LT, 500.0, 0.5), 500.0, 250.0)
    np.testing.assert_allclose(ours_LT, theirs_LT, rtol=0, atol=1e-5)  # float32
    assert np.abs(theirs_LT - resample(signal_LT, 500.0, 250.0)).max() > 0.5


@given(st.integers(50, 200_000), st.integers(1, 40), st.sampled_from([1, 25, 50]))
def test_windows_cover_every_sample_evenly_and_are_whole_patches(samples: int, patches: int, patch: int) -> None:
    window = patches * patch
    places = list(windows(samples, window + patch - 1, patch))
    if samples <= window:
        assert places == [(0, samples // patch * patch)]
        return
    starts = np.asarray([start for start, _ in places])
    assert {stop - start for start, stop in places} == {window}
    assert starts[0] == 0 and places[-1][1] == samples
    gaps = np.diff(starts)
    assert gaps.max() <= window and gaps.max() - gaps.min() <= 1
    assert len(places) == math.ceil(samples / window)


@pytest.mark.parametrize("samples", [1, 2, 499, 500, 501, 1500, 5000, 5001, 60_000])
def test_the_cheap_span_is_never_above_the_percentiles(samples: int) -> None:
    draw = np.random.default_rng(samples)
    signal_LT = draw.standard_t(2, size=(3, samples))
    signal_LT[1, draw.integers(samples, size=samples // 500 + 1)] = 1e3  # as many spikes as the percentiles pass over
    least, exact = _least_span(signal_LT), peak_to_peak_mv(signal_LT)
    assert (least <= exact).all()
    assert samples < 1500 or (least[[0, 2]] > 0.3 * exact[[0, 2]]).all()
