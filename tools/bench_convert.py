"""Measure how fast a database becomes shards, against a loop over `wfdb.rdrecord`, and how near that is to the floor.

    python tools/bench_convert.py                              # 4000 synthetic records, WFDB format 16
    python tools/bench_convert.py --database georgia --source path/to/georgia

The floor is what no converter can avoid: read the bytes of a record, hash them once for the record and once for the
shard, write them into a tar, and wait until the disk has it. All figures are of this run, files in the page cache,
the best of `--repeat` passes: records a second and hours for a million records by the clock, of all workers together;
microseconds of processor time a record, which other programs disturb least, and from these the ratios: how many times
the wfdb loop's is ours (aim: at least 20), and how many times ours is the floor's (aim: at most 2). Conversion is
linear in workers when the processor time stays. Memory is the peak of one conversion of a quarter of the records,
and of all of them, each in its own process.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.databases import synthetic
from ecgfm.databases.base import Database, load_database
from ecgfm.errors import ConfigError
from ecgfm.progress import RecordBar
from ecgfm.record import RecordRef
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy

MILLION = 1_000_000
PART = 8
"""An eighth of the records is converted as well, to take off what does not grow with them."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure records a second of the conversion, and the ratio to wfdb and to the floor."""

    database: str = "synthetic"
    """Database to convert."""
    source: Path | None = None
    """Its folder; by default synthetic records are made first."""
    records: int = 4000
    """Synthetic records to make."""
    mend: tuple[str, ...] = ()
    """Rules of the database."""
    workers: int = 2
    """Most processes that are tried."""
    repeat: int = 3
    """Passes, of which the best counts."""

    def __post_init__(self) -> None:
        if self.records < 100 or self.repeat < 1 or self.workers < 1:
            raise ConfigError("--records must be at least 100, --repeat and --workers at least 1")
        if self.source is None and self.database != "synthetic":
            raise ConfigError(f"--source is missing: give the folder of {self.database}")


def main() -> None:
    """Print the table."""
    settings = tyro.cli(Bench, description=__doc__)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bench-convert-") as name:
        work = Path(name)
        source = settings.source or _synthesise(work / "source", settings.records, console)
        database = load_database(settings.database, mend=settings.mend)
        refs = sorted(database.refs(source), key=lambda ref: (ref.file, ref.index))
        if len(refs) < 100 or not refs[0].file.endswith(".hea"):
            raise ConfigError(f"--database {settings.database}: give one of at least 100 WFDB records, got {len(refs)}")
        _rates(settings, database, source, refs, work, console)
        _memory(settings, source, len(refs), work, console)


def _synthesise(folder: Path, records: int, console: Console) -> Path:
    with RecordBar("making records", console, keep=False) as bar:
        synthetic.write(folder, records=records, progress=bar.update)
    return folder


