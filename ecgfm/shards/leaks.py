"""No recording and no patient on both sides of a split: what a mixture of shards shares with held-out records.

Databases overlap: PTB-XL is in the Challenge 2021, PTB is published twice, and a user's own folder may hold any of
them. So recordings are compared by what is in them (`ecgfm.signal.fingerprint`), and patients by name within a
database. Only manifests are read.

The rules:

1. A record that pretraining reads (splits `all` and `train`) must not be a recording of a held-out split (`val`,
   `test`) of any folder given.
2. Its patient must not be one of a held-out split of the same database. A record without a patient is one of its own.
3. One recording in several records of pretraining is no leak, but it is counted: the mixture weighs it twice.

A recording is compared in its first 10 s, and a long one that was cut into segments in the first 10 s of each; two
databases that cut it at different places are not compared. What PTB-XL holds out can only be recognised where its
shards are given: the report says when they are not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ShardError
from ecgfm.shards.manifest import Manifest, read_manifest
from ecgfm.shards.same import find_same, match
from ecgfm.signal.fingerprint import SAME_BITS, to_bytes

PRETRAINING_SPLITS = ("all", "train")
HELD_OUT_SPLITS = ("val", "test")
EXAMPLES = 3
# Databases of a user's own, which share a name and not their patients.
_OWN = ("wfdb-folder", "numpy-folder")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a record is."""

    folder: Path
    database: str
    record: str
    split: str
    patient: str
    """Empty where the database does not say."""

    def __str__(self) -> str:
        return f"{self.database} {self.record} (split {self.split} of {self.folder})"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A record of pretraining that is held out elsewhere, by its signal or by its patient."""

    what: Literal["recording", "patient"]
    pretraining: Place
    held_out: Place
    differ_bits: int
    """Of the fingerprints; 0 for patients."""

    def __str__(self) -> str:
        how = "the same recording as" if self.what == "recording" else f"of patient {self.held_out.patient!r}, as is"
        return f"{self.pretraining} is {how} {self.held_out}"


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """Recordings of pretraining that two databases share, or that one holds twice."""

    databases: tuple[str, str]
    count: int
    """Recordings, each counted once however often it is there."""
    examples: tuple[tuple[Place, Place], ...]


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """What was compared, and what was found."""

    pretraining: int
    """Samples (records, or segments of them) that pretraining reads."""
    held_out: int
    without_content: int
    """Samples of both that no fingerprint tells apart, and that were compared by patient alone."""
    leaks: tuple[Leak, ...]
    """One for each record of pretraining and held-out patient."""
    doubled: tuple[Doubled, ...]
    notes: tuple[str, ...]
    """What could not be compared."""


class _Samples:
    """The samples of some splits, as columns."""

    def __init__(self) -> None:
        self.folders: list[tuple[Path, str]] = []
        """Folder and database, by number."""
        self.folder: list[int] = []
        self.split: list[str] = []
        self.record: list[str] = []
        self.patient: list[str] = []
        self.content: list[str] = []

    def __len__(self) -> int:
        return len(self.record)

    def add(self, folder: Path, manifest: Manifest, splits: Iterable[str]) -> None:
        self.folders.append((folder, manifest.database))
        for shard in manifest.shards:
            if shard.split in splits:
                self.folder += [len(self.folders) - 1] * shard.samples
                self.split += [shard.split] * shard.samples
                self.record += shard.members.record
                self.patient += shard.members.patient
                self.content += shard.members.content

    def place(self, index: int) -> Place:
        folder, database = self.folders[self.folder[index]]
        return Place(
            folder=folder,
            database=database,
            record=self.record[index],
            split=self.split[index],
            patient=self.patient[index],
        )

    def fingerprints(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return which samples have a fingerprint, and these as bytes."""
        with_content = np.array([i for i, text in enumerate(self.content) if text], dtype=np.int64)
        return with_content, to_bytes([text for text in self.content if text])

    def people(self) -> dict[tuple[str, str, str], int]:
        """Return the first sample of each patient, by database, patient and, for lack of one, record."""
        found: dict[tuple[str, str, str], int] = {}
        names = [str(folder) if database in _OWN else database for folder, database in self.folders]
        for index, (folder, patient) in enumerate(zip(self.folder, self.patient)):
            found.setdefault((names[folder], patient, "" if patient else self.record[index]), index)
        return found


