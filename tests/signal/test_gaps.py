"""Runs of missing samples, and what fills them, against loops over samples."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ecgfm.signal.gaps import fill, longest_gap, runs

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 4), st.integers(1, 30)))
signals = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.one_of(st.just(math.nan), st.floats(-50, 50)),
)


def runs_by_loop(missing_LT: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    found = []
    for lead, row in enumerate(missing_LT.tolist()):
        start = None
        for at, missing in enumerate([*row, False]):
            if missing and start is None:
                start = at
            elif not missing and start is not None:
                found.append((lead, start, at))
                start = None
    return found


@given(missing_LT=masks)
def test_runs_are_those_of_a_loop(missing_LT: NDArray[np.bool_]) -> None:
    found = runs(missing_LT)
    listed = list(zip(found.lead_R.tolist(), found.start_R.tolist(), found.stop_R.tolist(), strict=True))
    assert listed == runs_by_loop(missing_LT)


@given(missing_LT=masks, data=st.data())
def test_the_longest_gap_counts_runs_that_the_border_cuts_in_full(
    missing_LT: NDArray[np.bool_], data: st.DataObject
) -> None:
    samples = missing_LT.shape[1]
    start = data.draw(st.integers(0, samples - 1))
    stop = data.draw(st.integers(start + 1, samples))
    touching = [
        (run_stop - run_start, -lead)
        for lead, run_start, run_stop in runs_by_loop(missing_LT)
        if run_start < stop and run_stop > start
    ]
    length, lead = max(touching, default=(0, 0))
    assert longest_gap(missing_LT, start, stop) == (length, -lead)


def test_a_gap_over_the_border_of_two_segments_is_seen_from_both() -> None:
    missing_LT = np.zeros((3, 100), dtype=np.bool_)
    missing_LT[1, 45:58] = True
    missing_LT[2, 70:80] = True
    assert longest_gap(missing_LT, 0, 50) == longest_gap(missing_LT, 50, 100) == (13, 1)
    assert longest_gap(missing_LT, 60, 100) == (10, 2)
    assert longest_gap(missing_LT, 0, 45) == (0, 0)


@given(signal_LT=signals)
def test_filled_values_lie_on_the_line_between_their_neighbours(signal_LT: NDArray[np.float64]) -> None:
    before_LT = signal_LT.copy()
    found_LT = fill(signal_LT)
    np.testing.assert_array_equal(signal_LT, before_LT)
    for row, found in zip(signal_LT.tolist(), found_LT.tolist(), strict=True):
        for at, value in enumerate(row):
            left = next((k for k in range(at, -1, -1) if not math.isnan(row[k])), None)
            right = next((k for k in range(at, len(row)) if not math.isnan(row[k])), None)
            if not math.isnan(value):
                expected = value
            elif left is None and right is None:
                expected = 0.0
            elif left is None or right is None:
                expected = row[left if right is None else right]
            else:
                share = (at - left) / (right - left)
                expected = (1 - share) * row[left] + share * row[right]
            assert math.isclose(found[at], expected, rel_tol=1e-12, abs_tol=1e-12)


def test_a_ramp_with_holes_is_the_ramp() -> None:
    ramp_LT = np.linspace([0.0, 5.0], [1.0, -5.0], 1000, axis=1).astype(np.float32)
    holed_LT = ramp_LT.copy()
    holed_LT[0, 100:300] = np.nan
    holed_LT[1, 1:999] = np.nan
    filled_LT = fill(holed_LT)
    assert filled_LT.dtype == np.float64
    np.testing.assert_allclose(filled_LT, ramp_LT, atol=1e-6)  # the ramp itself is float32
