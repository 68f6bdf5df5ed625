"""Write a database into shards: same input, same bytes, whatever the number of workers.

Which record goes into which shard is decided before anything is read: the references sorted by name and
cut into blocks, one block a shard. A refused record leaves its shard one sample short. A shard is written
under a temporary name and renamed when it is whole, and its report is kept in `.convert/`, so that a
conversion that was stopped goes on with what is missing.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ecgfm import config, labels
from ecgfm.databases.base import Database, load_database
from ecgfm.errors import DatabaseError, RecordError, ShardError
from ecgfm.record import Record, RecordRef
from ecgfm.shards.manifest import (
    MANIFEST,
    REFUSED,
    Manifest,
    Merger,
    ShardReport,
    write_bytes,
    write_json,
    write_manifest,
    write_pieces,
)
from ecgfm.shards.report import Sums
from ecgfm.shards.tar import Place, TarWriter
from ecgfm.shards.workers import run_all
from ecgfm.signal.canonical import Canonical, Policy, canonical

STATE = ".convert"
BUFFER_BYTES = 1 << 20
SHARD_S = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the bytes of the shards; the manifest repeats it."""

    signal: Policy = field(default_factory=lambda: Policy(highpass_hz="database"))
    """What is done to the signals."""
    mend: tuple[str, ...] = ()
    """Rules of the database that are switched on."""
    records_per_shard: int | None = None
    """Records of one tar; by default as many as make 10,000 s, which are 120 MB at 500 Hz."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to be written."""

    reader: str
    database: str
    """What the shards call it."""
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
    options = _resolved(options, database)
    refs = sorted(database.refs(source), key=lambda ref: (ref.split, ref.file, ref.index, ref.record))
    if not refs:
        raise DatabaseError(f"no record of {database.name()} below {source}; is it the right folder?")
    with _locked(out):
        tasks = _plan(database, refs, out, options)
        _check_same_conversion(out, database, source, options, refs)
        _remove_leftovers(out)
        missing = [task for task in tasks if _finished(task) is None]
        ready = len(refs) - sum(len(task.refs) for task in missing)
        progress(ready, len(refs))
        try:
            run_all(_write_shard, missing, workers, lambda done: progress(ready + done, len(refs)))
        except BaseException:  # Ctrl-C, too: shards that are whole stay, the others are written next time
            _remove_leftovers(out)
            raise
        return _finish(database, tasks, out, options)


def _remove_leftovers(out: Path) -> None:
    """Delete what a process left that was killed."""
    for leftover in [*out.glob("*.tmp"), *(out / STATE).glob("*.tmp")]:
        leftover.unlink(missing_ok=True)


def _finish(database: Database, tasks: list[Task], out: Path, options: Options) -> Manifest:
    """Add the shards' reports up to the manifest and the list of what was refused."""
    merger = Merger()

    def lines() -> Iterator[bytes]:
        for task in tasks:
            report = _finished(task)
            assert report is not None, task.name
            merger.add(report)
            for line in report.refused:
                yield (json.dumps(config.to_dict(line), sort_keys=True) + "\n").encode()

    write_pieces(out / REFUSED, lines())
    manifest = merger.manifest(database, config.to_dict(options))
    write_manifest(out, manifest)
    return manifest


def _plan(database: Database, refs: list[RecordRef], out: Path, options: Options) -> list[Task]:
    """Cut the sorted references into shards; a second record of one name is refused here."""
    first: dict[str, RecordRef] = {}
    blocks: dict[str, list[tuple[RecordRef, str | None]]] = {}
    for ref in refs:
        earlier = first.setdefault(_key(ref.record), ref)
        message = f"a record of this name is already at {earlier.file}; delete or rename one of them"
        blocks.setdefault(ref.split, []).append((ref, None if earlier is ref else message))
    size = options.records_per_shard
    assert size is not None
    return [
        Task(
            reader=database.name(),
            database=database.called,
            name=f"{database.called}-{split}-{number:06d}.tar",
            split=split,
            refs=tuple(block[start : start + size]),
            options=options,
            out=out,
        )
        for split, block in blocks.items()
        for number, start in enumerate(range(0, len(block), size))
    ]


