"""Measure how fast batches come from shards, beside the ways that others take, and what memory they take.

    python tools/bench_loader.py SHARDS [SHARDS ...]
    python tools/bench_loader.py --window-s 9 SHARDS [SHARDS ...]    # windows are cropped

All ways are measured in turn, in one process, several times over; the best of each counts, and the ratios say more
than the rates. The shards are in the page cache, but for the rows that say cold: there the system is told to forget
them (posix_fadvise; dropping all that the machine has cached would disturb everybody on it).

- *DataLoader*: what the public code of JEPA on ECG does (Weimann and Conrad 2024,
  https://github.com/kweimann/ECG-JEPA): all signals in memory as normalised float16, shape (T, 12); an item is a
  database drawn by weight, a record of it, a random crop, transposed and cast to float32; the batch is stacked and each
  row's mask drawn in the worker; two workers. Ours mixes the same databases; it leaves the cast and the masks to the
  device, and a row of its own adds both on this processor's one thread, to compare like with like.
- *WebDataset*: its own iterator, in one process, and with np.load in two workers. The streamed way of ours reads every
  shard through `pipe:cat` and compares every record's SHA-256, which WebDataset does not; its floor is that pipe
  alone, read and thrown away.
- *Floor*: a copy of as many bytes into memory that is used again, from an array in memory, large pages and all.

On a virtual machine with two Zen 4 cores that did nothing else, batches of 64: ours one thread ahead 14 times the
DataLoader (26 by processor time), two threads ahead 16; 0.42 to 0.51 of the copy, called without a thread 0.73 to
0.80; cast and masks included 1.6 to 1.9 times on one core against its two workers, 3 by processor time. Batches of
256: 12 and 22 times, 0.77 and 1.41 of one thread's copy, 0.9 with cast and masks, which then leave the cache.
Streamed, both through pipe:cat, 1.55 and 2.2 times WebDataset with two workers, 0.6 to 1.0 of the pipe alone. Memory
after 20 epochs is that after the first. Cold, four batches at random took 265 ms with reading ahead, 404 without, and
174 as files from front to back (the best of six, on a machine that was busy).

What was tried, as time a record of 12 x 5000 in page cache against that floor (1.0; 5.6 microseconds on that machine;
tenths differ from run to run):

- A fresh tensor for each batch, row by row, as this was: 3.6. Fresh memory alone is 0.9 of that, of which the system
  fills each page with zeros; looking twice at the file's size, at the header and taking NumPy's numbers apart is 0.8.
- The copy alone from memory maps, which have pages of 4 kB, into memory that is used again: 1.5 to 1.6. This is kept.
- `os.preadv` of header and numbers in one call, no map: 3.0; the system's own copy is half as fast as the processor's.
  With crops, scattered to leads: 3.3, where the map takes 2.8. Deleted.
- Asking the system to read ahead (posix_fadvise) records that it has: 0.4, a quarter of the copy. So four of a batch
  are looked for (preadv with RWF_NOWAIT), and all are asked for when one is not there.
- Finding record and start of each row costs 40 to 200 microseconds a batch, however small; 8,192 positions at once
  make it 0.02.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import itertools
import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from bench_rows import Row, show  # type: ignore[import-not-found]
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.data.batch import Draws
from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.masks import hide_blocks, split_tokens
from ecgfm.data.places import settle, shard_source
from ecgfm.data.prepare import Prepare
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards

PATCH, MIN_BLOCK, KEEP = 25, 10, (0.15, 0.25)
REPEATS = 3
"""Measurements in a row, of one iterator."""
Way = Callable[[], Iterator[object]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure records a second of the ways to read shards."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    batch_size: int = 64
    """Windows of a batch."""
    batches: int = 16
    """Batches of one measurement; what is cold is cold for the records of an epoch."""
    rounds: int = 5
    """Measurements of each way; the best counts."""
    window_s: float = 10.0
    """Length of a window."""
    epochs: int = 20
    """Over which memory is looked at."""
    out: Path | None = None
    """Write the ratios to this file too, as JSON."""


def main() -> None:
    """Print records a second, megabytes a second, ratios and memory."""
    settings = tyro.cli(Bench, description=__doc__)
    if importlib.util.find_spec("webdataset") is None:
        raise ConfigError("webdataset, with which ours is compared, is not installed; pip install webdataset")
    torch.set_num_threads(1)
    shards = Shards(settings.folders)
    window = round(settings.window_s * shards.rate_hz)
    # First what is cold: the system forgets no file that is mapped.
    cold = _measure(_cold(settings, shards, window), settings)
    warm = _measure({**_local(settings, shards, window), **_streamed(settings, window)}, settings)
    rates, processor, memory = ({**warm[number], **cold[number]} for number in range(3))
    first = "DataLoader, float16, two workers"
    floor = "floor: copy, one thread"
    title = f"{len(shards):,} records, batches of {settings.batch_size} x {len(LEADS)} x {window}"
    columns = ("way", "records/s", "MB/s", "to DataLoader", "to the copy", "processor us", "memory MB")
    table = Table(*columns, title=title)
    for name, rate in rates.items():
        table.add_row(
            name,
            f"{rate:,.0f}",
            f"{rate * 2 * len(LEADS) * window / 1e6:,.0f}",
            f"{rate / rates[first]:.2f}",
            f"{rate / rates[floor]:.2f}",
            f"{processor[name]:,.1f}",
            f"{memory[name]:,.0f}",
        )
    console = Console(width=120)
    console.print(table)
    console.print("processor us: a record's, of all threads and workers; what a busy machine changes least.")
    console.print(
        "Memory is this process's and its workers' own, without files' pages, more than before the way began."
    )
    plain = "WebDataset, pipe:cat, np.load, two workers"
    seen = list(_memory_of_epochs(settings, shards, window))
    one, two = rates["ours, one thread ahead"], rates["ours, two threads ahead"]
    rows = [
        Row(what="loader, one thread ahead", baseline=first, ratio=one / rates[first], aim=10),
        Row(what="loader, two threads ahead", baseline=first, ratio=two / rates[first]),
        Row(
            what="loader, best of both",
            baseline="a copy of the same bytes",
            ratio=max(one, two) / rates[floor],
            aim=0.5,
        ),
        Row(
            what="loader, with float32 and masks on the CPU",
            baseline=first,
            ratio=rates["ours, with float32 and masks"] / rates[first],
        ),
        Row(
            what="loader, streamed, pipe:cat",
            baseline=plain,
            ratio=rates["ours, streamed, pipe:cat"] / rates[plain],
            aim=1.5,
        ),
        Row(
            what=f"loader: memory after {len(seen)} epochs",
            baseline="after the first",
            ratio=seen[-1] / seen[0],
            aim=1.05,
            at_most=True,
            note=f"{seen[0]:.0f}, {seen[1]:.0f}, {seen[-1]:.0f} MB after 1, 2, {len(seen)}",
        ),
    ]
    show(rows, "loader", settings.out)


def _loader(shards: Shards, settings: Bench, window: int, *, mixed: bool = True, **more: Any) -> Loader:
    names = {manifest.database for manifest in shards.manifests}
    return Loader(
        shards,
        window_samples=window,
        batch_size=settings.batch_size,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=0,
        weights=dict.fromkeys(names, 1.0) if mixed and len(names) > 1 else None,
        **more,
    )


def _local(settings: Bench, shards: Shards, window: int) -> dict[str, Way]:
    """Return the ways that read local files, or what is in memory already."""
    loader = _loader(shards, settings, window)

    def called() -> Iterator[object]:
        for number in itertools.count():
            loader.read(number * settings.batch_size)
            yield None

    def prepared() -> Iterator[object]:
        mean_mv_SL, std_mv_SL = (
            torch.tensor([getattr(m, name) for m in shards.manifests]) for name in ("mean_mv", "std_mv")
        )
        prepare = Prepare(mean_mv_SL, std_mv_SL, 5.0)
        tokens, rows = window // PATCH, settings.batch_size
        for step, batch in enumerate(loader):
            draws = Draws(seed=0, step=step, rows=(0, rows), all_rows=rows, device=torch.device("cpu"))
            hidden = tokens - math.ceil(tokens * (KEEP[0] + (KEEP[1] - KEEP[0]) * draws.shared("keep")))
            yield prepare(batch), split_tokens(hide_blocks(draws, rows, tokens, hidden, MIN_BLOCK), hidden)

    def in_memory() -> Iterator[object]:
        # Made anew for each measurement, before its two batches that do not count.
        batches = torch.utils.data.DataLoader(
            Drawn(shards, window), batch_size=settings.batch_size, collate_fn=with_masks, num_workers=2
        )
        return iter(batches)

    size = settings.batch_size
    source = np.concatenate([shards.counts(index).reshape(-1) for index in range(len(shards))])
    source = np.resize(source, (max(len(source) // (len(LEADS) * window), 2 * size), len(LEADS), window))
    target = np.empty((size, len(LEADS), window), dtype=np.int16)

    def copied() -> Iterator[object]:
        for number in itertools.count():
            first = number * size % (len(source) - size)
            np.copyto(target, source[first : first + size])
            yield None

    def copied_by_two() -> Iterator[object]:
        half = size // 2
        with ThreadPoolExecutor(2) as pool:
            for number in itertools.count():
                first = number * size % (len(source) - size)
                parts = (slice(0, half), slice(half, size))
                for part in [pool.submit(np.copyto, target[p], source[first : first + size][p]) for p in parts]:
                    part.result()
                yield None

    return {
        "DataLoader, float16, two workers": in_memory,
        "ours, called": called,
        "ours, one thread ahead": lambda: iter(_loader(shards, settings, window, threads=1)),
        "ours, two threads ahead": lambda: iter(_loader(shards, settings, window, threads=2)),
        "ours, with float32 and masks": prepared,
        "floor: copy, one thread": copied,
        "floor: copy, two threads": copied_by_two,
    }


class Drawn(torch.utils.data.IterableDataset[torch.Tensor]):
    """Records in memory as float16, drawn by database, as public code has them."""

    def __init__(self, shards: Shards, window: int) -> None:
        self.window = window
        self.sources = []
        for folder, manifest in enumerate(shards.manifests):
            mean, std = np.array(manifest.mean_mv, dtype=np.float32), np.array(manifest.std_mv, dtype=np.float32)
            records = [
                ((shards.counts(index).T * np.float32(shards.microvolt_per_count[index] * 1e-3) - mean) / std)
                .clip(-5, 5)
                .astype(np.float16)
                for index in np.flatnonzero((shards.folder_of == folder) & (shards.num_samples >= window)).tolist()
            ]
            sizes = np.array([len(record) for record in records])
            self.sources.append((np.concatenate(records), np.cumsum(sizes) - sizes, sizes))

    def __iter__(self) -> Iterator[torch.Tensor]:
        random = np.random.default_rng()  # a worker's own
        share = np.full(len(self.sources), 1 / len(self.sources))
        while True:
            data, starts, sizes = self.sources[random.choice(len(self.sources), p=share)]
            record = random.integers(len(starts))
            signal = data[starts[record] : starts[record] + sizes[record]]
            first = random.integers(len(signal) - self.window + 1)
            yield torch.from_numpy(signal[first : first + self.window].transpose()).float()


def with_masks(signals: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the batch, and the kept and the hidden tokens of each row, drawn row by row."""
    signal_BLT = torch.utils.data.default_collate(signals)
    tokens = signal_BLT.shape[2] // PATCH
    random = np.random.default_rng()
    keep = math.ceil(random.uniform(*KEEP) * tokens)
    masks = [_mask(random, tokens, tokens - keep) for _ in signals]
    kept, hidden = ([mask.nonzero()[0] for mask in sides] for sides in ([~m for m in masks], masks))
    return signal_BLT, torch.from_numpy(np.stack(kept)), torch.from_numpy(np.stack(hidden))


