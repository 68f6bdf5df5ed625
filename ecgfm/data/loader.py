"""Batches of int16 windows from shards, in the run's order, some of them ahead of the step.

The host copies bytes and computes nothing: a window is twelve slices of a memory map, copied without Python's lock into
memory that is used again and again (`ecgfm.data.buffers`). Threads read a batch each, and hand them out in order; for a
GPU they also begin the copy to it, on a stream of their own, so that a batch is there before the step asks for it. Or
whole shards are streamed, from wherever they are: see `ecgfm.data.stream`.

A disk or file server that has to look for the bytes is asked for them early: for the next 64 MB of records, sorted by
shard and place, which changes when they are read and not their order in the run. While the page cache has them all,
only four records of a batch are asked about.

A record that is damaged stops the run, or another one takes its place: see `ecgfm.data.damage`. What a memory map
looks at costs half a microsecond a record: whether the file still has its size, and what stands before the numbers. The
SHA-256 of a ten-second record costs 70 microseconds, eight times its copy, and is compared on demand.

Shapes: B windows of this rank, L leads, T samples.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.buffers import Buffers
from ecgfm.data.damage import ATTEMPTS, Replaced, Replacements, substitute
from ecgfm.data.labels import LabelTable
from ecgfm.data.mixture import Mixture, sources
from ecgfm.data.order import window_starts, window_starts_at
from ecgfm.data.stream import BlockMixture, Stream
from ecgfm.errors import ConfigError, ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.reader import Shards

READ_AHEAD_BYTES = 64 << 20
"""What the system is asked to read before a batch needs it, where it does not have it."""
PLANNED = 8192
"""Positions whose records and windows are found at once: numpy and the generator cost 50 microseconds a call."""
PLANS = 3
"""Such pieces of the order that are kept."""
MOST_RANKS_PLANNED = 8
"""A plan is for all ranks; beyond that each finds its own rows of a batch alone."""


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
        threads: That read batches at once; by default two where a GPU waits, and one where the step needs the same
            processor. Streams have readers of their own, and take one.

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
        threads: int | None = None,
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
        self._buffers = Buffers((rows, len(LEADS), window_samples), pin_memory=pin_memory)
        self._threads = 1 if streaming else threads or (2 if pin_memory else 1)
        record_bytes = 2 * len(LEADS) * int(shards.num_samples[self.records].max())
        ahead = min(READ_AHEAD_BYTES // (record_bytes * rows), PLANNED // self.micro_rows)
        self._batches_ahead = max(ahead, 1)
        self._plan = world_size <= MOST_RANKS_PLANNED
        self._plans: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._planning = threading.Lock()
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
        """Yield batches in this machine's memory; closing the iterator ends the threads that read ahead."""
        return self.batches(torch.device("cpu"))

    def batches(self, device: torch.device) -> Iterator[Batch]:
        """Yield batches on a device, without end.

        What a GPU gets is copied from page-locked memory beside the step, by a stream that the consumer's waits for and
        the host does not. Two or three batches of int16 are on their way or there.

        Args:
            device: Of the step.
        """
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="loader")
        ahead: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()
        position = self.position
        try:
            while True:
                # One that is ready, besides those that are being read.
                while len(ahead) < self._threads + 1:
                    ahead.append(pool.submit(self._read_ahead, position, stream))
                    position += self.micro_rows
                batch, copied = ahead.popleft().result()
                ahead.append(pool.submit(self._read_ahead, position, stream))
                position += self.micro_rows
                if copied is not None:
                    batch.arrive(copied)
                yield batch
                del batch  # before its memory is needed again
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # first, so that nothing new begins
            if self.streaming and self._stream:
                self._stream.close(self.streaming.stop)
            pool.shutdown()

    def _read_ahead(self, position: int, stream: torch.cuda.Stream | None) -> tuple[Batch, torch.cuda.Event | None]:
        """Read a micro-batch, and begin its copy to a GPU; return what tells that the copy has ended."""
        if not self._stream:
            later = position + self._batches_ahead * self.micro_rows
            for first in range(position if position == self.position else later, later + 1, self.micro_rows):
                self.shards.expect(self._rows_at(first)[0])
        batch = self.read(position)
        if stream is None:
            return batch, None
        with torch.cuda.stream(stream):
            batch = batch.to(stream.device)
            return batch, stream.record_event()

    def read(self, position: int) -> Batch:
        """Return this rank's rows of the micro-batch that begins at `position`."""
        signal_BLT = self._buffers.take()
        if self._stream:
            index = self._stream.read(position, signal_BLT.numpy())
        else:
            index = self._copy(position, signal_BLT.numpy())
        batch = Batch(
            signal_BLT=signal_BLT,
            microvolt_per_count_B=torch.from_numpy(self.shards.microvolt_per_count[index]),
            database_B=torch.from_numpy(self.shards.folder_of[index]),
            labels_BC=self._labels.rows(index) if self._labels else None,
            patient_B=torch.from_numpy(self._person_N[index]) if self._person_N is not None else None,
        )
        # A copy from other memory would have the host wait for all that the device does.
        return batch.pin_memory() if self.pin_memory else batch

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

    def _copy(self, position: int, out_BLT: NDArray[np.int16]) -> NDArray[np.int64]:
        """Fill in this rank's windows of a micro-batch, shape (B, 12, T), and return their records."""
        index, starts = self._rows_at(position)
        wrong = self._copy_windows(index, starts, out_BLT)
        if wrong and self.replacements is None:
            raise wrong[min(wrong)]
        if wrong and self.replacements is not None:
            index = index.copy()  # the plan stays as it is
            for row in sorted(wrong):
                at = position + self.rows[0] + row
                index[row] = self._replace(at, int(index[row]), wrong[row], out_BLT[row], self.replacements)
        return index

    def _copy_windows(
        self, index: NDArray[np.int64], starts: NDArray[np.int64], out_BLT: NDArray[np.int16]
    ) -> dict[int, ShardError]:
        """Copy windows and learn their labels; return what is wrong, by row."""
        wrong = self.shards.copy_windows(index, starts, out_BLT, hashed=self._check_records)
        if self._labels:
            for row, record in enumerate(index.tolist()):
                if row not in wrong:
                    try:
                        self._labels.learn(record)
                    except ShardError as error:
                        wrong[row] = error
        return wrong

    def _replace(
        self, position: int, record: int, error: ShardError, out_LT: NDArray[np.int16], replacements: Replacements
    ) -> int:
        """Copy another record's window to where a damaged one's belongs, and return which."""
        pool = self.mixture.parts[int(self.mixture.draw(position, position + 1)[0][0])].records
        for attempt in range(ATTEMPTS):
            other = np.array([substitute(self.seed, position, attempt, pool)])
            room = self.shards.num_samples[other] - self.window_samples
            start = window_starts_at(self.seed, np.array([position]), room)
            if self._copy_windows(other, start, out_LT[None]):
                continue
            shard = self.shards.path(int(self.shards.shard_of[record])).name
            names = self.shards.name(record), self.shards.name(int(other[0]))
            replacements.add(Replaced(position, shard, *names, str(error)))
            return int(other[0])
        raise ShardError(f"{error}; and {ATTEMPTS} records in its place are damaged too")

    def _rows_at(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what `windows` does for this rank's rows of a micro-batch, of which many are found at once."""
        first, last = position + self.rows[0], position + self.rows[1]
        if not self._plan or last - first > PLANNED:
            return self.windows(first, last)
        pieces = [self._piece(number) for number in range(first // PLANNED, (last - 1) // PLANNED + 1)]
        before = first // PLANNED * PLANNED
        here = slice(first - before, last - before)
        if len(pieces) == 1:
            return pieces[0][0][here], pieces[0][1][here]
        index, starts = (np.concatenate(column)[here] for column in zip(*pieces, strict=True))
        return index, starts

    def _piece(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with self._planning:
            if number not in self._plans:
                self._plans[number] = self.windows(number * PLANNED, (number + 1) * PLANNED)
                if len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
            return self._plans[number]

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
