"""Databases by weight, each in epochs of its own, as a pure function of (seed, position).

A run sees positions 0, 1, 2, ... With weights, positions come in blocks of 10,000: each block holds every database as
often as its weight says, to two records and without drifting over the blocks, in an order drawn for the block. The
k-th record of a database is that of its own endless row of permutations. So any range of positions can be computed by
itself: a resumed run needs one number, and the number of ranks changes nothing.

Without weights all records are one database, drawn evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecgfm.data.order import order
from ecgfm.errors import ConfigError
from ecgfm.rng import generator
from ecgfm.shards.reader import Shards

BLOCK = 10_000
LEAST_SHARE = 0.0002
"""Two records of a block: below, a block might hold none."""
_EVERYTHING = "order"


@dataclass(frozen=True)
class Source:
    """Records that are drawn evenly among themselves."""

    name: str
    records: NDArray[np.int64]
    """Numbers of the records in the shards."""
    share: Fraction
    """Of all positions; the shares of a mixture add up to 1."""


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """Return the weights that are written as `name=weight`.

    Raises:
        ConfigError: One is not, is named twice, or is not above 0.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not (equals and name and 0.0 < weight < 1e9):
            raise ConfigError(f"--data.weights {word}: write a database and a number above 0, such as code-15=0.1")
        if name in weights:
            raise ConfigError(f"--data.weights names {name} twice")
        weights[name] = weight
    return weights


def sources(shards: Shards, records: NDArray[np.int64], weights: dict[str, float]) -> tuple[Source, ...]:
    """Return what a run draws from: the databases by weight, or all records as one.

    Args:
        shards: The shards.
        records: Numbers of the records that may be drawn.
        weights: By database; those of databases that are not among the shards do not count.

    Raises:
        ConfigError: A database has no weight or no record, or its share is too small.
    """
    if not weights:
        return (Source(_EVERYTHING, records, Fraction(1)),)
    names = np.array([manifest.database for manifest in shards.manifests])
    database_of = names[shards.folder_of[records]]
    present = list(dict.fromkeys(names.tolist()))
    without = [name for name in present if name not in weights]
    if without:
        raise ConfigError(
            f"--data.weights says nothing of {', '.join(without)}: give it a weight, such as {without[0]}=0.1, or "
            "leave its shards out"
        )
    exact = {name: Fraction(weights[name]).limit_denominator(1_000_000) for name in present}
    found = []
    for name in present:
        share = exact[name] / sum(exact.values())
        own = records[database_of == name]
        if not len(own):
            raise ConfigError(f"--data.weights gives {name} {weights[name]:g}, and none of its records can be used")
        if share < LEAST_SHARE:
            raise ConfigError(f"--data.weights gives {name} a share of {float(share):.2g}, below {LEAST_SHARE:g}")
        found.append(Source(name, own, share))
    return tuple(found)


class Mixture:
    """Says which record stands at each position.

    Args:
        parts: What is drawn from.
        seed: The run's seed.
    """

    def __init__(self, parts: Sequence[Source], seed: int) -> None:
        assert sum(part.share for part in parts) == 1
        self.parts = tuple(parts)
        self._seed = seed
        edges = [Fraction(0)]
        for part in parts:
            edges.append(edges[-1] + part.share)
        self._edges = tuple(edges)

    def records(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the numbers of the records at positions [first, last)."""
        if len(self.parts) == 1:
            (part,) = self.parts
            return part.records[self._rows(part, first, last)]
        which, place = self.draw(first, last)
        out = np.empty(last - first, dtype=np.int64)
        for number, part in enumerate(self.parts):
            here = which == number
            if here.any():
                # Places of a database follow each other without a gap, over blocks too.
                places = place[here]
                out[here] = part.records[self._rows(part, int(places[0]), int(places[-1]) + 1)]
        return out

    def epochs(self, positions: int) -> dict[str, float]:
        """Return how often each database has been gone through after so many positions."""
        return {part.name: float(part.share * positions / len(part.records)) for part in self.parts}

    def draw(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the database at each of the positions [first, last), and which of its places it is."""
        if len(self.parts) == 1 or first == last:
            return np.zeros(last - first, dtype=np.int64), np.arange(first, last, dtype=np.int64)
        blocks = range(first // BLOCK, (last - 1) // BLOCK + 1)
        drawn = [_block(self._seed, self._edges, block) for block in blocks]
        inside = slice(first - blocks[0] * BLOCK, last - blocks[0] * BLOCK)
        which, place = (np.concatenate(columns)[inside] for columns in zip(*drawn, strict=True))
        return which, place

    def positions(self, part: int, first: int, last: int) -> NDArray[np.int64]:
        """Return the positions at which places [first, last) of a database stand, ascending."""
        if len(self.parts) == 1:
            return np.arange(first, last, dtype=np.int64)

        def before(block: int) -> int:
            return round(self._edges[part + 1] * BLOCK * block) - round(self._edges[part] * BLOCK * block)

        block = int(first / (self.parts[part].share * BLOCK))
        # Rounding moves a place over a block's edge by two at most, and each block has at least one.
        block = max(block - 3, 0)
        while before(block + 1) <= first:
            block += 1
        start, found = before(block), []
        while before(block) < last:
            found.append(np.flatnonzero(_block(self._seed, self._edges, block)[0] == part) + block * BLOCK)
            block += 1
        return np.concatenate(found)[first - start : last - start] if found else np.zeros(0, dtype=np.int64)

    def _rows(self, part: Source, first: int, last: int) -> NDArray[np.int64]:
        """Return which of a database's records stand at its places [first, last)."""
        return order(self._seed, len(part.records), first, last, purpose(part))


@lru_cache(maxsize=4)
def _block(seed: int, edges: tuple[Fraction, ...], block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return database and place of each position of a block."""
    # Records of each database before this block and before the next: rounded running sums never drift.
    before, after = (np.diff([round(edge * BLOCK * number) for edge in edges]) for number in (block, block + 1))
    counts = after - before
    which = np.repeat(np.arange(len(counts)), counts)
    generator(seed, "databases of a block", block).shuffle(which)
    place = np.empty(BLOCK, dtype=np.int64)
    for number, count in enumerate(counts):
        place[which == number] = before[number] + np.arange(count)
    return which, place


def purpose(part: Source) -> str:
    """Return the word that keeps the orders of databases apart."""
    return part.name if part.name == _EVERYTHING else f"order of {part.name},"