def _mask(random: np.random.Generator, tokens: int, hide: int) -> NDArray[np.bool_]:
    """Return which tokens are hidden, in blocks, as `ecgfm.data.masks` says it of the paper's code."""
    runs, left = [(0, tokens)], hide
    hidden = np.zeros(tokens, dtype=bool)
    while left:
        lengths = np.array([end - start for start, end in runs])
        start, end = runs.pop(random.choice(len(runs), p=lengths / lengths.sum()))
        size = int(random.integers(MIN_BLOCK, left + 1)) if left >= MIN_BLOCK else left
        if size >= end - start:
            first, size = start, end - start
        elif left >= MIN_BLOCK:
            first = int(random.integers(start, end - size + 1))
        else:
            first = start if start > 0 else end - size
        hidden[first : first + size] = True
        left -= size
        runs += [run for run in ((start, first), (first + size, end)) if run[0] < run[1]]
    return hidden


def _streamed(settings: Bench, window: int) -> dict[str, Way]:
    """Return the ways that read whole shards."""
    paths = [str(path) for folder in settings.folders for path in sorted(folder.glob("*.tar"))]
    places = settle(tuple(f"pipe:cat {folder}/" for folder in settings.folders), None, "aws {url}")
    away = Shards([place.folder for place in places], here=False)

    def workers() -> Iterator[object]:
        import webdataset

        def decode(content: bytes) -> NDArray[np.int16]:
            record: NDArray[np.int16] = np.load(io.BytesIO(content))
            return record[:, :window]

        piped = [f"pipe:cat {path}" for path in paths]
        stream = webdataset.WebDataset(piped, shardshuffle=False, workersplitter=webdataset.split_by_worker).repeat()
        arrays = stream.to_tuple("ecg.npy").map_tuple(decode).select(lambda sample: sample[0].shape[1] == window)
        batches = arrays.batched(settings.batch_size, collation_fn=collate)
        # A worker without a shard of its own is an error there.
        return iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=min(2, len(paths))))

    def alone() -> Iterator[object]:
        import webdataset

        stream = webdataset.WebDataset(paths, shardshuffle=False).decode().to_tuple("ecg.npy").repeat()
        records = (sample[0] for sample in stream if sample[0].shape[1] >= window)
        while True:
            batch = np.empty((settings.batch_size, len(LEADS), window), dtype=np.int16)
            for row, record in enumerate(islice(records, settings.batch_size)):
                batch[row] = record[:, :window]
            yield batch

    def piped() -> Iterator[object]:
        streaming = Streaming(read_shard=shard_source(places, away), readers=2)
        return iter(_loader(away, settings, window, streaming=streaming))

    def drained() -> Iterator[object]:
        read = shard_source(places, away)
        left = 0
        for shard in itertools.cycle(range(len(paths))):
            read(shard)
            left += int((away.shard_of == shard).sum())
            while left >= settings.batch_size:
                left -= settings.batch_size
                yield None

    return {
        "WebDataset, decoded, one process": alone,
        "WebDataset, pipe:cat, np.load, two workers": workers,
        "ours, streamed, pipe:cat": piped,
        "floor, streamed: pipe:cat alone": drained,
    }


