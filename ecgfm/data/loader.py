"""Batches of int16 windows from shards, in the run's order, one thread ahead of the step.

The host copies bytes and computes nothing: a window is twelve slices of a memory map. A page that is not
in memory is read by the kernel while the copy waits, without Python's lock.

Shapes: B windows of this rank, L leads, T samples.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.mixture import Mixture, sources
from ecgfm.data.order import window_starts
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.reader import Shards


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
    ) -> None:
        if batch_size < 1 or batch_size % (world_size * accumulation):
            raise ConfigError(
                f"--data.batch-size {batch_size} is not a multiple of {world_size} ranks x "
                f"--engine.accumulation {accumulation}"
            )
        self.shards = shards
        self.records = usable_records(shards, window_samples, exclude_flags)
        self.mixture = Mixture(sources(shards, self.records, weights or {}), seed)
        self.window_samples = window_samples
        self.micro_rows = batch_size // accumulation
        rows = self.micro_rows // world_size
        self.rows = (rank * rows, (rank + 1) * rows)
        self.seed = seed
        self.position = position
        self.pin_memory = pin_memory

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
            thread.join()

    def read(self, position: int) -> Batch:
        """Return this rank's rows of the micro-batch that begins at `position`."""
        index, starts = self.windows(position + self.rows[0], position + self.rows[1])
        shape = (len(index), len(LEADS), self.window_samples)
        signal_BLT = torch.empty(shape, dtype=torch.int16, pin_memory=self.pin_memory)
        copy_windows(self.shards, index, starts, signal_BLT.numpy())
        return Batch(
            signal_BLT=signal_BLT,
            microvolt_per_count_B=torch.from_numpy(self.shards.microvolt_per_count[index]),
            database_B=torch.from_numpy(self.shards.folder_of[index]),
        )

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


def copy_windows(
    shards: Shards, index: Sequence[int] | NDArray[np.int64], starts: NDArray[np.int64], out: NDArray[np.int16]
) -> None:
    """Copy one window of each record into `out`, shape (B, 12, T)."""
    samples = out.shape[2]
    for row, record in enumerate(index):
        start = int(starts[row])
        out[row] = shards.counts(int(record))[:, start : start + samples]


def _put(ready: queue.Queue[Batch | BaseException], item: Batch | BaseException, stop: threading.Event) -> None:
    """Wait for room in the queue, or for the end."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return
