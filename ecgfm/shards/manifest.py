"""What a folder of shards says about itself: `manifest.json`, and the index of every member.

The manifest is the sum of what each shard reports (`ShardReport`), in shard order, so that it does not
depend on how many workers wrote them. All of it is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ecgfm
from ecgfm import config
from ecgfm.databases.base import Database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.leads import LEADS

SCHEMA = 1
MANIFEST = "manifest.json"
REFUSED = "refused.jsonl"


@dataclass(frozen=True, kw_only=True)
class Members:
    """Where each sample of a shard is, one entry a sample, in the order of the tar."""

    offset: tuple[int, ...]
    """Byte of the first int16 in the shard."""
    samples: tuple[int, ...]
    """T of the (12, T) array."""
    microvolt_per_count: tuple[float, ...]
    json_offset: tuple[int, ...]
    json_bytes: tuple[int, ...]


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
class ShardReport:
    """What the writer of one shard hands on: the shard, what was refused, and sums to add up."""

    shard: Shard | None
    """None when every record of it was refused."""
    seen: int
    refused: tuple[dict[str, str], ...]
    """Record, path, reason and message of each."""
    mended: dict[str, int]
    derived: dict[str, int]
    patients: tuple[str, ...]
    labels: dict[str, dict[str, int]]
    rates_hz: dict[str, int]
    signal_sha256: dict[str, str]
    """Hash of the counts, by record."""
    count: int
    """Samples of a lead, over all records."""
    sum_mv: tuple[float, ...]
    """Per lead."""
    sum_square_mv: tuple[float, ...]


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
    """The conversion's settings."""
    leads: tuple[str, ...]
    seen: int
    kept: int
    refused: dict[str, int]
    """Records by reason; each has a line in `refused.jsonl`."""
    mended: dict[str, int]
    """Records by the rule that changed what their files say."""
    derived: dict[str, int]
    """Records in which a lead was computed from I and II, by lead."""
    patients: int
    rates_hz: dict[str, int]
    """Records by sampling rate of the shards."""
    mean_mv: tuple[float, ...]
    """Per lead, over all samples kept."""
    std_mv: tuple[float, ...]
    labels: dict[str, dict[str, int]]
    """Records by scheme and code."""
    same_signal: tuple[tuple[str, ...], ...]
    """Groups of records whose counts are the same to the last bit."""
    shards: tuple[Shard, ...] = field(default=())


def merge(database: Database, options: Mapping[str, Any], reports: Sequence[ShardReport]) -> Manifest:
    """Return the manifest of all reports, given in shard order."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    by_hash: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        totals["refused"].update(line["reason"] for line in report.refused)
        for name in ("mended", "derived", "rates_hz"):
            totals[name].update(getattr(report, name))
        for scheme, counts in report.labels.items():
            labels[scheme].update(counts)
        for record, digest in report.signal_sha256.items():
            by_hash[digest].append(record)
    count = sum(report.count for report in reports)
    mean = np.sum([report.sum_mv for report in reports], axis=0) / max(count, 1)
    square = np.sum([report.sum_square_mv for report in reports], axis=0) / max(count, 1)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return Manifest(
        schema=SCHEMA,
        ecgfm=ecgfm.__version__,
        database=database.name(),
        title=database.title,
        licence=database.licence,
        citation=database.citation,
        address=database.address,
        version=database.version,
        expected_records=database.expected_records,
        options=dict(options),
        leads=LEADS,
        seen=sum(report.seen for report in reports),
        kept=sum(report.shard.samples for report in reports if report.shard),
        refused=dict(sorted(totals["refused"].items())),
        mended=dict(sorted(totals["mended"].items())),
        derived=dict(sorted(totals["derived"].items())),
        patients=len({patient for report in reports for patient in report.patients}),
        rates_hz=dict(sorted(totals["rates_hz"].items())),
        mean_mv=tuple(float(value) for value in mean),
        std_mv=tuple(float(value) for value in std),
        labels={scheme: dict(sorted(counts.items())) for scheme, counts in sorted(labels.items())},
        same_signal=tuple(tuple(group) for group in by_hash.values() if len(group) > 1),
        shards=tuple(report.shard for report in reports if report.shard),
    )


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ShardError(f"{path} cannot be written: {error.strerror}") from error
