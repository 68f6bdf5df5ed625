"""WFDB signal files, read strictly: what header and signal say must agree.

The format is https://physionet.org/physiotools/wag/signal-5.htm. We read format 16 ourselves, whose bytes are the
counts, and other formats through wfdb.

A `.mat` file of the Challenge is MATLAB version 4: one int16 matrix `val` of shape (leads, samples), column by column,
behind 24 bytes. That is format 16 with an offset of 24.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import struct
from itertools import groupby
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_header import Header, SignalSpec, lead_names, read_file, scale
from ecgfm.errors import RecordError
from ecgfm.record import MISSING

# The other formats that 12-lead databases use and that fit into int16, with the value that stands for "no sample"
# (signal-5, and the table of wfdb 4.3).
_INVALID = {"80": -128, "160": -32768, "212": -2048}
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
        RecordError: `file-missing`, `truncated`, `header-malformed`, `header-signal-disagree`.
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
        counts_LT = _read_with_wfdb(header, Path(folder))
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
        # All these formats have a byte a sample or more.
        if (folder / spec.file_name).stat().st_size < header.samples:
            raise RecordError("truncated", f"{folder / spec.file_name} has fewer than the {header.samples:,} samples")
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
