"""Cutting a recording into segments: nothing doubled, nothing lost but a short rest."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.errors import ConfigError
from ecgfm.signal.segments import cut

rates = st.sampled_from([100.0, 250.0, 257.0, 360.5, 400.0, 500.0, 1000.0])


@given(samples=st.integers(1, 500_000), rate_hz=rates, segment_s=st.floats(2.0, 100.0), share=st.floats(0.0, 1.0))
def test_segments_follow_each_other_and_only_a_short_rest_is_left_out(
    samples: int, rate_hz: float, segment_s: float, share: float
) -> None:
    min_s = share * segment_s
    pieces = cut(samples, rate_hz, segment_s=segment_s, min_s=min_s)
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces)][: len(pieces)]
    rest = samples - (pieces[-1][1] if pieces else 0)
    assert 0 <= rest < max(1, min_s * rate_hz)
    for number, (start, stop) in enumerate(pieces):
        # A border is at most half a sample from its time, so a length at most one sample from the segment's.
        assert abs(start - number * segment_s * rate_hz) <= 0.5
        assert min_s * rate_hz - 1 <= stop - start <= segment_s * rate_hz + 1


@given(samples=st.integers(1, 1_000_000), rate_hz=rates, min_s=st.floats(0.0, 2000.0))
def test_without_a_length_a_recording_is_kept_whole_or_not_at_all(samples: int, rate_hz: float, min_s: float) -> None:
    pieces = cut(samples, rate_hz, segment_s=None, min_s=min_s)
    assert pieces == (((0, samples),) if samples > min_s * rate_hz - 1 else ())


@pytest.mark.parametrize(
    ("samples", "rate_hz", "segment_s", "min_s", "expected"),
    [
        (5000, 500.0, 60.0, 10.0, [(0, 5000)]),
        (30_000, 500.0, 60.0, 10.0, [(0, 30_000)]),
        (57_600, 500.0, 60.0, 10.0, [(0, 30_000), (30_000, 57_600)]),  # PTB's 115.2 s
        (34_999, 500.0, 60.0, 10.0, [(0, 30_000)]),
        (35_000, 500.0, 60.0, 10.0, [(0, 30_000), (30_000, 35_000)]),
        (4999, 500.0, 60.0, 10.0, []),
        (7, 0.7, 5.0, 0.0, [(0, 4), (4, 7)]),
    ],
)
def test_cases_by_hand(
    samples: int, rate_hz: float, segment_s: float, min_s: float, expected: list[tuple[int, int]]
) -> None:
    assert list(cut(samples, rate_hz, segment_s=segment_s, min_s=min_s)) == expected


def test_half_an_hour_of_incart_becomes_180_segments() -> None:
    pieces = cut(462_600, 257.0, segment_s=10.0, min_s=10.0)
    assert len(pieces) == 180 and {stop - start for start, stop in pieces} == {2570}


@pytest.mark.parametrize(
    ("rate_hz", "segment_s", "min_s"),
    [(0.0, 10.0, 1.0), (math.nan, None, 1.0), (500.0, 0.0, 0.0), (500.0, 0.001, 0.0), (500.0, 10.0, -1.0)],
)
def test_lengths_that_are_none_are_refused(rate_hz: float, segment_s: float | None, min_s: float) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        cut(5000, rate_hz, segment_s=segment_s, min_s=min_s)


def test_segments_shorter_than_the_shortest_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"5 s .* 10 s"):
        cut(50_000, 500.0, segment_s=5.0, min_s=10.0)