def _rates(
    settings: Bench, database: Database, source: Path, refs: list[RecordRef], work: Path, console: Console
) -> None:
    """Print what each way takes, and what that is against wfdb and against the floor."""

    def conversion(workers: int, **policy: object) -> Cost:
        options = Options(
            signal=replace(Policy(), **policy),  # type: ignore[arg-type]
            mend=settings.mend,
            # Every worker must have several shards of the fewest records, or the longest one decides.
            records_per_shard=max(1, min(1000, len(refs) // (4 * PART * workers))),
        )

        def run(count: int) -> int:
            with _folder(work / "out") as out:
                convert(_Part(database, count), source, out, options, workers=workers)  # type: ignore[arg-type]
            return count

        # What does not grow with the records (starting processes, importing) is taken off.
        few = _best(lambda: run(len(refs) // PART), settings.repeat)
        return _best(lambda: run(len(refs)), settings.repeat).less(few)

    ways: dict[str, Callable[[], Cost]] = {
        "wfdb loop": lambda: _best(lambda: _wfdb_loop(refs), settings.repeat),
        "floor": lambda: _best(lambda: _floor(refs, work / "floor.tar"), settings.repeat),
        "our reader": lambda: _best(lambda: _read_loop(database, refs), settings.repeat),
    }
    for workers in range(1, settings.workers + 1):
        ways[f"convert, {workers} worker{'s' * (workers > 1)}"] = partial(conversion, workers)
    ways["convert to 250 Hz"] = partial(conversion, 1, rate_hz=250.0)
    ways["convert, high-pass"] = partial(conversion, 1, highpass_hz=0.5)
    costs: dict[str, Cost] = {}
    for name, way in ways.items():
        with console.status(name):
            costs[name] = way()
    table = Table("", "records/s", "million", "CPU us", "wfdb / it", "it / floor")
    for name, cost in costs.items():
        rate = cost.records / cost.clock_s
        faster, slower = costs["wfdb loop"].cpu_us / cost.cpu_us, cost.cpu_us / costs["floor"].cpu_us
        hours = MILLION / rate / 3600
        table.add_row(name, f"{rate:,.0f}", f"{hours:.2f} h", f"{cost.cpu_us:,.0f}", f"{faster:.1f}", f"{slower:.2f}")
    table.title = f"{len(refs):,} records of {database.name()}"
    console.print(table)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some records took."""

    records: int
    clock_s: float
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time a record."""
        return self.cpu_s / self.records * 1e6

    def less(self, other: Cost) -> Cost:
        """Return what the other records took."""
        return Cost(
            records=self.records - other.records,
            clock_s=max(self.clock_s - other.clock_s, 1e-9),
            cpu_s=self.cpu_s - other.cpu_s,
        )


def _best(way: Callable[[], int], repeat: int) -> Cost:
    """Return the least that it took, after one pass that does not count."""
    records = way()
    clock_s, cpu_s = [], []
    for _ in range(repeat):
        clock, cpu = time.perf_counter(), _cpu_s()
        way()
        clock_s.append(time.perf_counter() - clock)
        cpu_s.append(_cpu_s() - cpu)
    return Cost(records=records, clock_s=min(clock_s), cpu_s=min(cpu_s))


def _cpu_s() -> float:
    """Return the processor time of this process and of those that it started and that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _wfdb_loop(refs: list[RecordRef]) -> int:
    import wfdb

    # A part of them is enough, and the best pass counts.
    part = refs[:: max(1, len(refs) // 500)]
    for ref in part:
        wfdb.rdrecord(ref.file.removesuffix(".hea"))
    return len(part)


def _read_loop(database: Database, refs: list[RecordRef]) -> int:
    for ref in refs:
        database.read(ref)
    return len(refs)


def _floor(refs: list[RecordRef], out: Path) -> int:
    """Copy the files of every record into a tar, hashing each file and the tar."""
    total = hashlib.sha256()
    with out.open("wb", buffering=1 << 20) as tar:
        for ref in refs:
            for path in _files(ref.path):
                content = path.read_bytes()
                hashlib.sha256(content).hexdigest()
                info = tarfile.TarInfo(path.name)
                info.size = len(content)
                for piece in (info.tobuf(), content, bytes(-len(content) % 512)):
                    tar.write(piece)
                    total.update(piece)
        tar.flush()
        os.fsync(tar.fileno())
    out.unlink()
    return len(refs)


def _files(header: Path) -> Iterator[Path]:
    yield header
    for suffix in (".dat", ".mat"):
        path = header.with_suffix(suffix)
        if path.is_file():
            yield path


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _memory(settings: Bench, source: Path, records: int, work: Path, console: Console) -> None:
    """Print the peak memory of converting a quarter of the records and all of them."""
    context = multiprocessing.get_context("spawn")
    table = Table("records", "peak memory MB", title="memory of one process")
    for part in (records // 4, records):
        with context.Pool(1) as pool:
            peak = pool.apply(_peak_mb, (settings, source, part, work / "memory"))
        table.add_row(f"{part:,}", f"{peak:,.0f}")
    console.print(table)


class _Part:
    """A database cut to its first records."""

    def __init__(self, database: Database, count: int) -> None:
        self._database, self._count = database, count

    def refs(self, root: Path) -> list[RecordRef]:
        refs = sorted(self._database.refs(root), key=lambda ref: (ref.file, ref.index))
        return refs[: self._count]

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)


def _peak_mb(settings: Bench, source: Path, count: int, out: Path) -> float:
    part = _Part(load_database(settings.database, mend=settings.mend), count)
    with _folder(out):
        convert(part, source, out, Options(signal=Policy(), mend=settings.mend))  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    config.run_command(main)
