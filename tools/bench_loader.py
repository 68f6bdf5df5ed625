"""Measure how fast batches come from shards, against WebDataset's own iterator on the same files.

    python tools/bench_loader.py SHARDS [SHARDS ...]

The floor is a copy of the same bytes from memory to memory. All figures are of this run, with the shards in the page
cache after one pass. The streamed way reads every shard through `pipe:cat` and compares every record's SHA-256, which
WebDataset does not; its own floor is that pipe alone, read and thrown away. On two
cores that were busy with other work, 1,200 records of 10 s: WebDataset with np.load and two workers 507 records/s, ours
streamed 1,456 (2.9 times as many; 2.6 times below its floor of 3,736), ours by index 4,725, the copy 10,545. Such
figures say how the ways compare in one run; measure on an idle machine for more.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.places import settle, shard_source
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure records a second of the indexed reader and of WebDataset."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    batch_size: int = 256
    """Windows of a batch."""
    batches: int = 40
    """Batches of one measurement; the best of three counts."""
    window_s: float = 10.0
    """Length of a window."""


def main() -> None:
    """Print records a second, megabytes a second and the ratio to WebDataset."""
    settings = tyro.cli(Bench, description=__doc__)
    if importlib.util.find_spec("webdataset") is None:
        raise ConfigError("webdataset, with which ours is compared, is not installed; pip install webdataset")
    shards = Shards(settings.folders)
    window = round(settings.window_s * shards.rate_hz)
    loader = Loader(
        shards, window_samples=window, batch_size=settings.batch_size, accumulation=1, rank=0, world_size=1, seed=0
    )
    paths = [str(path) for folder in settings.folders for path in sorted(folder.glob("*.tar"))]

    def indexed() -> Iterator[object]:
        return (loader.read(number * settings.batch_size) for number in range(10**9))

    def threaded() -> Iterator[object]:
        return iter(loader)

    def workers() -> Iterator[object]:
        import torch
        import webdataset

        def decode(content: bytes) -> NDArray[np.int16]:
            record: NDArray[np.int16] = np.load(io.BytesIO(content))
            return record[:, :window]

        stream = webdataset.WebDataset(paths, shardshuffle=False, workersplitter=webdataset.split_by_worker).repeat()
        arrays = stream.to_tuple("ecg.npy").map_tuple(decode).select(lambda sample: sample[0].shape[1] == window)
        batches = arrays.batched(settings.batch_size, collation_fn=collate)
        # A worker without a shard of its own is an error there.
        return iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=min(2, len(paths))))

    places = settle(tuple(f"pipe:cat {folder}/" for folder in settings.folders), None, "aws {url}")
    away = Shards([place.folder for place in places], here=False)

    def piped() -> Iterator[object]:
        return iter(
            Loader(
                away,
                window_samples=window,
                batch_size=settings.batch_size,
                accumulation=1,
                rank=0,
                world_size=1,
                seed=0,
                streaming=Streaming(read_shard=shard_source(places, away), readers=2),
            )
        )

    def drained() -> Iterator[object]:
        read = shard_source(places, away)
        left = 0
        for shard in itertools.cycle(range(len(paths))):
            read(shard)
            left += int((away.shard_of == shard).sum())
            while left >= settings.batch_size:
                left -= settings.batch_size
                yield None

    def streamed() -> Iterator[object]:
        import webdataset

        stream = webdataset.WebDataset(paths, shardshuffle=False).decode().to_tuple("ecg.npy").repeat()
        records = (sample[0] for sample in stream if sample[0].shape[1] >= window)
        while True:
            batch = np.empty((settings.batch_size, len(LEADS), window), dtype=np.int16)
            for row, record in enumerate(islice(records, settings.batch_size)):
                batch[row] = record[:, :window]
            yield batch

    source = np.ones((settings.batch_size, len(LEADS), window), dtype=np.int16)

    def copied() -> Iterator[object]:
        return (source.copy() for _ in range(10**9))

    ways: dict[str, Callable[[], Iterator[object]]] = {
        "WebDataset's iterator, decoded, one process": streamed,
        "WebDataset, np.load, two workers": workers,
        "ours, streamed through pipe:cat": piped,
        "floor of streaming: pipe:cat alone": drained,
        "ours, by index": indexed,
        "ours, by index, one thread ahead": threaded,
        "floor: copy of the bytes": copied,
    }
    rates = {name: measure(way, settings) for name, way in ways.items()}
    baseline = next(iter(rates.values()))
    table = Table(
        "way", "records/s", "MB/s", "ratio", title=f"{len(shards):,} records, batches of {settings.batch_size}"
    )
    for name, rate in rates.items():
        megabytes = rate * len(LEADS) * window * 2 / 1e6
        table.add_row(name, f"{rate:,.0f}", f"{megabytes:,.0f}", f"{rate / baseline:.1f}")
    Console().print(table)


def collate(samples: list[tuple[NDArray[np.int16]]]) -> NDArray[np.int16]:
    """Return a batch of windows; at the top level, for a worker."""
    return np.stack([sample for (sample,) in samples])


def measure(way: Callable[[], Iterator[object]], settings: Bench) -> float:
    """Return the best records a second of three measurements, after two batches that do not count."""
    best = 0.0
    for _ in range(3):
        batches = way()
        for _ in islice(batches, 2):
            pass
        start = time.perf_counter()
        for _ in islice(batches, settings.batches):
            pass
        best = max(best, settings.batches * settings.batch_size / (time.perf_counter() - start))
        if isinstance(batches, Generator):
            batches.close()
    return best


if __name__ == "__main__":
    config.run_command(main)
