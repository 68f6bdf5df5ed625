"""WFDB headers and signal files, read strictly: units, gain and baseline exactly as the header says.

The format is https://physionet.org/physiotools/wag/header-5.htm and signal-5.htm. The wfdb package refuses
the older headers of the PhysioNet/CinC Challenge (`E07500.mat 12 500 5000 05-May-2020 09:49:17`) and gives
an uncalibrated signal a gain of 200, so we read headers and format 16 ourselves; other formats go through
wfdb. Two defaults of the format are taken: the unit is mV where none is written, and the baseline is the
ADC zero. Its other defaults (rate 250 Hz, gain 200, length unknown) are guesses, and refused.

A `.mat` file of the Challenge is MATLAB version 4: one int16 matrix `val` of shape (leads, samples),
column by column, behind 24 bytes. That is format 16 with an offset of 24.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import functools
import math
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import DatabaseError, RecordError, SignalError
from ecgfm.leads import canonical_name
from ecgfm.record import MISSING
from ecgfm.signal.units import millivolt_per

# The other formats that 12-lead databases use and that fit into int16, with the value that stands for "no sample"
# (signal-5, and the table of wfdb 4.3).
_INVALID = {"80": -128, "160": -32768, "212": -2048}
# int32 type (30: little-endian, int16, full matrix), rows, columns, imaginary, length of the name; then the name.
_MATLAB_HEADER = struct.Struct("<5i4s")
_MATLAB_INT16 = 30

_RECORD = re.compile(
    r"""(?P<name>[^\s/]+)(?P<segments>/\d+)?\s+(?P<signals>\d+)
    (?:\s+(?P<rate>[^\s/]+)(?:/\S*)?)?  # the counter frequency behind the slash is for analogue tapes
    (?:\s+(?P<samples>\d+))?
    (?:\s.*)?""",  # date and time
    re.VERBOSE,
)
_FORMAT = re.compile(r"(?P<format>\d+)(?:x(?P<frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[-+.\deE]+)(?:\((?P<baseline>[-+]?\d+)\))?(?:/(?P<unit>\S+))?")


# A tuple and not a dataclass: twelve of them are made for each of a million records.
class SignalSpec(NamedTuple):
    """One signal line of a header."""

    file_name: str
    format: str
    byte_offset: int
    gain_per_unit: float
    """Counts per `unit`; 0 where the header gives none."""
    baseline: int
    """Count that stands for 0 V."""
    unit: str
    initial_value: int | None
    """None where the header does not say."""
    checksum: int | None
    """Sum of the counts modulo 65,536; None where the header does not say."""
    description: str
    """Name of the lead."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A WFDB header of a record in one segment."""

    record: str
    rate_hz: float
    samples: int
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]
    """Comment lines without the `#` and the space around."""


def find_headers(root: Path) -> Iterator[Path]:
    """Yield every `.hea` file below a folder, in sorted order; see `find_files`."""
    return find_files(root, ".hea")


def find_files(root: Path, *endings: str) -> Iterator[Path]:
    """Yield every file below a folder whose name ends in one of `endings`, in sorted order.

    Raises:
        DatabaseError: A folder below cannot be listed: its records must not be lost silently.
    """

    def refuse(error: OSError) -> None:
        raise DatabaseError(f"{error.filename} cannot be listed: {error.strerror}; check its permissions") from error

    # Linked folders are followed, each once: large databases are often spread over disks by links.
    visited: set[str] = set()
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        yield from (Path(place, name) for name in sorted(files) if name.endswith(endings))


