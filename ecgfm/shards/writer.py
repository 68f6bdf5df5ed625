"""Write a database into shards: same input, same bytes, whatever the number of workers.

Which record goes into which shard is decided before anything is read: the references sorted by name and
cut into blocks, one block a shard. A refused record leaves its shard one sample short. A shard is written
under a temporary name and renamed when it is whole, and its report is kept in `.convert/`, so that a
conversion that was stopped goes on with what is missing.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ecgfm import config
from ecgfm.databases.base import Database, load_database
from ecgfm.errors import DatabaseError, RecordError, ShardError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef
from ecgfm.shards.manifest import (
    MANIFEST,
    REFUSED,
    Manifest,
    Members,
    Shard,
    ShardReport,
    merge,
    write_bytes,
    write_json,
)
from ecgfm.signal.canonical import Canonical, canonical
from ecgfm.signal.quality import Bounds

STATE = ".convert"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the bytes of the shards; the manifest repeats it."""

    rate_hz: float | None = 500.0
    """Rate of the shards; None keeps each record's own."""
    min_s: float = 10.0
    """Shortest recording that is kept."""
    mend: tuple[str, ...] = ()
    """Rules of the database that are switched on."""
    records_per_shard: int = 1000
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to be written."""

    database: str
    name: str
    split: str
    refs: tuple[tuple[RecordRef, str | None], ...]
    """Each with the message why it is refused unread, if it is."""
    options: Options
    out: Path


def convert(
    database: Database,
    source: Path,
    out: Path,
    options: Options,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write every record of a database into shards below `out`, or what is missing of them.

    Args:
        database: The reader.
        source: Where the database lies.
        out: Folder of the shards; made if need be.
        options: What decides the bytes.
        workers: Processes that read and write.
        progress: Called now and then with the records done and the records in all.

    Raises:
        DatabaseError: The source is missing, empty, or another database.
        ShardError: `out` is in use, holds another conversion, or cannot be written.
    """
    refs = sorted(database.refs(source), key=lambda ref: (ref.split, ref.record, str(ref.path)))
    if not refs:
        raise DatabaseError(f"no record of {database.name()} below {source}; is it the right folder?")
    with _locked(out):
        tasks = _plan(database, refs, out, options)
        _check_same_conversion(out, database, options, refs)
        for leftover in [*out.glob("*.tmp"), *(out / STATE).glob("*.tmp")]:
            leftover.unlink()
        missing = [task for task in tasks if _finished(task) is None]
        ready = len(refs) - sum(len(task.refs) for task in missing)
        progress(ready, len(refs))
        _write_all(missing, workers, lambda done: progress(ready + done, len(refs)))
        reports = [report for task in tasks if (report := _finished(task)) is not None]
        assert len(reports) == len(tasks)
        manifest = merge(database, config.to_dict(options), reports)
        lines = [json.dumps(line, sort_keys=True) for report in reports for line in report.refused]
        write_bytes(out / REFUSED, "".join(line + "\n" for line in lines).encode())
        write_json(out / MANIFEST, config.to_dict(manifest))
    return manifest


def _plan(database: Database, refs: list[RecordRef], out: Path, options: Options) -> list[Task]:
    """Cut the sorted references into shards; a second record of one name is refused here."""
    first: dict[str, RecordRef] = {}
    blocks: dict[str, list[tuple[RecordRef, str | None]]] = {}
    for ref in refs:
        earlier = first.setdefault(_key(ref.record), ref)
        message = f"a record of this name is already at {earlier.path}; delete or rename one of them"
        blocks.setdefault(ref.split, []).append((ref, None if earlier is ref else message))
    size = options.records_per_shard
    return [
        Task(
            database=database.name(),
            name=f"{database.name()}-{split}-{number:06d}.tar",
            split=split,
            refs=tuple(block[start : start + size]),
            options=options,
            out=out,
        )
        for split, block in blocks.items()
        for number, start in enumerate(range(0, len(block), size))
    ]


