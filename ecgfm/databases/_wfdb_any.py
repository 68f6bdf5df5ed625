"""WFDB signals of any format and size of count, for archives whose files nobody has seen before.

The formats of the public databases (16, 80, 160, 212) are read by `_wfdb_files`. The others (8, 24, 32, 61, 310, 311
and the FLAC formats 508, 516, 524; https://physionet.org/physiotools/wag/signal-5.htm) are decoded by the wfdb package,
which costs a second to import. Counts that fit are int16; others become floats, exact, with 0 V at 0. The initial
value and the checksum of the header are compared here, which wfdb does not do.

Archives hold more than leads: respiration, pressure, Frank leads, markers. Where a record has any of the twelve
standard leads, only those are returned, so that a pressure in mmHg refuses no ECG.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_files import read_counts
from ecgfm.databases._wfdb_header import Header, lead_names, of_standard_leads, scale
from ecgfm.errors import RecordError
from ecgfm.leads import canonical_name
from ecgfm.record import MISSING, Counts

_NO_SUCH_COUNT = int(np.iinfo(np.int64).min)
_BY_COUNTS = frozenset({"16", "80", "160", "212"})
"""Formats that `read_counts` reads."""
_INVALID: dict[str, int] = {
    "8": _NO_SUCH_COUNT, "16": -(2**15), "24": -(2**23), "32": -(2**31), "61": -(2**15), "80": -(2**7), "160": -(2**15),
    "212": -(2**11), "310": -(2**9), "311": -(2**9), "508": -(2**7), "516": -(2**15), "524": -(2**23),
}  # fmt: skip
"""The count that stands for "no sample", by format (signal-5)."""
_COMPRESSED = frozenset({"508", "516", "524"})
"""Formats that may take less than a byte a sample."""
_LARGEST_INT16 = 32_767
_EXACT_FLOAT32 = 2**24


class AnySignalFields(TypedDict):
    """The fields of a `Record` that are read from header and signal."""

    counts_LT: Counts
    leads: tuple[str, ...]
    microvolt_per_count: NDArray[np.float64]
    offset_counts: NDArray[np.int64]
    rate_hz: float


def any_signal_fields(header: Header, path: Path) -> AnySignalFields:
    """Return what a `Record` takes from header and signal.

    Args:
        header: The record's header.
        path: Its file; the signal files lie beside it.

    Raises:
        RecordError: `file-missing`, `truncated`, `header-malformed`, `header-signal-disagree`, `signal-unreadable`,
            `unit-unknown`.
    """
    if any(map(canonical_name, lead_names(header))) and all(spec.format == "16" for spec in header.signals):
        header = of_standard_leads(header)
    names = lead_names(header)
    rows = [row for row, name in enumerate(names) if canonical_name(name)] or list(range(len(names)))
    kept = replace(header, signals=tuple(header.signals[row] for row in rows))
    microvolt_per_count, offset_counts = scale(kept)
    counts_LT: Counts
    if all(spec.format in _BY_COUNTS for spec in header.signals):
        counts_LT = read_counts(header, path.parent)
        if len(rows) < len(names):
            counts_LT = np.ascontiguousarray(counts_LT[rows])
    else:
        counts_LT, offset_counts = _smallest(kept, _read_with_wfdb(header, path)[rows], offset_counts)
    return AnySignalFields(
        counts_LT=counts_LT,
        leads=lead_names(kept),
        microvolt_per_count=microvolt_per_count,
        offset_counts=offset_counts,
        rate_hz=header.rate_hz,
    )


def _read_with_wfdb(header: Header, path: Path) -> NDArray[np.int64]:
    """Return the counts of all signals as they are stored, shape (L, T)."""
    formats = sorted({spec.format for spec in header.signals})
    unknown = [name for name in formats if name not in _INVALID]
    if unknown:
        raise RecordError(
            "header-malformed", f"{path}: signal format {unknown[0]} is not known (there are: {', '.join(_INVALID)})"
        )
    for name, signals in Counter(spec.file_name for spec in header.signals).items():
        file = path.parent / name
        if not file.is_file():
            raise RecordError("file-missing", f"{file} does not exist")
        # A damaged header may announce terabytes, for which memory would be asked before the file is looked at.
        if not _COMPRESSED.intersection(formats) and file.stat().st_size < header.samples * signals:
            raise RecordError(
                "header-signal-disagree",
                f"{path} announces {header.samples:,} samples of {signals} signals in {name}, which has "
                f"{file.stat().st_size:,} bytes",
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
    counts_LT = np.ascontiguousarray(signal_TL.T, dtype=np.int64)
    _check_against_header(header, counts_LT)
    return counts_LT


def _check_against_header(header: Header, counts_LT: NDArray[np.int64]) -> None:
    """Refuse a signal whose first sample or sum is not the one that the header gives.

    As for format 16, 0 and 0 for every signal mean that the header was never filled in.
    """
    if all((spec.initial_value, spec.checksum) == (0, 0) for spec in header.signals):
        return
    for spec, row in zip(header.signals, counts_LT, strict=True):
        # How "no sample" enters the sum is not settled between the tools that write these formats.
        if (row == _INVALID[spec.format]).any():
            continue
        first, total = int(row[0]), int(row.sum())
        for what, said, found in (
            ("initial value", spec.initial_value, first),
            ("checksum", None if spec.checksum is None else spec.checksum % 65536, total % 65536),
        ):
            if said is not None and said != found:
                raise RecordError(
                    "header-signal-disagree",
                    f"{what} of {spec.description} is {found} in {spec.file_name}, the header says {said}: damaged, or "
                    "not of one record",
                )


def _smallest(
    header: Header, counts_LT: NDArray[np.int64], offset_counts: NDArray[np.int64]
) -> tuple[Counts, NDArray[np.int64]]:
    """Return the counts in the smallest type that holds them exactly, and the count of 0 V.

    int16 where all fit, else floats, from which the offset is taken away, so that it is 0.
    """
    invalid_L = np.array([_INVALID[spec.format] for spec in header.signals])
    missing_LT = counts_LT == invalid_L[:, None]
    if np.abs(np.where(missing_LT, 0, counts_LT)).max() <= _LARGEST_INT16:
        return np.asarray(np.where(missing_LT, MISSING, counts_LT), dtype=np.int16), offset_counts
    shifted_LT = np.where(missing_LT, 0, counts_LT - offset_counts[:, None])
    floats_LT: Counts
    if np.abs(shifted_LT).max() <= _EXACT_FLOAT32:
        floats_LT = shifted_LT.astype(np.float32)
    else:
        floats_LT = shifted_LT.astype(np.float64)
    floats_LT[missing_LT] = np.nan
    return floats_LT, np.zeros_like(offset_counts)