def _cold(settings: Bench, shards: Shards, window: int) -> dict[str, Way]:
    """Return the ways that read what is on the disk alone; none where the system does not forget files."""
    if not hasattr(os, "posix_fadvise"):
        return {}
    paths = [shards.path(number) for number in range(int(shards.shard_of[-1]) + 1)]

    def forget() -> None:
        gc.collect()  # maps of the measurement before
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def ahead() -> Iterator[object]:
        forget()
        return iter(_loader(Shards(settings.folders), settings, window, mixed=False))

    def unasked() -> Iterator[object]:
        forget()
        loader = _loader(Shards(settings.folders), settings, window, mixed=False)
        loader.shards.expect = lambda index_B: None  # type: ignore[method-assign]
        return iter(loader)

    def front_to_back() -> Iterator[object]:
        forget()
        buffer = bytearray(settings.batch_size * 2 * len(LEADS) * window)
        for path in itertools.cycle(paths):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer) == len(buffer):
                    yield None

    return {
        "ours, cold, read ahead": ahead,
        "ours, cold, not read ahead": unasked,
        "floor, cold: files front to back": front_to_back,
    }


def collate(samples: list[tuple[NDArray[np.int16]]]) -> NDArray[np.int16]:
    """Return a batch of windows; at the top level, for a worker."""
    return np.stack([sample for (sample,) in samples])


