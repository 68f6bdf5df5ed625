"""What every file format gives, which files there are, and which format reads one.

Rate, leads and unit are the file's own, and never guessed. Where a format does not carry them they must be told: in a
JSON file beside the array, in the folder's dataset.json, or as `Told`.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import contextlib
import glob
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm import parts
from ecgfm.databases._wfdb_header import find_files
from ecgfm.errors import ConfigError, RecordError
from ecgfm.record import Sex

Axes = Literal["leads,samples", "samples,leads"]
DICOM_MARK = b"DICM"
DICOM_MARK_AT = 128


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording as its file gives it."""

    signal_LT: NDArray[np.float64]
    """Shape (L, T), in `unit`; NaN where the file says that there is no sample."""
    rate_hz: float
    leads: tuple[str, ...]
    """L names: the standard ones as published, in any case and order, and others where the file has them."""
    unit: str
    """mV, uV or V."""
    name: str
    """The record's name: of the header, or the file's with its number where it holds several."""
    age: float | None = None
    """Years."""
    sex: Sex | None = None


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of files whose format does not say it."""

    rate_hz: float | None = None
    """Samples per second."""
    leads: tuple[str, ...] | None = None
    """Names in the order of the array."""
    unit: str | None = None
    """mV, uV, V, or counts, which needs microvolt_per_count."""
    microvolt_per_count: float | None = None
    """How much one count is."""
    axes: Axes = "leads,samples"
    """The last two axes of the array."""
    variable: str | None = None
    """Name of the array in an .npz, .mat or HDF5 file; where one array fits the leads it is found by itself."""


class FileFormat(ABC):
    """A file format; a file of this folder holds one."""

    title: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    """Of the files' names, in lower case, with the dot."""
    self_describing: ClassVar[bool]
    """Do its files say rate, leads and unit?"""

    @abstractmethod
    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the recordings of a file.

        Args:
            path: An existing file.
            told: What is known besides; a format that says it itself does not look here.

        Raises:
            RecordError: The file is damaged, or not what it says, or something is not told.
            ConfigError: A package is not installed.
        """

    @classmethod
    def owner(cls, path: Path) -> Path:
        """Return the file that is to be read where `path` is a part of it."""
        return path


def read_recording(
    path: str | Path,
    *,
    rate_hz: float | None = None,
    leads: Sequence[str] | None = None,
    unit: str | None = None,
    microvolt_per_count: float | None = None,
    axes: Axes = "leads,samples",
    variable: str | None = None,
) -> Recording:
    """Return the one recording of a file.

    Args:
        path: WFDB by its header (.hea, or without ending), .npy, .npz, .mat, .h5, .hdf5, .edf, .bdf or DICOM.
        rate_hz: Samples per second; this and the following only of arrays, whose files do not say it.
        leads: Lead names in the order of the array.
        unit: mV, uV, V, or counts.
        microvolt_per_count: How much one count is, of the unit counts.
        axes: Of the array.
        variable: Name of the array in the file.

    Raises:
        RecordError: It cannot be read, holds several recordings, or rate, leads or unit are not known.
        ConfigError: A package that reads the format is not installed.
    """
    told = Told(
        rate_hz=rate_hz,
        leads=None if leads is None else tuple(leads),
        unit=unit,
        microvolt_per_count=microvolt_per_count,
        axes=axes,
        variable=variable,
    )
    found = read_recordings(path, told)
    first = next(found, None)
    if first is None or next(found, None) is not None:
        what = "no recording" if first is None else "several recordings"
        raise RecordError("not-one-recording", f"{path} holds {what}; ecgfm.files.read_recordings gives all of them")
    return first


def read_recordings(path: str | Path, told: Told = Told()) -> Iterator[Recording]:
    """Yield the recordings of a file; see `read_recording`."""
    path = header_of(Path(path))
    kind = format_of(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise RecordError("file-missing", f"{path} {what}; give a file")
    if kind is None:
        known = ", ".join(sorted(ending for one in formats() for ending in one.endings))
        raise RecordError("format-unknown", f"{path} is of no format that is read ({known}, DICOM without ending)")
    yield from kind.read(path, told)


def formats() -> list[FileFormat]:
    """Return all formats."""
    return [parts.load(__package__, name, FileFormat)() for name in parts.names(__package__)]  # type: ignore[type-abstract]


def format_of(path: Path) -> FileFormat | None:
    """Return the format of a file, by the ending of its name; of one without ending, DICOM where it is marked so."""
    ending = path.suffix.lower()
    for one in formats():
        if ending in one.endings or (not ending and ".dcm" in one.endings and _is_dicom(path)):
            return one
    return None


def header_of(path: Path) -> Path:
    """Return the WFDB header where `path` is a record's name or signal file, else `path`."""
    if path.suffix.lower() in (".mat", ".dat") and path.with_suffix(".hea").is_file():
        return path.with_suffix(".hea")
    beside = path.with_name(path.name + ".hea")
    return beside if not path.is_file() and beside.is_file() else path


def find(words: Sequence[str | Path]) -> list[Path]:
    """Return the files that words name: files, records, folders (all formats, at any depth), and patterns.

    Args:
        words: Such as `ward3`, `"ward3/**/*.edf"`, `e0001.hea`. What does not exist is returned as it is, so that
            reading refuses it by name.

    Raises:
        DatabaseError: A folder cannot be listed.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            some = [one for one in find_files(path, "") if format_of(one) is not None]
        elif not path.exists() and glob.has_magic(str(word)):
            some = [Path(one) for one in sorted(glob.glob(str(word), recursive=True)) if not os.path.isdir(one)]  # noqa: PTH112, PTH207
            some = some or [path]
        else:
            some = [path]
        found |= dict.fromkeys(map(header_of, some))
    return list(found)


@contextlib.contextmanager
def reads(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a reader raises of a damaged file into the record's error, and a missing package into ours."""
    damage: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, *errors)
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} needs the package {error.name}: pip install 'ecgfm[files]'") from error
    except (RecordError, ConfigError):
        raise
    except damage as error:
        raise RecordError("file-unreadable", f"{path} cannot be read: {error}") from error


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(DICOM_MARK_AT + len(DICOM_MARK)).endswith(DICOM_MARK, DICOM_MARK_AT)
    except OSError:
        return False