def read_header(path: Path) -> Header:
    """Read a `.hea` file.

    Raises:
        RecordError: `file-missing`, `header-malformed`.
    """
    text = read_file(path).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    comments = tuple(line.lstrip("#").strip() for line in lines if line.startswith("#"))
    rows = [line for line in lines if line and not line.startswith("#")]
    match = _RECORD.fullmatch(rows[0]) if rows else None
    if match is None:
        first = rows[0][:80] if rows else ""
        raise _malformed(path, f"the record line is {first!r}, expected 'name signals rate samples'")
    if match["segments"]:
        raise _malformed(path, "it joins several segments, which is not supported; give the segments' own records")
    if not match["rate"] or not match["samples"] or int(match["samples"]) == 0:
        raise _malformed(path, f"the record line {rows[0]!r} does not say the rate and the number of samples")
    try:
        rate_hz = _finite(match["rate"], "rate")
    except ValueError as error:
        raise _malformed(path, str(error)) from error
    if rate_hz <= 0:
        raise _malformed(path, f"the rate is {match['rate']}, expected samples per second")
    count = int(match["signals"])
    if count == 0 or len(rows) - 1 != count:
        raise _malformed(path, f"it announces {count} signals and describes {len(rows) - 1}")
    return Header(
        # The older headers of the Challenge write the signal file's name here.
        record=match["name"].removesuffix(".mat"),
        rate_hz=rate_hz,
        samples=int(match["samples"]),
        signals=tuple(_signal(path, row) for row in rows[1:]),
        comments=comments,
    )


def read_counts(header: Header, folder: Path) -> NDArray[np.int16]:
    """Read the samples of a record, in the order of the header's signals.

    Args:
        header: The record's header.
        folder: Where the header and the signal files are.

    Returns:
        Shape (L, T); -32768 where there is no sample.

    Raises:
        RecordError: `file-missing`, `truncated`, `header-malformed`, `header-signal-disagree`.
    """
    if all(spec.format == "16" for spec in header.signals):
        counts_LT = np.empty((len(header.signals), header.samples), dtype=np.int16)
        row = 0
        for name, group in groupby(header.signals, key=lambda spec: spec.file_name):
            specs = tuple(group)
            counts_LT[row : row + len(specs)] = _read_format_16(folder / name, specs, header.samples).T
            row += len(specs)
    else:
        counts_LT = _read_with_wfdb(header, folder)
    _check_against_header(header, counts_LT)
    return counts_LT


def of_standard_leads(header: Header) -> Header:
    """Return the header without the signal files that hold none of the twelve leads.

    PTB Diagnostic keeps the three Frank leads in a file of their own, which copies often lack. What is left is read
    as if the header announced nothing else, so this is for format 16 only, which is read file by file.
    """
    files = {spec.file_name for spec in header.signals if canonical_name(spec.description) is not None}
    return replace(header, signals=tuple(spec for spec in header.signals if spec.file_name in files))