def _key(record: str) -> str:
    """Return a name that WebDataset does not split: it cuts a file's name at its first dot."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", record)


def _check_same_conversion(out: Path, database: Database, options: Options, refs: list[RecordRef]) -> None:
    """Refuse a folder that holds other shards than those asked for now."""
    names = "\n".join(f"{ref.split} {ref.record}" for ref in refs)
    now = {
        "database": database.name(),
        "options": config.to_dict(options),
        "records": len(refs),
        "records_sha256": hashlib.sha256(names.encode()).hexdigest(),
    }
    path = out / STATE / "conversion.json"
    if not path.exists():
        strangers = [file.name for file in sorted(out.iterdir()) if file.suffix == ".tar" or file.name == MANIFEST]
        if strangers:
            raise ShardError(f"{out} holds {strangers[0]}, which this conversion did not write; give an empty folder")
        (out / STATE).mkdir(exist_ok=True)
        write_json(path, now)
        return
    changed = config.differences(config.read_json(path), now)
    if changed:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise ShardError(f"{out} holds another conversion ({listed}); give another folder, or delete this one")


def _finished(task: Task) -> ShardReport | None:
    """Return the report of a shard that is already there and whole."""
    path = task.out / STATE / f"{task.name}.json"
    if not path.exists():
        return None
    report = config.from_dict(ShardReport, config.read_json(path), path.name)
    if report.shard is None:
        return report
    file = task.out / task.name
    return report if file.exists() and file.stat().st_size == report.shard.bytes else None


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process alone, and turn the system's errors into the user's."""
    try:
        (out / STATE).parent.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise ShardError(f"{out} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ShardError(
                f"another conversion is writing into {out}; wait for it, or give another folder"
            ) from error
        yield


