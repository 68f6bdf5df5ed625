"""WFDB signal files, read strictly: what header and signal say must agree.

The format is https://physionet.org/physiotools/wag/signal-5.htm. We read format 16 ourselves, whose bytes are the
counts, and other formats through wfdb.

A `.mat` file of the Challenge is MATLAB version 4: one int16 matrix `val` of shape (leads, samples), column by column,
behind 24 bytes. That is format 16 with an offset of 24.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import struct
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_header import Header, SignalSpec, lead_names, read_file, scale
from ecgfm.errors import RecordError
from ecgfm.record import MISSING

INT16_FORMATS = frozenset({"16", "80", "160", "212"})
"""Formats that 12-lead databases use and whose counts fit into int16."""
INVALID: dict[str, int] = {
    "8": int(np.iinfo(np.int64).min), "16": -(2**15), "24": -(2**23), "32": -(2**31), "61": -(2**15), "80": -(2**7),
    "160": -(2**15), "212": -(2**11), "310": -(2**9), "311": -(2**9), "508": -(2**7), "516": -(2**15), "524": -(2**23),
}  # fmt: skip
"""The count that stands for "no sample", by format (signal-5, and the table of wfdb 4.3); format 8 has none."""
_COMPRESSED = frozenset({"508", "516", "524"})
"""Formats that may take less than a byte a sample."""
# int32 type (30: little-endian, int16, full matrix), rows, columns, imaginary, length of the name; then the name.
_MATLAB_HEADER = struct.Struct("<5i4s")
_MATLAB_INT16 = 30


def read_counts(header: Header, folder: Path | str) -> NDArray[np.int16]:
    """Read the samples of a record, in the order of the header's signals.

    Args:
        header: The record's header.
        folder: Where the header and the signal files are.

    Returns:
        Shape (L, T); -32768 where there is no sample.

    Raises:
        RecordError: `file-missing`, `truncated`, `header-malformed`, `header-signal-disagree`, `signal-unreadable`.
    """
    if all(spec.format == "16" for spec in header.signals):
        groups = [tuple(group) for _, group in groupby(header.signals, key=lambda spec: spec.file_name)]
        # Read, and found as long as announced, before memory is asked for: a damaged header may announce terabytes.
        parts = [_read_format_16(f"{folder}/{specs[0].file_name}", specs, header.samples) for specs in groups]
        counts_LT = np.empty((len(header.signals), header.samples), dtype=np.int16)
        row = 0
        for part_TL in parts:
            counts_LT[row : row + part_TL.shape[1]] = part_TL.T
            row += part_TL.shape[1]
    else:
        counts_LT = _read_other_formats(header, Path(folder))
    _check_against_header(header, counts_LT)
    return counts_LT


# Paths are text here: each operation on a `Path` takes as long as reading a signal line.
def _read_format_16(path: str, specs: tuple[SignalSpec, ...], samples: int) -> NDArray[np.int16]:
    """Return shape (T, signals of this file)."""
    offset = specs[0].byte_offset
    if any(spec.byte_offset != offset for spec in specs):
        raise RecordError("header-malformed", f"the signals of {specs[0].file_name} start at different bytes")
    content = read_file(path)
    if path.endswith(".mat"):
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


def _check_matlab(path: str, content: bytes, offset: int, leads: int, samples: int) -> None:
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


def read_with_wfdb(header: Header, path: Path) -> NDArray[np.int64]:
    """Return the counts of all signals as they are stored, by the wfdb package, which costs a second to import.

    Args:
        header: The record's header.
        path: Its file; the signal files lie beside it.

    Returns:
        Shape (L, T); `INVALID` of the format where there is no sample.

    Raises:
        RecordError: `file-missing`, `truncated`, `header-malformed`, `header-signal-disagree`, `signal-unreadable`.
    """
    formats = sorted({spec.format for spec in header.signals})
    unknown = [name for name in formats if name not in INVALID]
    if unknown:
        raise RecordError(
            "header-malformed", f"{path}: signal format {unknown[0]} is not known (there are: {', '.join(INVALID)})"
        )
    for name, signals in Counter(spec.file_name for spec in header.signals).items():
        file = path.parent / name
        if not file.is_file():
            raise RecordError("file-missing", f"{file} does not exist")
        # A damaged header may announce terabytes, for which memory would be asked before the file is looked at.
        if not _COMPRESSED.intersection(formats) and file.stat().st_size < header.samples * signals:
            raise RecordError(
                "truncated",
                f"{path} announces {header.samples:,} samples of {signals} signals in {name}, which has "
                f"{file.stat().st_size:,} bytes; copy or download it again",
            )
    import wfdb

    try:
        signal_TL = wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal
    # libsndfile, which reads FLAC, raises a RuntimeError.
    except (ValueError, IndexError, OSError, RuntimeError) as error:
        raise RecordError(
            "signal-unreadable", f"wfdb cannot read {path} (format {', '.join(formats)}): {error}"
        ) from error
    if signal_TL.shape != (header.samples, len(header.signals)):
        raise RecordError(
            "header-signal-disagree",
            f"{path} announces {header.samples:,} samples of {len(header.signals)} signals, its files hold "
            f"{signal_TL.shape[0]:,} of {signal_TL.shape[1]}",
        )
    return np.ascontiguousarray(signal_TL.T, dtype=np.int64)


def _read_other_formats(header: Header, folder: Path) -> NDArray[np.int16]:
    """Read formats of 16 bits and fewer, with the one mark for "no sample"."""
    other = sorted({spec.format for spec in header.signals} - INT16_FORMATS)
    if other:
        known = ", ".join(sorted(INT16_FORMATS, key=int))
        raise RecordError("header-malformed", f"signal format {other[0]} is not supported (supported are {known})")
    counts_LT = read_with_wfdb(header, folder / f"{header.record}.hea").astype(np.int16)
    for row, spec in zip(counts_LT, header.signals, strict=True):
        row[row == INVALID[spec.format]] = MISSING
    return counts_LT


def _check_against_header(header: Header, counts_LT: NDArray[np.int16]) -> None:
    """Refuse a signal whose first sample or sum is not the one that the header gives.

    Both agree in each of 1,031 records of four databases that were looked at, so a difference means that
    header and signal are not of one record, or that the file is damaged. A header that gives 0 and 0 for every
    signal was never filled in: three of the four of PTB Diagnostic that were looked at.
    """
    if all(spec.initial_value == 0 and spec.checksum == 0 for spec in header.signals):
        return
    # Other formats have other marks for "no sample", which enter the sum; wfdb's reader has checked what it can.
    # int16 wraps, which changes nothing modulo 65,536, and takes a third of the time.
    first_L, total_L = counts_LT[:, 0].tolist(), counts_LT.sum(axis=1, dtype=np.int16).tolist()
    for spec, first, total in zip(header.signals, first_L, total_L, strict=True):
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


class SignalFields(TypedDict):
    """The fields of a `Record` that are read from header and signal."""

    counts_LT: NDArray[np.int16]
    leads: tuple[str, ...]
    microvolt_per_count: NDArray[np.float64]
    offset_counts: NDArray[np.int64]
    rate_hz: float


def signal_fields(header: Header, folder: Path | str) -> SignalFields:
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
