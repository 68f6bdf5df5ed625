"""What a reader of a public database must offer, and how it is found by name.

A reader finds records cheaply (`refs`) and reads one at a time (`read`) in the counts, rate, lead names
and labels that the files hold. It changes nothing: units, order and rate are made canonical later, in
one place, for all databases. What a database's files say wrongly may be mended only by a rule with a
name, listed in `mends`, which the manifest records.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ecgfm import parts
from ecgfm.errors import ConfigError, DatabaseError
from ecgfm.record import Record, RecordRef


@dataclass(frozen=True, kw_only=True)
class Download:
    """Where the files of a database are published, for tools/download.py."""

    address: str
    """Folder that the files are below, ending in a slash."""
    sums: str = "SHA256SUMS.txt"
    """Published list of hashes, below `address` or with an address of its own: a line `<hash> <path>` for every file,
    or Zenodo's description of a record in JSON. The length of a hash says its kind (SHA-256 or MD5). Empty where none
    is published; then `files` gives names and not patterns, and nothing but their length can be checked."""
    files: tuple[str, ...] = ()
    """Patterns (fnmatch) of the paths that are needed, relative to `address`; all of them when empty."""
    archives: tuple[str, ...] = ()
    """Patterns of the paths that are zip archives: each is unpacked beside itself and then deleted."""
    steps: str = ""
    """What a person must do first (an account, a form), where the files are not open; then nothing is fetched."""


class Database(abc.ABC):
    """A public database: its facts, where its records are, and how one is read."""

    title: ClassVar[str]
    """Name in full, for tables and model cards."""
    licence: ClassVar[str]
    """SPDX identifier where there is one."""
    citation: ClassVar[str]
    """What its authors ask to be cited, in one line."""
    address: ClassVar[str]
    """Where it is published."""
    version: ClassVar[str]
    """Version that this reader was written for."""
    expected_records: ClassVar[int | None] = None
    """Records in a whole copy, so that a partial download is noticed; None when it has no fixed number."""
    native_rates_hz: ClassVar[tuple[float, ...]] = ()
    """Sampling rates that it publishes; empty when it has no fixed one."""
    native_leads: ClassVar[tuple[str, ...]] = ()
    """Names of its leads as its files spell and order them; empty when they differ from record to record."""
    native_unit: ClassVar[str] = "mV"
    """Unit that its files state."""
    highpass_hz: ClassVar[float | None] = None
    """High-pass filter that its signals need for training, applied unless another is asked for; see
    `ecgfm.signal.highpass`."""
    typical_s: ClassVar[float] = 10.0
    """Length of a usual record in seconds; long records make shards of fewer records."""
    download: ClassVar[Download | None] = None
    """Where its files are; None when they cannot be fetched one by one."""
    mends: ClassVar[Mapping[str, str]] = {}
    """Optional rules by name, with what they do; off unless asked for with `--mend NAME`."""

    def __init__(self, *, mend: tuple[str, ...] = ()) -> None:
        for name in mend:
            if name not in self.mends:
                known = ", ".join(self.mends) or "none"
                raise ConfigError(f"--mend {name}: {self.name()} has no such rule (there are: {known})")
        self.mend = mend
        self.called = self.name()
        """What shards, statistics and patients are kept apart by: the reader's name, or that of the archive read."""

    @classmethod
    def name(cls) -> str:
        """Return the database's name as shards and command lines write it: `ptb-xl`."""
        return parts.kind_of(cls).replace("_", "-")

    def hint(self, reason: str) -> str:
        """Return what a user can do about a record that was refused for `reason`, or an empty string."""
        if reason != "implausible-amplitude":
            return ""
        unused = [f"--mend {name} ({what})" for name, what in self.mends.items() if name not in self.mend]
        return f"this database has a rule for it: {', '.join(unused)}" if unused else ""

    @abc.abstractmethod
    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record below `root`, in any order, without reading a signal.

        Raises:
            DatabaseError: `root` is missing, or is not this database.
        """

    @abc.abstractmethod
    def read(self, ref: RecordRef) -> Record:
        """Read one record.

        Raises:
            RecordError: The record cannot be trusted: truncated, header and signal disagree, ...
        """


def load_database(name: str, *, mend: tuple[str, ...] = ()) -> Database:
    """Return the reader called `name` (`ptb-xl` or `ptb_xl`).

    Raises:
        ConfigError: There is none; the message names the nearest, as a command line writes them.
    """
    return parts.load("ecgfm.databases", name, Database, hyphens=True)(mend=mend)  # type: ignore[type-abstract]


def folder(root: Path, what: str) -> Path:
    """Return `root` when it is a folder that can be read.

    Raises:
        DatabaseError: It is missing, a file, or closed to us.
    """
    if not root.exists():
        raise DatabaseError(f"{root} does not exist; give the folder that holds {what}")
    if not root.is_dir():
        raise DatabaseError(f"{root} is a file; give the folder that holds {what}")
    try:
        next(root.iterdir(), None)
    except PermissionError as error:
        raise DatabaseError(f"{root} cannot be listed: {error.strerror}; check its permissions") from error
    return root
