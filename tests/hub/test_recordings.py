"""Windows cover a record."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ecgfm.hub.recordings import peak_to_peak_mv, windows


@given(signal_LT=hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(-50, 50)))
def test_the_span_is_that_of_the_sorted_samples(signal_LT: NDArray[np.float64]) -> None:
    for span, row in zip(peak_to_peak_mv(signal_LT), signal_LT, strict=True):
        ordered = sorted(row.tolist())
        last = len(ordered) - 1
        assert span == ordered[round(0.999 * last)] - ordered[round(0.001 * last)]


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
