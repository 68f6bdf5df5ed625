"""Databases by weight: exact shares, epochs of their own, a pure function of (seed, position)."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.data.mixture import BLOCK, Mixture, Source, parse_weights
from ecgfm.data.order import order
from ecgfm.errors import ConfigError

PAPER = (0.7, 0.1, 0.05, 0.0375, 0.028125, 0.025, 0.01875, 0.01875, 0.0125, 0.009375)


def mixture(shares: tuple[float, ...], sizes: tuple[int, ...], seed: int = 0) -> Mixture:
    """Return a mixture whose database d has the records 1000 * d, 1000 * d + 1, ..."""
    exact = [Fraction(share).limit_denominator(10**6) for share in shares]
    parts = [
        Source(f"database-{number}", np.arange(size) + 1_000_000 * number, share / sum(exact))
        for number, (share, size) in enumerate(zip(exact, sizes, strict=True))
    ]
    return Mixture(parts, seed)


def test_every_block_has_the_papers_shares_to_two_records_and_none_drifts() -> None:
    mixed = mixture(PAPER, (50,) * 10)
    total = np.zeros(10)
    for block in range(12):
        drawn = mixed.records(block * BLOCK, (block + 1) * BLOCK) // 1_000_000
        counts = np.bincount(drawn, minlength=10)
        assert np.abs(counts - np.array(PAPER) * BLOCK).max() < 2
        total += counts
        # Of all so far, too: what one block has too much the next has too little.
        assert np.abs(total - np.array(PAPER) * BLOCK * (block + 1)).max() <= 1


@given(
    cuts=st.lists(st.integers(0, 35_000), min_size=2, max_size=6),
    seed=st.integers(0, 2**40),
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
)
def test_any_split_of_a_range_gives_the_same_records(cuts: list[int], seed: int, weights: list[float]) -> None:
    mixed = mixture(tuple(weights), tuple(range(7, 7 + len(weights))), seed)
    cuts = sorted(cuts)
    whole = mixed.records(cuts[0], cuts[-1])
    pieces = [mixed.records(first, last) for first, last in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_each_database_goes_through_its_records_before_one_comes_again() -> None:
    sizes = (311, 40, 7)
    drawn = mixture((0.6, 0.3, 0.1), sizes).records(0, 3 * BLOCK)
    for number, size in enumerate(sizes):
        own = drawn[drawn // 1_000_000 == number]
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert len(set(part.tolist())) == size, f"database {number}, epoch {epoch}"
        orders = {tuple(own[epoch * size : (epoch + 1) * size]) for epoch in range(3)}
        assert len(orders) == 3


def test_databases_of_one_size_have_orders_of_their_own() -> None:
    drawn = mixture((0.5, 0.5), (60, 60)).records(0, BLOCK)
    first, second = (drawn[drawn // 1_000_000 == number][:60] % 1_000_000 for number in (0, 1))
    assert (first == second).mean() < 0.2


def test_databases_are_mixed_within_a_batch() -> None:
    drawn = mixture((0.9, 0.1), (500, 500)).records(0, BLOCK) // 1_000_000
    batches = drawn.reshape(-1, 250).sum(axis=1)  # 25 of each 250 on average, standard deviation below 4.7
    assert batches.min() > 5 and batches.max() < 48


def test_one_database_is_drawn_as_without_weights() -> None:
    records = np.arange(100, 150)
    mixed = Mixture([Source("order", records, Fraction(1))], 3)
    np.testing.assert_array_equal(mixed.records(20, 130), records[order(3, 50, 20, 130)])


def test_epochs_are_positions_by_share_and_size() -> None:
    assert mixture((0.75, 0.25), (300, 50)).epochs(4000) == {"database-0": 10.0, "database-1": 20.0}


def test_weights_are_read_and_mistakes_explained() -> None:
    assert parse_weights(("mimic-iv-ecg=0.7", "code-15=1e-1")) == {"mimic-iv-ecg": 0.7, "code-15": 0.1}
    for word in ("ptb", "ptb=", "=1", "ptb=x", "ptb=0", "ptb=-1", "ptb=nan", "ptb=inf"):
        with pytest.raises(ConfigError, match=r"such as code-15=0\.1"):
            parse_weights((word,))
    with pytest.raises(ConfigError, match="twice"):
        parse_weights(("ptb=1", "ptb=2"))


def test_a_far_position_is_computed_by_itself() -> None:
    far = 10**12 + 5
    counts = Counter((mixture(PAPER, (50,) * 10).records(far, far + BLOCK) // 1_000_000).tolist())
    assert abs(counts[0] - 7000) <= 2
