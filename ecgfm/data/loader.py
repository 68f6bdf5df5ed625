"""Batches of int16 windows from shards, in the run's order, one thread ahead of the step.

The host copies bytes and computes nothing: a window is twelve slices of a memory map. A page that is not
in memory is read by the kernel while the copy waits, without Python's lock. Or whole shards are streamed, from
wherever they are: see `ecgfm.data.stream`.

A record that is damaged stops the run, or another one takes its place: see `ecgfm.data.damage`. What a memory map
looks at costs a microsecond a record: whether the file still has its size, and what stands before the numbers. The
SHA-256 of a ten-second record costs 70 microseconds, eight times its copy, and is compared on demand.

Shapes: B windows of this rank, L leads, T samples.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.damage import ATTEMPTS, Replaced, Replacements, substitute
from ecgfm.data.labels import LabelTable
from ecgfm.data.mixture import Mixture, sources
from ecgfm.data.order import window_starts, window_starts_at
from ecgfm.data.stream import BlockMixture, Stream
from ecgfm.errors import ConfigError, ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """How whole shards are read."""

    read_shard: Callable[[int], memoryview]
    """Returns the bytes of a shard by its number; called from several threads."""
    block_shards: int = 8
    """Shards that are shuffled together."""
    readers: int = 4
    """Shards that are read at once."""
    stop: Callable[[], None] = lambda: None
    """Ends what `read_shard` is waiting for."""


class Loader:
    """Yields this rank's micro-batches, in order, without end.

    Args:
        shards: The records.
        window_samples: T.
        batch_size: Windows of an optimizer step over all ranks.
        accumulation: Micro-batches of an optimizer step.
        rank: This rank.
        world_size: Ranks in all.
        seed: The run's seed.
        position: Records that the run has seen.
        exclude_flags: Quality flags; records that have one are not read.
        weights: How often each database is drawn; in proportion to its records when empty.
        pin_memory: Give page-locked memory, from which a GPU copies without waiting.
        streaming: Read whole shards, in an order of blocks; by default single records are read, in an order of all.
        skip_damaged: Read another record for one that is damaged.
        check_records: Compare the SHA-256 of each record; of streamed ones it always is.
        labels: Give the batches these labels; none by default.
        person_N: Tell the batches whose each record is; nothing by default.

    Raises:
        ConfigError: No record may be used, or the batch cannot be split evenly.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        window_samples: int,
        batch_size: int,
        accumulation: int,
        rank: int,
        world_size: int,
        seed: int,
        position: int = 0,
        exclude_flags: Sequence[str] = (),
        weights: dict[str, float] | None = None,
        pin_memory: bool = False,
        streaming: Streaming | None = None,
        skip_damaged: bool = False,
        check_records: bool = False,
        labels: LabelTable | None = None,
        person_N: NDArray[np.int64] | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % (world_size * accumulation):
            raise ConfigError(
                f"--data.batch-size {batch_size} is not a multiple of {world_size} ranks x "
                f"--engine.accumulation {accumulation}"
            )
        self.shards = shards
        self.records = usable_records(shards, window_samples, exclude_flags)
        parts = sources(shards, self.records, weights or {})
        self.window_samples = window_samples
        self.micro_rows = batch_size // accumulation
        rows = self.micro_rows // world_size
        self.rows = (rank * rows, (rank + 1) * rows)
        self.seed = seed
        self.position = position
        self.pin_memory = pin_memory
        self.replacements = Replacements() if skip_damaged else None
        self._check_records = check_records
        self._labels = labels
        self._person_N = person_N
        self.streaming = streaming
        self._stream: Stream | None = None
        self.mixture = Mixture(parts, seed)
        if streaming:
            mixture = BlockMixture(parts, seed, shards.shard_of, streaming.block_shards)
            self.mixture = mixture
            self._stream = Stream(
                shards,
                mixture,
                read_shard=streaming.read_shard,
                window_samples=window_samples,
                micro_rows=self.micro_rows,
                rows=self.rows,
                readers=streaming.readers,
                replacements=self.replacements,
                labels=labels,
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches that a thread of its own prepares; closing the iterator ends it."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        stop = threading.Event()

        def work() -> None:
            position = self.position
            try:
                while not stop.is_set():
                    batch = self.read(position)
                    position += self.micro_rows
                    _put(ready, batch, stop)
            except BaseException as error:
                _put(ready, error, stop)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while True:
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            stop.set()
            if self.streaming and self._stream:
                self._stream.close(self.streaming.stop)
            thread.join()

    def read(self, position: int) -> Batch:
        """Return this rank's rows of the micro-batch that begins at `position`."""
        shape = (self.rows[1] - self.rows[0], len(LEADS), self.window_samples)
        signal_BLT = torch.empty(shape, dtype=torch.int16, pin_memory=self.pin_memory)
        if self._stream:
            index = self._stream.read(position, signal_BLT.numpy())
        else:
            index = self._copy(position + self.rows[0], position + self.rows[1], signal_BLT.numpy())
        return Batch(
            signal_BLT=signal_BLT,
            microvolt_per_count_B=torch.from_numpy(self.shards.microvolt_per_count[index]),
            database_B=torch.from_numpy(self.shards.folder_of[index]),
            labels_BC=self._labels.rows(index) if self._labels else None,
            patient_B=torch.from_numpy(self._person_N[index]) if self._person_N is not None else None,
        )

    def blank(self) -> Batch:
        """Return a micro-batch of this rank's size that holds zeros."""
        rows = self.rows[1] - self.rows[0]
        return Batch(
            signal_BLT=torch.zeros(rows, len(LEADS), self.window_samples, dtype=torch.int16),
            microvolt_per_count_B=torch.ones(rows),
            database_B=torch.zeros(rows, dtype=torch.int64),
            labels_BC=torch.full((rows, len(self._labels.names)), torch.nan) if self._labels else None,
            patient_B=torch.zeros(rows, dtype=torch.int64) if self._person_N is not None else None,
        )

    def _copy(self, first: int, last: int, out: NDArray[np.int16]) -> NDArray[np.int64]:
        """Fill in the windows at positions [first, last), shape (B, 12, T), and return their records."""
        index, starts = self.windows(first, last)
        for row, (record, start) in enumerate(zip(index.tolist(), starts.tolist(), strict=True)):
            try:
                self._copy_window(record, start, out[row])
            except ShardError as error:
                if self.replacements is None:
                    raise
                index[row] = self._replace(first + row, record, error, out[row], self.replacements)
        return index

    def _copy_window(self, record: int, start: int, out_LT: NDArray[np.int16]) -> None:
        self.shards.check(record, hashed=self._check_records)
        if self._labels:
            self._labels.learn(record)
        out_LT[:] = self.shards.counts(record)[:, start : start + self.window_samples]

    def _replace(
        self, position: int, record: int, error: ShardError, out_LT: NDArray[np.int16], replacements: Replacements
    ) -> int:
        """Copy another record's window to where a damaged one's belongs, and return which."""
        pool = self.mixture.parts[int(self.mixture.draw(position, position + 1)[0][0])].records
        for attempt in range(ATTEMPTS):
            other = substitute(self.seed, position, attempt, pool)
            room = self.shards.num_samples[[other]] - self.window_samples
            try:
                self._copy_window(other, int(window_starts_at(self.seed, np.array([position]), room)[0]), out_LT)
            except ShardError:
                continue
            shard = self.shards.path(int(self.shards.shard_of[record])).name
            names = self.shards.name(record), self.shards.name(other)
            replacements.add(Replaced(position, shard, *names, str(error)))
            return other
        raise ShardError(f"{error}; and {ATTEMPTS} records in its place are damaged too")

    def windows(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the record at each position of [first, last), and the sample that its window begins at."""
        index = self.mixture.records(first, last)
        room = self.shards.num_samples[index] - self.window_samples
        return index, window_starts(self.seed, first, last, room)


def usable_records(shards: Shards, window_samples: int, exclude_flags: Sequence[str] = ()) -> NDArray[np.int64]:
    """Return the records that pretraining may use: of its splits, as long as a window, and without certain flags.

    Raises:
        ConfigError: There is none; the message says how many fail which condition.
    """
    allowed = np.isin(shards.split_of, PRETRAINING_SPLITS)
    long_enough = shards.num_samples >= window_samples
    good = ~shards.flagged(exclude_flags)
    found = np.flatnonzero(allowed & long_enough & good)
    if not len(found):
        raise ConfigError(
            f"no record to pretrain on among {len(shards)} of {', '.join(map(str, shards.folders))}: "
            f"{(~allowed).sum()} are of splits other than {' and '.join(PRETRAINING_SPLITS)}, "
            f"{(allowed & ~long_enough).sum()} are shorter than --data.window-s, "
            f"{(allowed & long_enough & ~good).sum()} have a flag of --data.exclude-flags"
        )
    return found


def _put(ready: queue.Queue[Batch | BaseException], item: Batch | BaseException, stop: threading.Event) -> None:
    """Wait for room in the queue, or for the end."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return