def _write_all(tasks: list[Task], workers: int, progress: Callable[[int], None]) -> None:
    """Write the shards, in this process or in several."""
    if workers <= 1 or len(tasks) <= 1:
        done = 0
        for task in tasks:
            for _ in _write_shard(task):
                done += 1
                progress(done)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the progress bar's thread in a bad moment
    counter = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_start_worker, initargs=(counter,)
    )
    waiting = {pool.submit(_write_shard_in_worker, task) for task in tasks}
    try:
        while waiting:
            done_now, waiting = concurrent.futures.wait(
                waiting, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            progress(counter.value)
            for future in done_now:
                future.result()
    except BaseException:
        # Also Ctrl-C: shards that are whole stay, the others are written next time.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


_COUNTER: Any = None


def _start_worker(counter: Any) -> None:
    """Share the count of records, and leave Ctrl-C to the parent."""
    global _COUNTER
    _COUNTER = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_shard_in_worker(task: Task) -> None:
    for _ in _write_shard(task):
        with _COUNTER.get_lock():
            _COUNTER.value += 1


def _write_shard(task: Task) -> Iterator[None]:
    """Write one shard and its report; yield once a record.

    Raises:
        ShardError: The disk is full, or the folder cannot be written.
    """
    database = load_database(task.database, mend=task.options.mend)
    sums = _Sums()
    temporary = task.out / f"{task.name}.tmp"
    try:
        with temporary.open("wb") as raw:
            file = _HashingFile(raw)
            for ref, doubled in task.refs:
                try:
                    if doubled:
                        raise RecordError("duplicate-record", doubled)
                    record = database.read(ref)
                    form = canonical(
                        record, rate_hz=task.options.rate_hz, min_s=task.options.min_s, bounds=task.options.bounds
                    )
                except RecordError as error:
                    hint = database.hint(error.reason)
                    sums.refuse(ref, error.reason, f"{error.message}; {hint}" if hint else error.message)
                else:
                    sums.keep(record, form, _write_sample(file, ref, record, form))
                yield
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            raw.flush()
            os.fsync(raw.fileno())
        if sums.members["offset"]:
            temporary.replace(task.out / task.name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ShardError(
                f"the disk is full at {temporary}; finished shards are kept, free space and repeat"
            ) from error
        raise ShardError(f"{temporary} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    report = sums.report(task, file)
    write_json(task.out / STATE / f"{task.name}.json", config.to_dict(report))


class _HashingFile:
    """Counts and hashes the bytes on their way to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.bytes += len(content)

    def member(self, name: str, content: bytes) -> int:
        """Write one tar member; return the byte where its content starts."""
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0: the bytes depend on the content alone
        info.size = len(content)
        self.write(info.tobuf(format=tarfile.USTAR_FORMAT))
        start = self.bytes
        self.write(content)
        self.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return start


def _write_sample(file: _HashingFile, ref: RecordRef, record: Record, form: Canonical) -> dict[str, Any]:
    """Write the two members of a sample; return its entry of the index and the hash of its signal."""
    payload = np.ascontiguousarray(form.counts_LT, dtype="<i2").tobytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i2", "fortran_order": False, "shape": form.counts_LT.shape}
    )
    sha256 = hashlib.sha256(payload).hexdigest()
    about: dict[str, Any] = {
        "age": record.age,
        "database": record.database,
        "derived": form.derived,
        "flags": [],
        "fold": record.fold,
        "labels": {scheme: list(codes) for scheme, codes in record.labels.items()},
        "mended": record.mended,
        "microvolt_per_count": form.microvolt_per_count,
        "patient": record.patient,
        "rate_hz": form.rate_hz,
        "record": record.record,
        "sex": record.sex,
        "sha256": sha256,
        "source_rate_hz": record.rate_hz,
        "split": ref.split,
        "start_s": 0.0,
    }
    key = _key(record.record)
    start = file.member(f"{key}.ecg.npy", header.getvalue() + payload)
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    json_offset = file.member(f"{key}.json", text)
    return {
        "offset": start + header.tell(),
        "samples": form.counts_LT.shape[1],
        "microvolt_per_count": form.microvolt_per_count,
        "json_offset": json_offset,
        "json_bytes": len(text),
        "sha256": sha256,
    }


class _Sums:
    """Adds up what a shard's report says."""

    def __init__(self) -> None:
        self.members: dict[str, list[Any]] = {name: [] for name in Members.__dataclass_fields__}
        self.refused: list[dict[str, str]] = []
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("mended", "derived", "rates_hz")}
        self.labels: dict[str, Counter[str]] = {}
        self.patients: set[str] = set()
        self.signal_sha256: dict[str, str] = {}
        self.count = 0
        self.sum_mv = np.zeros(len(LEADS))
        self.sum_square_mv = np.zeros(len(LEADS))

    def refuse(self, ref: RecordRef, reason: str, message: str) -> None:
        self.refused.append({"record": ref.record, "path": str(ref.path), "reason": reason, "message": message})

    def keep(self, record: Record, form: Canonical, entry: dict[str, Any]) -> None:
        for name, values in self.members.items():
            values.append(entry[name])
        self.signal_sha256[record.record] = entry["sha256"]
        self.counts["mended"].update(record.mended)
        self.counts["derived"].update(form.derived)
        self.counts["rates_hz"][f"{form.rate_hz:g}"] += 1
        for scheme, codes in record.labels.items():
            self.labels.setdefault(scheme, Counter()).update(set(codes))
        self.patients.add(record.patient if record.patient is not None else f"record {record.record}")
        # Integers first: exact, and faster than floats.
        counts = form.counts_LT.astype(np.int64)
        self.count += counts.shape[1]
        self.sum_mv += counts.sum(axis=1) * (form.microvolt_per_count * 1e-3)
        self.sum_square_mv += np.einsum("lt,lt->l", counts, counts) * (form.microvolt_per_count * 1e-3) ** 2

    def report(self, task: Task, file: _HashingFile) -> ShardReport:
        samples = len(self.members["offset"])
        shard = Shard(
            name=task.name,
            split=task.split,
            samples=samples,
            bytes=file.bytes,
            sha256=file.sha256.hexdigest(),
            members=Members(**{name: tuple(values) for name, values in self.members.items()}),
        )
        return ShardReport(
            shard=shard if samples else None,
            seen=len(task.refs),
            refused=tuple(self.refused),
            mended=dict(self.counts["mended"]),
            derived=dict(self.counts["derived"]),
            patients=tuple(sorted(self.patients)),
            labels={scheme: dict(counts) for scheme, counts in self.labels.items()},
            rates_hz=dict(self.counts["rates_hz"]),
            signal_sha256=self.signal_sha256,
            count=self.count,
            sum_mv=tuple(self.sum_mv.tolist()),
            sum_square_mv=tuple(self.sum_square_mv.tolist()),
        )
