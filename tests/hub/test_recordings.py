"""Windows cover a record."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.hub.recordings import windows


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
