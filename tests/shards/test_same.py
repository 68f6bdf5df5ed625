"""The search finds every pair of fingerprints within the distance, and does not explode where many are equal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards import same
from ecgfm.shards.same import find_same, match

Rows = NDArray[np.uint8]


def flipped(row: Rows, count: int, random: np.random.Generator) -> Rows:
    bits = np.unpackbits(row)
    bits[random.choice(384, count, replace=False)] ^= 1
    return np.packbits(bits)


@pytest.fixture
def rows() -> Rows:
    """Return 800 random fingerprints, and 200 that are 0 to 48 bits away from one of them."""
    random = np.random.default_rng(0)
    strangers = random.integers(0, 256, (800, 48), dtype=np.uint8)
    near = [flipped(strangers[index], index % 49, random) for index in range(200)]
    return np.concatenate([strangers, near])[random.permutation(1000)]


def brute(left: Rows, right: Rows) -> NDArray[np.int64]:
    """Return all distances, by another way than counting bits of words."""
    one, other = (np.unpackbits(rows, axis=1).astype(np.float64) for rows in (left, right))
    return np.rint(one @ (1 - other).T + (1 - one) @ other.T).astype(np.int64)


@pytest.mark.parametrize("most", [0, 1, 8, 36, 48])
def test_every_pair_within_the_distance_is_found_and_no_other(rows: Rows, most: int) -> None:
    # Two that are the same are 0 bits apart: such copies come with the first of them alone, and here there are only
    # pairs, so that this makes no difference.
    distance = np.triu(brute(rows, rows) + 1, 1)
    wanted = np.argwhere((distance > 0) & (distance <= most + 1))
    np.testing.assert_array_equal(find_same(rows, most), wanted)


@pytest.mark.parametrize("most", [0, 36])
def test_the_nearest_on_the_other_side_is_found(rows: Rows, most: int) -> None:
    left, right = rows[:300], rows[300:]
    distance = brute(left, right)
    for one, other, by_row in ((left, right, distance), (right, left, distance.T)):
        nearest, bits = match(one, other, most)
        np.testing.assert_array_equal(nearest >= 0, by_row.min(axis=1) <= most)
        found = nearest >= 0
        np.testing.assert_array_equal(bits[found], by_row.min(axis=1)[found])
        np.testing.assert_array_equal(by_row[found, nearest[found]], bits[found])


def test_a_thousand_copies_are_linked_and_not_paired_with_each_other(rows: Rows) -> None:
    copies = np.concatenate([rows[:5], np.repeat(rows[5:6], 1000, axis=0)])
    pairs = find_same(copies, 0)
    np.testing.assert_array_equal(pairs, [[5, other] for other in range(6, 1005)])
    nearest, bits = match(rows[4:6], copies, 36)
    np.testing.assert_array_equal(nearest, [4, 5])
    np.testing.assert_array_equal(bits, [0, 0])


def test_the_many_that_resemble_one_are_all_found_in_small_blocks(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    # One bucket holds hundreds: candidates come in several blocks, some of one row alone.
    monkeypatch.setattr(same, "_BLOCK", 100)
    random = np.random.default_rng(1)
    crowd = np.stack([flipped(rows[0], 2, random) for _ in range(150)])
    distance = np.triu(brute(crowd, crowd) + 1, 1)
    different = (distance > 1) & (distance <= 9)
    pairs = find_same(crowd, 8)
    assert {tuple(pair) for pair in np.argwhere(different)} <= {tuple(pair) for pair in pairs}
    assert distance[tuple(pairs.T)].max() <= 9


def test_too_many_pairs_are_an_error_and_not_a_full_memory(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "_MOST_PAIRS", 100)
    random = np.random.default_rng(1)
    with pytest.raises(ShardError, match="nearly the same"):
        find_same(np.stack([flipped(rows[0], 2, random) for _ in range(150)]), 8)


def test_nothing_is_the_same_as_nothing(rows: Rows) -> None:
    none = np.empty((0, 48), dtype=np.uint8)
    assert find_same(none).shape == find_same(rows[:1]).shape == (0, 2)
    np.testing.assert_array_equal(match(rows[:3], none)[0], [-1, -1, -1])
    assert match(none, rows)[0].shape == (0,)


def test_a_distance_that_cannot_be_searched_is_refused(rows: Rows) -> None:
    for most in (-1, 49):
        with pytest.raises(ConfigError, match="--threshold"):
            find_same(rows, most)


def test_progress_ends_when_all_is_done(rows: Rows) -> None:
    seen: list[tuple[int, int]] = []
    find_same(rows, 36, lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] > 1
