"""What a folder of shards says about itself: `manifest.json`, and the index of every member.

The manifest is the sum of what each shard reports (`ShardReport`), in shard order, so that it does not
depend on how many workers wrote them. All of it is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import ecgfm
from ecgfm import config
from ecgfm.databases.base import Database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.leads import LEADS

SCHEMA = 2
MANIFEST = "manifest.json"
REFUSED = "refused.jsonl"


@dataclass(frozen=True, kw_only=True)
class Members:
    """Where each sample of a shard is and whose it is, one entry a sample, in the order of the tar."""

    offset: tuple[int, ...]
    """Byte of the first int16 in the shard."""
    samples: tuple[int, ...]
    """T of the (12, T) array."""
    microvolt_per_count: tuple[float, ...]
    json_offset: tuple[int, ...]
    json_bytes: tuple[int, ...]
    record: tuple[str, ...]
    """The record; several samples may be segments of one."""
    patient: tuple[str, ...]
    """Empty where the database does not say."""
    content: tuple[str, ...]
    """Fingerprint of the source signal, by which the same recording is known in another packaging; may be empty. See
    `ecgfm.signal.fingerprint`."""
    flags: tuple[str, ...]
    """Quality flags, joined with commas."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of the manifest."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    members: Members


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A line of `refused.jsonl`: a record, or a segment of a kept record, that was left out."""

    record: str
    path: str
    reason: str
    message: str
    start_s: float | None = None
    """Where the segment starts; None when the whole record is refused."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What the writer of one shard hands on: the shard, what was refused, and sums to add up."""

    shard: Shard | None
    """None when every record of it was refused."""
    seen: int
    """Records."""
    kept: int
    """Records of which at least one segment was kept."""
    refused: tuple[Refused, ...]
    counts: dict[str, dict[str, int]]
    """Counts of records or segments by name, one dictionary for each of `COUNTS`."""
    labels: dict[str, dict[str, int]]
    """Records by scheme and code."""
    signal_sha256: tuple[str, ...]
    """Hash of the counts of each sample."""
    kept_s: float
    """Seconds in the shard."""
    cut_s: float
    """Seconds at the ends of long recordings that were too short for a segment."""
    count: tuple[int, ...]
    """Per lead: samples that enter the statistics."""
    sum_mv: tuple[float, ...]
    """Per lead."""
    sum_square_mv: tuple[float, ...]


COUNTS = ("mended", "derived", "rates_hz", "flags", "sex", "ages")
"""Counts that reports and manifest share."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a user of the shards must know."""

    schema: int
    ecgfm: str
    database: str
    title: str
    licence: str
    citation: str
    address: str
    version: str
    expected_records: int | None
    options: dict[str, Any]
    """The conversion's settings, thresholds included."""
    leads: tuple[str, ...]
    seen: int
    """Records."""
    kept: int
    """Records of which at least one segment was kept."""
    segments: int
    """Samples of the shards; as many as records kept, unless long recordings were cut."""
    refused: dict[str, int]
    """Records by reason; each has a line in `refused.jsonl`."""
    refused_segments: dict[str, int]
    """Segments of kept records by reason; likewise."""
    kept_s: float
    """Seconds in the shards."""
    cut_s: float
    """Seconds at the ends of long recordings that were too short for a segment."""
    mended: dict[str, int]
    """Records by the rule that changed what their files say."""
    derived: dict[str, int]
    """Records in which a lead was computed from I and II, by lead."""
    flags: dict[str, int]
    """Segments by quality flag; `options.thresholds` says when a flag is raised."""
    patients: int
    sex: dict[str, int]
    """Records by sex; unknown ones are not counted."""
    ages: dict[str, int]
    """Records by whole years; likewise."""
    rates_hz: dict[str, int]
    """Segments by sampling rate of the shards."""
    mean_mv: tuple[float, ...]
    """Per lead, over all samples kept but those of leads that are flagged as flat, dead, saturated or implausible."""
    std_mv: tuple[float, ...]
    labels: dict[str, dict[str, int]]
    """Records by scheme and code."""
    same_signal: tuple[tuple[str, ...], ...]
    """Groups of records whose counts are the same to the last bit."""
    shards: tuple[Shard, ...] = field(default=())


