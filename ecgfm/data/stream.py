"""Whole shards one after the other, from pipes and object stores, in an order of shards and blocks.

Random access to single records, which the indexed way lives on, costs a request each on a server. Here a rank reads
shards as a whole. An epoch of a database is a permutation of its shards, dealt into blocks of `--data.stream-block`
shards as equal as can be, and a permutation of all records within each block: what a shuffle buffer of that size would
give, but a pure function of (seed, position), known from the manifest before a byte is read. So it is the same for
any number of ranks, every rank has equal batches, and a run goes on by reading the block that it stands in once more,
of each database, and none before.

Each rank reads all shards of a block and keeps the windows of its own rows. With R ranks every byte is read R times:
the price of an order that does not depend on R. Ranks that divided the shards among themselves would read each once,
and another number of ranks would see other batches. Where the network is the limit, `--data.cache` fetches each shard
once a machine.

In memory are two blocks of each database, divided by the ranks, and a whole shard for each reader.

Every record's SHA-256 is compared, as its JSON says it: the signal came over a network. The bytes are cut by the
manifest's index; nothing is decoded, and no member but the two that it names is looked at.

Shapes: B windows of this rank, L leads, T samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.data.damage import ATTEMPTS, Replaced, Replacements, substitute
from ecgfm.data.labels import LabelTable
from ecgfm.data.mixture import BLOCK, Mixture, Source, purpose
from ecgfm.data.order import Epochs, window_starts_at
from ecgfm.errors import ShardError
from ecgfm.rng import generator
from ecgfm.shards.reader import Shards

ATTEMPTS_IN_A_BLOCK = 8
"""Substitutes of a damaged record come from its block, which was read just now; then from the next block."""


class BlockMixture(Mixture):
    """Says which record stands at each position of a streamed run.

    Args:
        parts: What is drawn from.
        seed: The run's seed.
        shard_of: The shard of each record.
        block_shards: Shards of a block.
    """

    def __init__(self, parts: Sequence[Source], seed: int, shard_of: NDArray[np.int64], block_shards: int) -> None:
        super().__init__(parts, seed)
        self.seed = seed
        self._block_shards = block_shards
        self._counts = {part.name: tuple(np.unique_counts(shard_of[part.records])[1].tolist()) for part in parts}

    def num_blocks(self, part: Source) -> int:
        """Return the blocks of an epoch."""
        return -(-len(self._counts[part.name]) // self._block_shards)

    def block_of(self, part: Source, place: int) -> int:
        """Return the block, counted over all epochs, that a place of a database is in."""
        epoch, rest = divmod(place, len(part.records))
        edges = self._epoch(part, epoch)[1]
        return epoch * self.num_blocks(part) + int(np.searchsorted(edges, rest, side="right")) - 1

    def block(self, part: Source, block: int) -> tuple[int, NDArray[np.int64]]:
        """Return the first place of a block, and its records in order."""
        epoch, number = divmod(block, self.num_blocks(part))
        rows, edges = self._epoch(part, epoch)
        first, last = int(edges[number]), int(edges[number + 1])
        return epoch * len(part.records) + first, part.records[rows[first:last]]

    def _epoch(self, part: Source, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _epoch(self.seed, purpose(part), epoch, self._counts[part.name], self._block_shards)

    def _rows(self, part: Source, first: int, last: int) -> NDArray[np.int64]:
        epoch, place = np.divmod(np.arange(first, last, dtype=np.int64), len(part.records))
        out = np.empty(last - first, dtype=np.int64)
        for number in np.unique(epoch):
            here = epoch == number
            out[here] = self._epoch(part, int(number))[0][place[here]]
        return out


_epochs: Epochs[tuple[NDArray[np.int64], NDArray[np.int64]]] = Epochs()


def _epoch(
    seed: int, word: str, epoch: int, counts: tuple[int, ...], block_shards: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of an epoch in order, and the places at which its blocks begin, and the end.

    Args:
        seed: The run's seed.
        word: Keeps the orders of databases apart.
        epoch: Of the database.
        counts: Records of each shard.
        block_shards: Shards of a block.
    """

    def draw() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.cumsum([0, *counts])
        drawn = generator(seed, f"shards, {word}", epoch).permutation(len(counts))
        rows, edges = [], [0]
        for number, shards in enumerate(np.array_split(drawn, -(-len(counts) // block_shards))):
            inside = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
            rows.append(generator(seed, f"records of a block, {word}", epoch, number).permutation(inside))
            edges.append(edges[-1] + len(inside))
        return np.concatenate(rows), np.asarray(edges)

    return _epochs.get((seed, word, counts, block_shards), epoch, draw)


@dataclass(frozen=True)
class _Wanted:
    """Windows to cut."""

    positions: NDArray[np.int64]
    records: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __getitem__(self, here: NDArray[np.bool_]) -> _Wanted:
        return _Wanted(self.positions[here], self.records[here], self.starts[here])


Windows = dict[int, tuple[int, NDArray[np.int16]]]
"""By position: the record, and its window, shape (12, T)."""
Damaged = list[tuple[int, int, ShardError]]
"""Position, record, and what is wrong with it."""


class Stream:
    """Reads the windows of a rank in the order of a `BlockMixture`.

    Args:
        shards: The records; their files need not be here.
        mixture: The order.
        read_shard: Returns the bytes of a shard; called from several threads.
        window_samples: T.
        micro_rows: Windows of a micro-batch over all ranks.
        rows: This rank's rows of a micro-batch, [first, last).
        readers: Shards that are read at once.
        replacements: Takes damaged records that others stand in for; None to stop at the first.
        labels: Learns the labels of each record that is read.
    """

    def __init__(
        self,
        shards: Shards,
        mixture: BlockMixture,
        *,
        read_shard: Callable[[int], memoryview],
        window_samples: int,
        micro_rows: int,
        rows: tuple[int, int],
        readers: int,
        replacements: Replacements | None,
        labels: LabelTable | None = None,
    ) -> None:
        self._shards, self._mixture = shards, mixture
        self._read_shard = read_shard
        self._samples = window_samples
        self._micro_rows, self._rows = micro_rows, rows
        self._replacements = replacements
        self._labels = labels
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="stream")
        self._expected = -1
        self._start = 0
        self._feeds: list[_Feed] = []

    def read(self, position: int, out: NDArray[np.int16]) -> NDArray[np.int64]:
        """Fill in the windows of the micro-batch that begins at `position`, and return their records.

        Micro-batches that follow each other are cheap; any other begins its blocks anew.

        Args:
            position: Of the micro-batch's first row over all ranks.
            out: Shape (B, 12, T).

        Raises:
            ShardError: A shard or record cannot be read or is damaged.
        """
        if position != self._expected:
            self._begin(position)
        first, last = position + self._rows[0], position + self._rows[1]
        which, place = self._mixture.draw(first, last)
        index = np.empty(last - first, dtype=np.int64)
        for row, (part, at) in enumerate(zip(which.tolist(), place.tolist(), strict=True)):
            index[row], out[row] = self._feeds[part].take(first + row, at)
        self._expected = position + self._micro_rows
        return index

    def close(self, stop: Callable[[], None]) -> None:
        """End reading ahead, and leave no thread of it; `stop` ends what `read_shard` waits for."""
        self._pool.shutdown(wait=False, cancel_futures=True)  # first, so that nothing new begins
        stop()
        self._pool.shutdown()

    def _begin(self, position: int) -> None:
        self._start = position
        which, place = self._mixture.draw(position, position + 2 * BLOCK)  # holds every database
        self._feeds = []
        for number, part in enumerate(self._mixture.parts):
            block = self._mixture.block_of(part, int(place[which == number][0]))
            self._feeds.append(_Feed(self, number, block))

    def block_of(self, number: int, place: int) -> int:
        """Return the block that a place of a database is in."""
        return self._mixture.block_of(self._mixture.parts[number], place)

    def submit(self, number: int, block: int) -> list[Future[tuple[Windows, Damaged]]]:
        """Begin to read a block of a database: what this rank needs of each of its shards."""
        part = self._mixture.parts[number]
        first, records = self._mixture.block(part, block)
        positions = self._mixture.positions(number, first, first + len(records))
        row = (positions - self._start) % self._micro_rows
        mine = (positions >= self._start) & (row >= self._rows[0]) & (row < self._rows[1])
        return [self._pool.submit(self._cut, *job) for job in self._jobs(positions[mine], records[mine])]

    def replace(self, number: int, block: int, damaged: Damaged) -> Windows:
        """Return other windows for damaged ones, from the same block, and where all of it is damaged from the next.

        Raises:
            ShardError: Damage is not to be passed over, or there is nothing else.
        """
        part, found = self._mixture.parts[number], Windows()
        if not damaged:
            return found
        if self._replacements is None:
            raise damaged[0][2]
        first = {position: (record, error) for position, record, error in damaged}
        left = sorted(first)
        epoch, start = divmod(block, self._mixture.num_blocks(part))
        for attempt in range(ATTEMPTS):
            if not left:
                break
            near = (start + attempt // ATTEMPTS_IN_A_BLOCK) % self._mixture.num_blocks(part)
            pool = np.sort(self._mixture.block(part, epoch * self._mixture.num_blocks(part) + near)[1])
            tried = [substitute(self._mixture.seed, position, attempt, pool) for position in left]
            for future in [
                self._pool.submit(self._cut, *job) for job in self._jobs(np.asarray(left), np.asarray(tried))
            ]:
                found |= future.result()[0]
            left = [position for position in left if position not in found]
        if left:
            raise ShardError(f"{first[left[0]][1]}; and {ATTEMPTS} records in its place are damaged too")
        for position, (record, error) in first.items():
            self._replacements.add(
                Replaced(
                    position=position,
                    shard=self._shards.path(int(self._shards.shard_of[record])).name,
                    record=self._shards.name(record),
                    by=self._shards.name(found[position][0]),
                    reason=str(error),
                )
            )
        return found

    def _jobs(self, positions: NDArray[np.int64], records: NDArray[np.int64]) -> list[tuple[int, _Wanted]]:
        """Return what is to be cut from each shard, in the order in which it is needed."""
        room = self._shards.num_samples[records] - self._samples
        wanted = _Wanted(positions, records, window_starts_at(self._mixture.seed, positions, room))
        shard_of = self._shards.shard_of[records]
        return [(shard, wanted[shard_of == shard]) for shard in dict.fromkeys(shard_of.tolist())]

    def _cut(self, shard: int, wanted: _Wanted) -> tuple[Windows, Damaged]:
        """Read a shard, and return the wanted windows and what is damaged of them."""
        rows = zip(wanted.positions.tolist(), wanted.records.tolist(), wanted.starts.tolist(), strict=True)
        windows, damaged = Windows(), Damaged()
        try:
            content = self._read_shard(shard)
            if len(content) != self._shards.num_bytes(shard) and self._replacements is None:
                raise self._cut_short(shard, len(content))
        except ShardError as error:
            return windows, [(position, record, error) for position, record, _ in rows]
        for position, record, start in rows:
            try:
                counts_LT = self._shards.cut(record, content)
                if self._labels:
                    self._labels.learn(record, content)
            except ShardError as error:
                whole = len(content) == self._shards.num_bytes(shard)
                damaged.append((position, record, error if whole else self._cut_short(shard, len(content))))
            else:
                windows[position] = record, counts_LT[:, start : start + self._samples].copy()
        return windows, damaged

    def _cut_short(self, shard: int, size: int) -> ShardError:
        return ShardError(
            f"{self._shards.path(shard).name} came with {size:,} bytes, its manifest says "
            f"{self._shards.num_bytes(shard):,}: it is cut; restore it where it comes from"
        )


class _Feed:
    """The windows of one database, one block of them ready and the next on its way."""

    def __init__(self, stream: Stream, part: int, block: int) -> None:
        self._stream, self._part = stream, part
        self._block = block
        self._coming = deque([stream.submit(part, block)])
        self._ready: Windows = {}

    def take(self, position: int, place: int) -> tuple[int, NDArray[np.int16]]:
        """Return the record and the window at a position, and forget it."""
        if position not in self._ready:
            for _ in range(self._block, self._stream.block_of(self._part, place) + 1):
                self._load()
        return self._ready.pop(position)

    def _load(self) -> None:
        """Wait for the block that comes, and begin the one after it."""
        self._coming.append(self._stream.submit(self._part, self._block + 1))
        damaged = Damaged()
        for future in self._coming.popleft():
            windows, bad = future.result()
            self._ready |= windows
            damaged += bad
        self._ready |= self._stream.replace(self._part, self._block, damaged)
        self._block += 1
