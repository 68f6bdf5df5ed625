"""WFDB headers, read strictly: units, gain and baseline exactly as the header says.

The format is https://physionet.org/physiotools/wag/header-5.htm. The wfdb package refuses the older headers of the
PhysioNet/CinC Challenge (`E07500.mat 12 500 5000 05-May-2020 09:49:17`) and gives an uncalibrated signal a gain of
200, so we read headers ourselves. Two defaults of the format are taken: the unit is mV where none is written, and the
baseline is the ADC zero. Its other defaults (rate 250 Hz, gain 200, length unknown) are guesses, and refused.

Shapes: L leads.
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import DatabaseError, RecordError, SignalError
from ecgfm.leads import canonical_name
from ecgfm.signal.units import millivolt_per

_RECORD = re.compile(
    r"""(?P<name>[^\s/]+)(?P<segments>/\d+)?\s+(?P<signals>\d+)
    (?:\s+(?P<rate>[^\s/]+)(?:/\S*)?)?  # the counter frequency behind the slash is for analogue tapes
    (?:\s+(?P<samples>\d{1,12}))?
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
        yield from (Path(place, name) for name in sorted(files) if name.endswith(endings) and name[0] != ".")


def read_header(path: Path | str) -> Header:
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
        raise malformed(path, f"the record line is {first!r}, expected 'name signals rate samples'")
    if match["segments"]:
        raise malformed(path, "it joins several segments, which is not supported; give the segments' own records")
    if not match["rate"] or not match["samples"] or int(match["samples"]) == 0:
        raise malformed(path, f"the record line {rows[0]!r} does not say the rate and the number of samples")
    try:
        rate_hz = _finite(match["rate"], "rate")
    except ValueError as error:
        raise malformed(path, str(error)) from error
    if rate_hz <= 0:
        raise malformed(path, f"the rate is {match['rate']}, expected samples per second")
    count = int(match["signals"])
    if count == 0 or len(rows) - 1 != count:
        raise malformed(path, f"it announces {count} signals and describes {len(rows) - 1}")
    return Header(
        # The older headers of the Challenge write the signal file's name here.
        record=match["name"].removesuffix(".mat"),
        rate_hz=rate_hz,
        samples=int(match["samples"]),
        signals=tuple(_signal(path, row) for row in rows[1:]),
        comments=comments,
    )


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
    microvolt = [_microvolt(spec.gain_per_unit, spec.unit, spec.description) for spec in header.signals]
    return np.array(microvolt), np.array([spec.baseline for spec in header.signals], dtype=np.int64)


@functools.lru_cache(maxsize=4096)
def _microvolt(gain_per_unit: float, unit: str, lead: str) -> float:
    if gain_per_unit <= 0:
        raise RecordError(
            "header-malformed",
            f"lead {lead} has a gain of {gain_per_unit:g}: it is not calibrated, and a gain is never guessed; write "
            "the true counts per mV into the header",
        )
    try:
        return 1e3 * millivolt_per(unit) / gain_per_unit
    except SignalError as error:
        raise RecordError("unit-unknown", f"lead {lead}: {error}") from error


def lead_names(header: Header) -> tuple[str, ...]:
    """Return the signals' descriptions, which are the leads' names."""
    return tuple(spec.description for spec in header.signals)


def _signal(path: Path | str, row: str) -> SignalSpec:
    """Read one signal line: file, format, gain, ADC resolution, ADC zero, initial value, checksum, block, name."""
    file_name, *fields = row.split(maxsplit=8)
    if "/" in file_name or file_name in (".", ".."):
        raise malformed(path, f"signal file {file_name!r} must lie beside the header")
    form, gain, _, adc_zero, initial, checksum, _, name = fields + [""] * (8 - len(fields))
    try:
        return SignalSpec(
            file_name,
            *_form(form, gain, adc_zero),
            _whole(initial, "initial value") if initial else None,
            _whole(checksum, "checksum") if checksum else None,
            name,
        )
    except ValueError as error:
        raise malformed(path, f"signal line {row!r}: {error}") from error


@functools.lru_cache(maxsize=4096)
def _form(form: str, gain: str, adc_zero: str) -> tuple[str, int, float, int, str]:
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
    baseline = int(scale["baseline"]) if scale and scale["baseline"] else zero
    if abs(baseline) >= 2**31:
        raise ValueError(f"baseline {baseline} is no count of a converter")
    return (
        parts["format"],
        int(parts["offset"] or 0),
        _finite(scale["gain"], "gain") if scale else 0.0,
        baseline,
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


def comment_fields(header: Header) -> dict[str, str]:
    """Return the `Name: value` comments by lower-case name."""
    pairs = (comment.partition(":") for comment in header.comments)
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


def read_file(path: Path | str) -> bytes:
    """Return a file's bytes.

    Raises:
        RecordError: `file-missing`.
    """
    try:
        # Without a buffer, through which the bytes would be copied once more.
        with io.FileIO(path) as file:
            return file.readall()
    except FileNotFoundError as error:
        raise RecordError("file-missing", f"{path} does not exist; copy or download it again") from error
    except OSError as error:
        raise RecordError("file-missing", f"{path} cannot be read: {error.strerror}") from error


def malformed(path: Path | str, what: str) -> RecordError:
    """Return the error for a header that cannot be read."""
    return RecordError("header-malformed", f"{path}: {what}")
