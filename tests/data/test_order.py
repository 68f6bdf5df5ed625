"""The order of records and windows is a pure function of (seed, position)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from ecgfm.data.order import Epochs, order, window_starts
from ecgfm.rng import generator

SEED = st.integers(0, 2**40)


@settings(deadline=None)
@given(seed=SEED, records=st.integers(1, 60), epoch=st.integers(0, 5))
def test_each_epoch_sees_every_record_once(seed: int, records: int, epoch: int) -> None:
    seen = order(seed, records, epoch * records, (epoch + 1) * records)
    assert sorted(seen.tolist()) == list(range(records))


@settings(deadline=None)
@given(seed=SEED, records=st.integers(1, 40), cuts=st.lists(st.integers(0, 200), min_size=2, max_size=8))
def test_any_split_of_a_range_gives_the_same_order(seed: int, records: int, cuts: list[int]) -> None:
    cuts = sorted(cuts)
    whole = order(seed, records, cuts[0], cuts[-1])
    pieces = [order(seed, records, first, last) for first, last in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("records", [1, 7, 70_000])
def test_the_order_is_numpys_permutation(records: int) -> None:
    # Runs of earlier versions go on with it.
    for epoch in (0, 3):
        seen = order(11, records, epoch * records, (epoch + 1) * records)
        assert seen.dtype == np.int64
        np.testing.assert_array_equal(seen, generator(11, "order", epoch).permutation(records))


def test_of_each_order_two_epochs_are_kept_however_long_the_run() -> None:
    epochs: Epochs[list[int]] = Epochs()
    drawn: list[tuple[str, int]] = []

    def get(word: str, epoch: int) -> list[int]:
        def draw() -> list[int]:
            drawn.append((word, epoch))
            return [epoch]

        return epochs.get(word, epoch, draw)

    for epoch in range(100):
        for word in ("ptb-xl", "georgia"):
            for now in (epoch, epoch + 1, epoch):  # a batch across the edge, and its neighbours
                assert get(word, now) == [now]
    assert len(drawn) == 2 * 101
    assert sum(len(kept) for kept in epochs._orders.values()) == 4


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(order(seed, 50, 50 * epoch, 50 * (epoch + 1))) for seed in (0, 1) for epoch in range(5)]
    assert len(set(orders)) == 10


def test_the_order_is_no_mere_rotation_or_block() -> None:
    # In a random permutation of 5000 about one step in 5000 goes to the next record.
    seen = order(0, 5000, 0, 5000)
    assert (np.diff(seen) == 1).sum() < 10
    assert abs(np.corrcoef(seen, np.arange(5000))[0, 1]) < 0.05


@settings(deadline=None)
@given(
    seed=SEED,
    first=st.integers(0, 300),
    rooms=st.lists(st.integers(0, 5000), min_size=1, max_size=60),
)
def test_a_windows_start_depends_on_seed_position_and_room_alone(seed: int, first: int, rooms: list[int]) -> None:
    starts = window_starts(seed, first, first + len(rooms), np.asarray(rooms))
    # Slowly: the stream from its beginning, one number a position.
    numbers = generator(seed, "window starts").random(first + len(rooms))
    assert starts.tolist() == [int(numbers[first + place] * (room + 1)) for place, room in enumerate(rooms)]
    assert all(0 <= start <= room for start, room in zip(starts, rooms, strict=True))
    for place, room in enumerate(rooms):
        alone = window_starts(seed, first + place, first + place + 1, np.asarray([room]))
        assert alone.tolist() == [starts[place]]


@settings(deadline=None)
@given(first=st.integers(0, 10**13), count=st.integers(1, 9), cut=st.integers(0, 9))
def test_far_positions_cost_and_give_the_same(first: int, count: int, cut: int) -> None:
    room = np.full(count, 10**6)
    cut = min(cut, count)
    whole = window_starts(0, first, first + count, room)
    left = window_starts(0, first, first + cut, room[:cut])
    right = window_starts(0, first + cut, first + count, room[cut:])
    np.testing.assert_array_equal(np.concatenate([left, right]), whole)


def test_an_empty_range_is_empty() -> None:
    none: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    assert order(0, 7, 5, 5).shape == window_starts(0, 5, 5, none).shape == (0,)


@pytest.mark.parametrize("seed", [0, 1])
def test_starts_are_uniform_and_reach_both_ends(seed: int) -> None:
    starts = window_starts(seed, 3, 20_003, np.full(20_000, 9))
    counts = np.bincount(starts, minlength=10)
    assert len(counts) == 10
    # Of 1000 seeds one would fall below; these two do not.
    assert chisquare(counts).pvalue > 1e-3


def test_starts_of_neighbours_are_independent() -> None:
    starts = window_starts(0, 0, 20_000, np.full(20_000, 3))
    pairs = np.bincount(4 * starts[:-1:2] + starts[1::2], minlength=16)
    assert chisquare(pairs).pvalue > 1e-3


def test_a_record_as_long_as_the_window_starts_at_0() -> None:
    assert not window_starts(0, 0, 100, np.zeros(100, dtype=np.int64)).any()