def scale(header: Header) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return microvolt per count and the count of 0 V, each of shape (L,).

    Raises:
        RecordError: `unit-unknown`; `header-malformed` where a signal has no gain, that is, no calibration.
    """
    microvolt_L = np.empty(len(header.signals))
    for index, spec in enumerate(header.signals):
        if spec.gain_per_unit <= 0:
            raise RecordError(
                "header-malformed",
                f"lead {spec.description} has a gain of {spec.gain_per_unit:g}: it is not calibrated, and a gain is "
                "never guessed; write the true counts per mV into the header",
            )
        try:
            microvolt_L[index] = 1e3 * millivolt_per(spec.unit) / spec.gain_per_unit
        except SignalError as error:
            raise RecordError("unit-unknown", f"lead {spec.description}: {error}") from error
    return microvolt_L, np.array([spec.baseline for spec in header.signals], dtype=np.int64)


def lead_names(header: Header) -> tuple[str, ...]:
    """Return the signals' descriptions, which are the leads' names."""
    return tuple(spec.description for spec in header.signals)


def _signal(path: Path, row: str) -> SignalSpec:
    """Read one signal line: file, format, gain, ADC resolution, ADC zero, initial value, checksum, block, name."""
    file_name, *fields = row.split(maxsplit=8)
    if "/" in file_name or file_name in (".", ".."):
        raise _malformed(path, f"signal file {file_name!r} must lie beside the header")
    try:
        form = _form(*fields[:2], *fields[3:4])
        return SignalSpec(
            file_name,
            *form,
            _whole(fields[4], "initial value") if len(fields) > 4 else None,
            _whole(fields[5], "checksum") if len(fields) > 5 else None,
            fields[7].strip() if len(fields) > 7 else "",
        )
    except ValueError as error:
        raise _malformed(path, f"signal line {row!r}: {error}") from error


@functools.lru_cache(maxsize=4096)
def _form(form: str = "", gain: str = "", adc_zero: str = "") -> tuple[str, int, float, int, str]:
    """Return format, byte offset, gain, baseline and unit; the words are the same in most headers of a database.

    Raises:
        ValueError: What is wrong with them.
    """
    parts = _FORMAT.fullmatch(form)
    if parts is None:
        raise ValueError("it has no format")
    if int(parts["frame"] or 1) != 1 or int(parts["skew"] or 0) != 0:
        raise ValueError(f"format {form!r}: several samples a frame, or a skew, are not supported")
    scale = _GAIN.fullmatch(gain)
    if gain and scale is None:
        raise ValueError(f"{gain!r} is not gain(baseline)/unit")
    zero = _whole(adc_zero, "ADC zero") if adc_zero else 0
    return (
        parts["format"],
        int(parts["offset"] or 0),
        _finite(scale["gain"], "gain") if scale else 0.0,
        int(scale["baseline"]) if scale and scale["baseline"] else zero,
        (scale["unit"] if scale else None) or "mV",
    )


def _whole(text: str, what: str) -> int:
    if text.isdecimal() or (text[0] in "+-" and text[1:].isdecimal()):
        return int(text)
    raise ValueError(f"{what} {text!r} is not a whole number")


def _finite(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what} {text!r} is not a number")
    return value


def _read_format_16(path: Path, specs: tuple[SignalSpec, ...], samples: int) -> NDArray[np.int16]:
    """Return shape (T, signals of this file)."""
    offset = specs[0].byte_offset
    if any(spec.byte_offset != offset for spec in specs):
        raise RecordError("header-malformed", f"the signals of {path.name} start at different bytes")
    content = read_file(path)
    if path.suffix == ".mat":
        _check_matlab(path, content, offset, len(specs), samples)
    expected = offset + 2 * len(specs) * samples
    if len(content) < expected:
        raise RecordError(
            "truncated",
            f"{path} has {len(content):,} bytes, {len(specs)} leads of {samples:,} samples need {expected:,}; "
            "copy or download it again",
        )
    if len(content) > expected:
        raise RecordError(
            "header-signal-disagree",
            f"{path} has {len(content):,} bytes, {len(specs)} leads of {samples:,} samples need only {expected:,}: "
            "header and signal are not of one record; download both again",
        )
    return np.frombuffer(content, dtype="<i2", offset=offset).reshape(samples, len(specs))


def _check_matlab(path: Path, content: bytes, offset: int, leads: int, samples: int) -> None:
    if len(content) < _MATLAB_HEADER.size:
        raise RecordError("truncated", f"{path} has {len(content)} bytes, not even its header; download it again")
    kind, rows, columns, imaginary, length, name = _MATLAB_HEADER.unpack_from(content)
    if (kind, imaginary, length, name) != (_MATLAB_INT16, 0, 4, b"val\0"):
        raise RecordError(
            "header-signal-disagree",
            f"{path} does not begin as a MATLAB version 4 int16 matrix 'val' (type {kind}, name {name!r}); "
            "give the file as published",
        )
    if (rows, columns, offset) != (leads, samples, _MATLAB_HEADER.size):
        raise RecordError(
            "header-signal-disagree",
            f"{path} holds {rows} x {columns} from byte {_MATLAB_HEADER.size}, its header file says {leads} x "
            f"{samples} from byte {offset}; download both again",
        )


def _read_with_wfdb(header: Header, folder: Path) -> NDArray[np.int16]:
    """Read formats other than 16; wfdb is imported only here, as it costs a second and pandas."""
    formats = sorted({spec.format for spec in header.signals})
    unknown = [name for name in formats if name != "16" and name not in _INVALID]
    if unknown:
        known = ", ".join(["16", *_INVALID])
        raise RecordError("header-malformed", f"signal format {unknown[0]} is not supported (supported are {known})")
    for spec in header.signals:
        if not (folder / spec.file_name).is_file():
            raise RecordError("file-missing", f"{folder / spec.file_name} does not exist")
    import wfdb

    try:
        signal_TL = wfdb.rdrecord(str(folder / header.record), physical=False).d_signal
    except (ValueError, IndexError, OSError) as error:
        raise RecordError(
            "truncated", f"wfdb cannot read {folder / header.record} (format {', '.join(formats)}): {error}"
        ) from error
    if signal_TL.shape != (header.samples, len(header.signals)):
        raise RecordError(
            "header-signal-disagree",
            f"{header.record} holds {signal_TL.shape[0]:,} samples of {signal_TL.shape[1]} leads, its header says "
            f"{header.samples:,} of {len(header.signals)}",
        )
    counts_LT = signal_TL.T.astype(np.int16)
    for row, spec in zip(counts_LT, header.signals, strict=True):
        row[row == _INVALID.get(spec.format, MISSING)] = MISSING
    return np.ascontiguousarray(counts_LT)


def _check_against_header(header: Header, counts_LT: NDArray[np.int16]) -> None:
    """Refuse a signal whose first sample or sum is not the one that the header gives.

    Both agree in each of 1,031 records of four databases that were looked at, so a difference means that
    header and signal are not of one record, or that the file is damaged. A header that gives 0 and 0 for every
    signal was never filled in: three of the four of PTB Diagnostic that were looked at.
    """
    if all((spec.initial_value, spec.checksum) == (0, 0) for spec in header.signals):
        return
    # int32 may wrap in long records, which changes nothing modulo 65,536.
    sums_L = counts_LT.sum(axis=1, dtype=np.int32)
    for index, spec in enumerate(header.signals):
        first, total = int(counts_LT[index, 0]), int(sums_L[index])
        # Other formats have other marks for "no sample", which enter the sum; wfdb's reader has checked what it can.
        if spec.format != "16":
            continue
        if spec.initial_value is not None and first != spec.initial_value:
            raise _disagree(spec, "initial value", spec.initial_value, first)
        if spec.checksum is not None and (total - spec.checksum) % 65536:
            raise _disagree(spec, "checksum", spec.checksum % 65536, total % 65536)


def _disagree(spec: SignalSpec, what: str, said: int, found: int) -> RecordError:
    return RecordError(
        "header-signal-disagree",
        f"{what} of lead {spec.description} is {found} in {spec.file_name}, the header says {said}: damaged, or not "
        "of one record; download both again",
    )


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        RecordError: `file-missing`.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError("file-missing", f"{path} does not exist; copy or download it again") from error
    except OSError as error:
        raise RecordError("file-missing", f"{path} cannot be read: {error.strerror}") from error


def _malformed(path: Path, what: str) -> RecordError:
    return RecordError("header-malformed", f"{path}: {what}")


class SignalFields(TypedDict):
    """The fields of a `Record` that are read from header and signal."""

    counts_LT: NDArray[np.int16]
    leads: tuple[str, ...]
    microvolt_per_count: NDArray[np.float64]
    offset_counts: NDArray[np.int64]
    rate_hz: float


def signal_fields(header: Header, folder: Path) -> SignalFields:
    """Return what a `Record` takes from header and signal as they are.

    Raises:
        RecordError: See `scale` and `read_counts`.
    """
    microvolt_per_count, offset_counts = scale(header)
    return SignalFields(
        counts_LT=read_counts(header, folder),
        leads=lead_names(header),
        microvolt_per_count=microvolt_per_count,
        offset_counts=offset_counts,
        rate_hz=header.rate_hz,
    )


def comment_fields(header: Header) -> dict[str, str]:
    """Return the `Name: value` comments by lower-case name."""
    pairs = (comment.partition(":") for comment in header.comments)
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}