def _resolved(options: Options, database: Database) -> Options:
    """Return the options with what the database decides: its high-pass filter, and how long its records are."""
    if options.signal.highpass_hz == "database":
        options = replace(options, signal=replace(options.signal, highpass_hz=database.highpass_hz))
    if options.records_per_shard is None:
        options = replace(options, records_per_shard=max(1, round(SHARD_S / database.typical_s)))
    return options


def _key(record: str) -> str:
    """Return a name for a member: WebDataset cuts it at the first dot, and a tar's header holds a hundred bytes.

    A name that has to be changed ends in a hash of itself, so that no two become one.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", record):
        return record
    return f"{re.sub('[^A-Za-z0-9_-]', '_', record)[-64:]}-{hashlib.sha256(record.encode()).hexdigest()[:8]}"


def _check_same_conversion(
    out: Path, database: Database, source: Path, options: Options, refs: list[RecordRef]
) -> None:
    """Refuse a folder that holds other shards than those asked for now."""
    # What the tables say of a record is part of it: a corrected unit or patient must not find the old shards.
    said = hashlib.sha256()
    for ref in refs:
        text = repr((ref.split, ref.record, ref.index, sorted(ref.info.items())))
        said.update(text.replace(str(source), "").encode())  # the folder may be moved
    now = {
        "database": database.called,
        "options": config.to_dict(options),
        "records": len(refs),
        "records_sha256": said.hexdigest(),
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
        listed = "; ".join(
            "the records, or what the tables say of them, have changed"
            if name == "records_sha256"
            else f"{name} was {old!r}, now {new!r}"
            for name, (old, new) in changed.items()
        )
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


def _write_shard(task: Task) -> Iterator[None]:
    """Write one shard and its report; yield once a record.

    Raises:
        ShardError: The disk is full, or the folder cannot be written.
    """
    database = load_database(task.reader, mend=task.options.mend)
    sums = Sums()
    temporary = task.out / f"{task.name}.tmp"
    try:
        with temporary.open("wb", buffering=BUFFER_BYTES) as raw:
            tar = TarWriter(raw)
            for ref, doubled in task.refs:
                try:
                    if doubled:
                        raise RecordError("duplicate-record", doubled)
                    record = database.read(ref)
                    form = canonical(record, task.options.signal)
                    about = _about(task.database, ref, record, form)
                    sums.keep(ref, record, form, about["labels"], _write_samples(tar, about, form))
                except RecordError as error:
                    hint = database.hint(error.reason)
                    sums.refuse(ref, error.reason, f"{error.message}; {hint}" if hint else error.message)
                yield
            tar.end()
            raw.flush()
            os.fsync(raw.fileno())
        if sums.samples:
            temporary.replace(task.out / task.name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ShardError(
                f"the disk is full at {temporary}; finished shards are kept, free space and repeat"
            ) from error
        raise ShardError(f"{temporary} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    report = sums.report(name=task.name, split=task.split, seen=len(task.refs), tar=tar)
    # In one line: indenting takes Python's slow way through a thousand records' index.
    write_bytes(task.out / STATE / f"{task.name}.json", json.dumps(config.to_dict(report), allow_nan=False).encode())


def _about(database: str, ref: RecordRef, record: Record, form: Canonical) -> dict[str, Any]:
    """Return what the JSON of every segment of a record says."""
    mapped = labels.derived(record.labels, record.database)
    return {
        "age": record.age,
        "database": database,
        "derived": form.derived,
        "fold": record.fold,
        "labels": {scheme: list(codes) for scheme, codes in {**record.labels, **mapped}.items()},
        "mended": record.mended,
        "patient": record.patient,
        "rate_hz": form.rate_hz,
        "record": record.record,
        "sex": record.sex,
        "source_rate_hz": record.rate_hz,
        "split": ref.split,
    }


def _write_samples(tar: TarWriter, about: dict[str, Any], form: Canonical) -> list[Place]:
    """Write the segments of a record."""
    key = _key(about["record"])
    whole = len(form.segments) == 1 and not form.refused
    places = []
    for segment in form.segments:
        own = {
            "content": segment.content,
            "flags": segment.flags,
            "microvolt_per_count": segment.microvolt_per_count,
            "start_s": segment.start_s,
        }
        # No record's key holds an @, so that no segment can be called as another record.
        name = key if whole else f"{key}@{segment.start_s:05.0f}"
        places.append(tar.sample(name, segment.counts_LT, about | own))
    return places