def _measure(ways: dict[str, Way], settings: Bench) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return of each way the most records a second, the least processor time a record, and the most memory in MB."""
    rates, memory = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    processor = dict.fromkeys(ways, math.inf)
    for _ in range(settings.rounds):
        for name, way in ways.items():
            before = _own_mb()
            batches = way()
            # What is cold is cold once: its first batches count, and no others.
            cold = "cold" in name
            for _ in islice(batches, 0 if cold else 3):
                pass
            for _ in range(1 if cold else REPEATS):
                start, used = time.perf_counter(), _processor_s()
                records = settings.batch_size * sum(1 for _ in islice(batches, settings.batches))
                rates[name] = max(rates[name], records / (time.perf_counter() - start))
                processor[name] = min(processor[name], (_processor_s() - used) / records * 1e6)
            memory[name] = max(memory[name], _own_mb() - before)
            if hasattr(batches, "close"):
                batches.close()
            del batches
    return rates, processor, memory


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _processor_s() -> float:
    """Return the time of processors that this process and its children have used."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in _children():
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")
    return total


def _memory_of_epochs(settings: Bench, shards: Shards, window: int) -> Iterator[float]:
    """Yield the memory that this process has of its own, in MB, at the end of each epoch."""
    loader = _loader(shards, settings, window)
    batches = iter(loader)
    for _ in range(settings.epochs):
        for _ in islice(batches, max(len(loader.records) // settings.batch_size, 1)):
            pass
        yield _own_mb()
    batches.close()  # type: ignore[attr-defined]


def _own_mb() -> float:
    """Return the memory of this process and its children in MB, shared pages in parts, without those of files."""
    total = 0
    for process in ("self", *_children()):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in lines[1:])
        total += sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    return total / 1e3


if __name__ == "__main__":
    config.run_command(main)