class Merger:
    """Adds up the reports of all shards, one at a time and in shard order, to the manifest."""

    def __init__(self) -> None:
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._labels: dict[str, Counter[str]] = defaultdict(Counter)
        self._shards: list[Shard] = []
        self._digests: list[bytes] = []
        self._records: list[str] = []
        self._patients: set[str] = set()
        self._totals: Counter[str] = Counter()
        self._kept_s = self._cut_s = 0.0
        self._count, self._sum, self._square = (np.zeros(len(LEADS)) for _ in range(3))

    def add(self, report: ShardReport) -> None:
        """Add the next shard."""
        self._totals.update(seen=report.seen, kept=report.kept)
        for line in report.refused:
            self._sums["refused" if line.start_s is None else "refused_segments"][line.reason] += 1
        for name, counts in report.counts.items():
            self._sums[name].update(counts)
        for scheme, counts in report.labels.items():
            self._labels[scheme].update(counts)
        if report.shard:
            self._shards.append(report.shard)
            members = report.shard.members
            self._records += members.record
            self._digests += (bytes.fromhex(digest) for digest in report.signal_sha256)
            self._patients.update(
                patient or f"record {record}" for patient, record in zip(members.patient, members.record, strict=True)
            )
        self._kept_s += report.kept_s
        self._cut_s += report.cut_s
        self._count += report.count
        self._sum += report.sum_mv
        self._square += report.sum_square_mv

    def manifest(self, database: Database, options: Mapping[str, Any]) -> Manifest:
        """Return the manifest of all reports that were added."""
        count = np.maximum(self._count, 1)
        mean = self._sum / count
        std = np.sqrt(np.maximum(self._square / count - mean**2, 0.0))
        counts = {name: dict(sorted(self._sums[name].items())) for name in (*COUNTS, "refused", "refused_segments")}
        return Manifest(
            schema=SCHEMA,
            ecgfm=ecgfm.__version__,
            database=database.called,
            title=database.title,
            licence=database.licence,
            citation=database.citation,
            address=database.address,
            version=database.version,
            expected_records=database.expected_records,
            options=dict(options),
            leads=LEADS,
            seen=self._totals["seen"],
            kept=self._totals["kept"],
            segments=len(self._records),
            kept_s=round(self._kept_s, 3),
            cut_s=round(self._cut_s, 3),
            patients=len(self._patients),
            mean_mv=tuple(float(value) for value in mean),
            std_mv=tuple(float(value) for value in std),
            labels={scheme: dict(sorted(codes.items())) for scheme, codes in sorted(self._labels.items())},
            same_signal=self._same(),
            shards=tuple(self._shards),
            **counts,
        )

    def _same(self) -> tuple[tuple[str, ...], ...]:
        """Return the groups of equal signals. Sorting eight bytes of each hash finds them in a million at once."""
        if not self._digests:
            return ()
        first = np.frombuffer(b"".join(digest[:8] for digest in self._digests), dtype="<u8")
        order = np.argsort(first, kind="stable")
        repeated = np.flatnonzero(first[order][1:] == first[order][:-1])
        groups: dict[bytes, list[int]] = defaultdict(list)
        for index in sorted({int(order[place + more]) for place in repeated for more in (0, 1)}):
            groups[self._digests[index]].append(index)
        return tuple(tuple(self._records[index] for index in group) for group in groups.values() if len(group) > 1)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        ShardError: There is none, or it is damaged or of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} does not exist; give a folder that tools/convert.py wrote, and has finished")
    try:
        data = config.read_json(path)
        if isinstance(data, dict) and data.get("schema") != SCHEMA:
            raise ShardError(f"{path} has schema {data.get('schema')!r}, this version reads {SCHEMA}; convert again")
        return config.from_dict(Manifest, data, path.name)
    except ConfigError as error:
        raise ShardError(f"{path} is damaged: {error}; convert again") from error


def manifest_sha256(folder: Path) -> str:
    """Return the SHA-256 of a folder's manifest, which through its hashes names the data itself."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest: settings and counts a line each, every shard with its index on a line of its own.

    Indenting the index of a million samples would cost a minute, and nobody could read it.
    """
    head = config.to_dict(replace(manifest, shards=()))
    before, after = json.dumps(head, indent=1, sort_keys=True, allow_nan=False).split('"shards": []')

    def pieces() -> Iterator[bytes]:
        yield f'{before}"shards": ['.encode()
        for number, shard in enumerate(manifest.shards):
            line = json.dumps(config.to_dict(shard), sort_keys=True, separators=(",", ":"), allow_nan=False)
            yield f"{',' if number else ''}\n{line}".encode()
        yield f"\n]{after}\n".encode()

    write_pieces(folder / MANIFEST, pieces())


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_pieces(path, (content,))


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C, too, leaves nothing half-written
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ShardError(f"{path} cannot be written: {error.strerror}") from error
        raise
