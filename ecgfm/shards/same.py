"""Find fingerprints that are nearly the same among a million, exactly.

Two fingerprints that differ in at most k bits, cut into k // 2 + 1 chunks, differ in at most one bit in one of the
chunks at least (pigeonhole). So for each chunk the fingerprints are sorted into buckets by its value, and each is
compared with those in its own bucket and in those that are one bit away (multi-index hashing: Norouzi, Punjani, Fleet
2012, https://arxiv.org/abs/1307.2982, section 3). No pair is missed; fingerprints that are equal to the last bit are
compared as one.

Shapes: N, M fingerprints, B bytes of each, W words of 8 bytes, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError, ShardError
from ecgfm.rng import generator
from ecgfm.signal.fingerprint import SAME_BITS, allowed_bits

LARGEST_BITS = 48
"""Beyond this, chunks are so short and buckets so full that a million records would take hours."""
# Wider chunks have emptier buckets, but the table of their starts (2**20 numbers) no longer stays in the cache.
_CHUNK_BITS = 20
# Candidates that are compared at one time: some 200 MB.
_BLOCK = 1 << 22
_MOST_PAIRS = 20_000_000
# Words in which candidates are compared first. Strangers differ in some 60 of their 128 bits, so few are left.
_FIRST_WORDS = 2

Progress = Callable[[int, int], None]
Index = NDArray[np.int64]


def find_same(
    fingerprints_NB: NDArray[np.uint8],
    most: int = SAME_BITS,
    progress: Progress = lambda done, total: None,
) -> Index:
    """Return the pairs of fingerprints that are of one recording, shape (P, 2), the lower index first.

    Fingerprints that are equal to the last bit come as pairs with the first of them alone, and others as pairs with
    that first one: a thousand copies of one recording are 999 pairs and not half a million.

    Args:
        fingerprints_NB: From `ecgfm.signal.fingerprint.to_bytes`.
        most: Bits in which two may differ; fewer for rhythms like clockwork, see `allowed_bits`.
        progress: Called with the chunks done and the chunks in all.

    Raises:
        ConfigError: `most` is below 0 or above 48.
        ShardError: Millions of pairs are found: these are not fingerprints of different recordings.
    """
    unique_NB, first, which = _unique(fingerprints_NB)
    pairs_P2 = _allowed(_near(unique_NB, None, most, progress), unique_NB, unique_NB, most)
    copies = np.flatnonzero(first[which] != np.arange(len(which)))
    pairs_P2 = np.concatenate([first[pairs_P2], np.stack([first[which[copies]], copies], axis=1)])
    pairs_P2.sort(axis=1)
    return np.unique(pairs_P2, axis=0)


def match(
    left_NB: NDArray[np.uint8],
    right_MB: NDArray[np.uint8],
    most: int = SAME_BITS,
    progress: Progress = lambda done, total: None,
) -> tuple[Index, Index]:
    """Return for each fingerprint on the left the nearest on the right that is of the same recording.

    Args:
        left_NB: From `ecgfm.signal.fingerprint.to_bytes`.
        right_MB: Likewise.
        most: As for `find_same`.
        progress: Likewise.

    Returns:
        Index on the right, or -1 where there is none, shape (N,); and the bits that differ, shape (N,).

    Raises:
        ConfigError: As for `find_same`.
        ShardError: As for `find_same`.
    """
    left_UB, _, which = _unique(left_NB)
    right_UB, first, _ = _unique(right_MB)
    # Fast is to look up the fewer among the many.
    if len(left_UB) <= len(right_UB):
        pairs_P2 = _near(left_UB, right_UB, most, progress)
    else:
        pairs_P2 = _near(right_UB, left_UB, most, progress)[:, ::-1]
    pairs_P2 = _allowed(pairs_P2, left_UB, right_UB, most)
    bits_P = np.bitwise_count(left_UB[pairs_P2[:, 0]] ^ right_UB[pairs_P2[:, 1]]).sum(axis=1, dtype=np.int64)
    order = np.lexsort((first[pairs_P2[:, 1]], bits_P))[::-1]  # the nearest is written last
    nearest, bits = np.full(len(left_UB), -1), np.zeros(len(left_UB), dtype=np.int64)
    nearest[pairs_P2[order, 0]] = first[pairs_P2[order, 1]]
    bits[pairs_P2[order, 0]] = bits_P[order]
    return nearest[which], bits[which]


def _unique(fingerprints_NB: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Index, Index]:
    """Return the different fingerprints, where each stands first, and which of them each of the N is."""
    rows = np.ascontiguousarray(fingerprints_NB)
    as_one = rows.view(np.dtype((np.void, rows.shape[1])))[:, 0] if len(rows) else np.empty(0, np.void)
    _, first, which = np.unique(as_one, return_index=True, return_inverse=True)
    return rows[first], first, which


def _allowed(pairs_P2: Index, left: NDArray[np.uint8], right: NDArray[np.uint8], most: int) -> Index:
    """Return the pairs that differ in no more bits than the rhythm of either allows."""
    one, other = left[pairs_P2[:, 0]], right[pairs_P2[:, 1]]
    bits_P = np.bitwise_count(one ^ other).sum(axis=1, dtype=np.int64)
    near_P = bits_P <= np.minimum(allowed_bits(one, most), allowed_bits(other, most))
    return np.asarray(pairs_P2[near_P])


def _near(left_NB: NDArray[np.uint8], right_MB: NDArray[np.uint8] | None, most: int, progress: Progress) -> Index:
    """Return all pairs (left, right) within `most` bits, or all (left, left) with the lower first; without copies."""
    if not 0 <= most <= LARGEST_BITS:
        raise ConfigError(
            f"--threshold {most}: give the bits in which two fingerprints may differ, 0 to {LARGEST_BITS}"
        )
    right = left_NB if right_MB is None else right_MB
    if not len(left_NB) or not len(right):
        return np.empty((0, 2), dtype=np.int64)
    left_WN, right_WM = _words(left_NB), _words(right)
    every = np.concatenate([left_NB[:1], right[:1]])
    low, high = np.bitwise_and.reduce(every), np.bitwise_or.reduce(every)
    for rows in (left_NB, right):
        low, high = low & np.bitwise_and.reduce(rows), high | np.bitwise_or.reduce(rows)
    # Bits that are the same everywhere (the padding) would only fill buckets.
    varying = np.flatnonzero(np.unpackbits(low ^ high))
    # Neighbouring bits depend on each other, and so do those a beat apart: any fixed mixture parts them. What is
    # found does not depend on it.
    mixed = generator(0, "chunks").permutation(varying)
    chunks = np.array_split(mixed, max(most // 2 + 1, -(-len(varying) // _CHUNK_BITS)))
    left_BN = np.ascontiguousarray(left_NB.T)
    right_BM = left_BN if right_MB is None else np.ascontiguousarray(right.T)
    found: list[Index] = []
    for done, chunk in enumerate(chunks):
        progress(done, len(chunks))
        values_N = _values(left_BN, chunk)
        buckets = _Buckets(values_N if right_MB is None else _values(right_BM, chunk), len(chunk))
        for i, j in buckets.candidates(values_N, itself=right_MB is None):
            for words in (slice(0, _FIRST_WORDS), slice(None)):
                bits = np.bitwise_count(left_WN[words][:, i] ^ right_WM[words][:, j]).sum(axis=0, dtype=np.uint16)
                i, j = i[bits <= most], j[bits <= most]
            found.append(np.stack([i, j], axis=1))
        if sum(map(len, found)) > _MOST_PAIRS:
            raise ShardError(
                f"more than {_MOST_PAIRS:,} pairs of {len(right):,} recordings are nearly the same: a database holds "
                "one signal many times, or --threshold is too high; compare fewer folders to see which"
            )
    progress(len(chunks), len(chunks))
    pairs_P2 = np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)
    if right_MB is None:
        pairs_P2.sort(axis=1)
    return np.unique(pairs_P2, axis=0)


class _Buckets:
    """Fingerprints sorted by the value of one chunk.

    Args:
        values: Of all M, shape (M,).
        width: Bits of the chunk.
    """

    def __init__(self, values: Index, width: int) -> None:
        self.width = width
        self.order = np.argsort(values, kind="stable")
        self.start = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << width))])

    def candidates(self, values: Index, *, itself: bool) -> Iterator[tuple[Index, Index]]:
        """Yield blocks of pairs whose chunks differ in at most one bit.

        Args:
            values: Of the other side, shape (N,); with `itself`, those that were sorted.
            itself: The two sides are one; each pair comes once then.
        """
        place = np.arange(len(values))
        yield from self._expanded(
            self.order if itself else place,
            place + 1 if itself else self.start[values],
            self.start[values[self.order] + 1] if itself else self.start[values + 1],
        )
        for bit in range(self.width):
            here = np.flatnonzero((values >> bit) & 1 == 0) if itself else place
            near = values[here] ^ (1 << bit)
            yield from self._expanded(here, self.start[near], self.start[near + 1])

    def _expanded(self, index: Index, start: Index, stop: Index) -> Iterator[tuple[Index, Index]]:
        """Yield the pairs of each index with all that stand from its start to its stop in `order`."""
        some = stop > start
        index, start, count = index[some], start[some], (stop - start)[some]
        ends = np.cumsum(count)
        first = 0
        while first < len(index):
            before = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, before + _BLOCK, side="right")), first + 1)
            counts = count[first:last]
            # Consecutive numbers, shifted for each index so that its own begin at its start.
            shift = start[first:last] - (ends[first:last] - counts - before)
            places = np.arange(ends[last - 1] - before) + np.repeat(shift, counts)
            yield np.repeat(index[first:last], counts), self.order[places]
            first = last


def _words(rows_NB: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return shape (W, N)."""
    return np.ascontiguousarray(np.ascontiguousarray(rows_NB).view(np.uint64).T)


def _values(rows_BN: NDArray[np.uint8], bits: Index) -> Index:
    """Return the given bits of each fingerprint as one number."""
    values = np.zeros(rows_BN.shape[1], dtype=np.int64)
    for place, bit in enumerate(bits):
        values |= ((rows_BN[bit >> 3] >> (7 - (bit & 7))) & 1).astype(np.int64) << place
    return values