def check_leaks(
    folders: Sequence[Path],
    held_out: Sequence[Path] = (),
    *,
    pretraining_splits: Sequence[str] = PRETRAINING_SPLITS,
    most_bits: int = SAME_BITS,
    doubled: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LeakReport:
    """Compare what pretraining on some folders of shards would read with what is held out.

    Args:
        folders: The mixture; their own splits `val` and `test` are held out.
        held_out: More folders, of which only `val` and `test` are looked at; all of a folder that has neither.
        pretraining_splits: Splits that pretraining reads.
        most_bits: Bits in which fingerprints of one recording may differ.
        doubled: Look for recordings that pretraining has twice, too; a million records take a minute.
        progress: Called now and then with the steps done and the steps in all, for this longest part.

    Raises:
        ShardError: A manifest is missing or damaged.
        ConfigError: `most_bits` is not 0 to 48.
    """
    read, kept = _Samples(), _Samples()
    given = {folder.resolve(): folder for folder in (*held_out, *folders)}  # each folder once, however it is written
    manifests = {folder: read_manifest(folder) for folder in given.values()}
    for folder, manifest in manifests.items():
        has = {shard.split for shard in manifest.shards}
        if folder in folders:
            read.add(folder, manifest, pretraining_splits)
        kept.add(folder, manifest, HELD_OUT_SPLITS if folder in folders or has.intersection(HELD_OUT_SPLITS) else has)
    read_at, read_NB = read.fingerprints()
    kept_at, kept_MB = kept.fingerprints()
    nearest, bits = match(read_NB, kept_MB, most_bits)
    leaks = [
        Leak(
            what="recording",
            pretraining=read.place(int(read_at[i])),
            held_out=kept.place(int(kept_at[nearest[i]])),
            differ_bits=int(bits[i]),
        )
        for i in np.flatnonzero(nearest >= 0)
    ]
    others = kept.people()
    leaks += [
        Leak(what="patient", pretraining=read.place(index), held_out=kept.place(others[person]), differ_bits=0)
        for person, index in read.people().items()
        if person in others
    ]
    return LeakReport(
        pretraining=len(read),
        held_out=len(kept),
        without_content=len(read) + len(kept) - len(read_at) - len(kept_at),
        leaks=tuple(leaks),
        doubled=_doubled(read, read_at, find_same(read_NB, most_bits, progress)) if doubled else (),
        notes=_notes(manifests.values()),
    )


def require_no_leak(
    folders: Sequence[Path], held_out: Sequence[Path] = (), *, most_bits: int = SAME_BITS
) -> LeakReport:
    """Refuse a mixture that holds a record or a patient of a held-out split; takes seconds for a million records.

    Args:
        folders: As for `check_leaks`.
        held_out: Likewise.
        most_bits: Likewise.

    Returns:
        The report, for its counts and notes.

    Raises:
        ShardError: There is a leak; the message says how many, which records, and what to do.
        ConfigError: As for `check_leaks`.
    """
    report = check_leaks(folders, held_out, most_bits=most_bits, doubled=False)
    if report.leaks:
        where = sorted({str(leak.pretraining.folder) for leak in report.leaks})
        examples = "; ".join(str(leak) for leak in report.leaks[:EXAMPLES])
        counts = Counter(leak.what for leak in report.leaks)
        raise ShardError(
            f"{counts['recording']:,} of {report.pretraining:,} recordings of this mixture and {counts['patient']:,} "
            f"of its patients are held out: {examples}. Leave out {', '.join(where)}, or convert it again without "
            "these records; tools/check_leaks.py shows more"
        )
    return report


def _doubled(samples: _Samples, at: NDArray[np.int64], pairs_P2: NDArray[np.int64]) -> tuple[Doubled, ...]:
    """Return what two databases share, from the pairs of samples that are the same."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            parent[one] = one = parent[parent[one]]
        return one

    for one, other in at[pairs_P2].tolist():
        parent[root(other)] = root(one)
    groups: dict[int, dict[tuple[int, str], int]] = defaultdict(dict)
    for one in sorted(parent):
        # Segments of one record may resemble each other; that doubles nothing.
        groups[root(one)].setdefault((samples.folder[one], samples.record[one]), one)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[tuple[Place, Place]]] = defaultdict(list)
    for group in groups.values():
        by_database: dict[str, list[int]] = defaultdict(list)
        for (folder, _), index in group.items():
            by_database[samples.folders[folder][1]].append(index)
        for one, other in combinations_with_replacement(sorted(by_database), 2):
            if one == other and len(by_database[one]) == 1:
                continue
            counts[one, other] += 1
            if len(examples[one, other]) < EXAMPLES:
                first, second = by_database[one][0], by_database[other][-1]
                examples[one, other].append((samples.place(first), samples.place(second)))
    return tuple(
        Doubled(databases=names, count=count, examples=tuple(examples[names]))
        for names, count in sorted(counts.items())
    )


def _notes(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    """Return what the folders given leave open."""
    if any(m.database == "ptb-xl" and any(s.split == "test" for s in m.shards) for m in manifests):
        return ()
    return (
        "not compared with PTB-XL's validation and test folds: give its shards with --held-out (of a recipe: "
        "--data.held-out)",
    )
