"""Measure how fast a database becomes shards, against a loop over `wfdb.rdrecord`, and how near that is to the floor.

    python tools/bench_convert.py                              # 2000 synthetic records, WFDB format 16
    python tools/bench_convert.py --database georgia --source path/to/georgia

The floor is what no converter can avoid: read the bytes of a record, hash them once for the record and once for the
shard, and write them into a tar. All figures are of this run, files in the page cache, the best of `--repeat`
passes. Memory is the peak of one conversion of a part of the records, and of all of them, each in its own process.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure records a second of the conversion, and the ratio to wfdb and to the floor."""

    database: str = "synthetic"
    """Database to convert."""
    source: Path | None = None
    """Its folder; by default synthetic records are made first."""
    records: int = 2000
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
        _rates(settings, database, source, refs, work, console)
        _memory(settings, source, len(refs), work, console)


def _synthesise(folder: Path, records: int, console: Console) -> Path:
    with RecordBar("making records", console, keep=False) as bar:
        synthetic.write(folder, records=records, progress=bar.update)
    return folder


def _rates(
    settings: Bench, database: Database, source: Path, refs: list[RecordRef], work: Path, console: Console
) -> None:
    options = Options(mend=settings.mend)

    def conversion(workers: int, **policy: object) -> Callable[[], int]:
        chosen = replace(options, signal=replace(options.signal, **policy))  # type: ignore[arg-type]
        # Every worker must have several shards, or the longest one decides.
        chosen = replace(chosen, records_per_shard=max(1, min(1000, len(refs) // (4 * settings.workers))))

        def run() -> int:
            with _folder(work / "out") as out:
                return convert(database, source, out, chosen, workers=workers).kept

        return run

    ways: dict[str, Callable[[], int]] = {
        "wfdb.rdrecord alone, one process": lambda: _wfdb_loop(refs),
        "our reader alone, one process": lambda: _read_loop(database, refs),
        "floor: read, hash, tar, hash, one process": lambda: _floor(refs, work / "floor.tar"),
        "convert, 1 worker": conversion(1),
    }
    for workers in range(2, settings.workers + 1):
        ways[f"convert, {workers} workers"] = conversion(workers)
    ways["convert to 250 Hz, 1 worker"] = conversion(1, rate_hz=250.0)
    ways["convert, high-pass 0.5 Hz, 1 worker"] = conversion(1, highpass_hz=0.5)
    rates: dict[str, float] = {}
    table = Table("way", "records/s", "ratio to wfdb", "ratio to the floor", "a million records")
    for name, way in ways.items():
        with console.status(name):
            rates[name] = _best(way, settings.repeat)
    wfdb_rate, _, floor_rate, *_ = rates.values()
    for name, rate in rates.items():
        hours = MILLION / rate / 3600
        table.add_row(name, f"{rate:,.0f}", f"{rate / wfdb_rate:.1f}", f"{rate / floor_rate:.2f}", f"{hours:.2f} h")
    table.title = f"{len(refs):,} records of {database.name()}"
    console.print(table)


def _wfdb_loop(refs: list[RecordRef]) -> int:
    import wfdb

    # A part of them is enough, and the best pass counts.
    part = refs[:: max(1, len(refs) // 500)]
    for ref in part:
        wfdb.rdrecord(str(ref.path.with_suffix("")))
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
    out.unlink()
    return len(refs)


def _files(header: Path) -> Iterator[Path]:
    yield header
    for suffix in (".dat", ".mat"):
        path = header.with_suffix(suffix)
        if path.is_file():
            yield path


def _best(way: Callable[[], int], repeat: int) -> float:
    """Return the best records a second, after one pass that does not count."""
    best = 0.0
    way()
    for _ in range(repeat):
        start = time.perf_counter()
        done = way()
        best = max(best, done / (time.perf_counter() - start))
    return best


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
