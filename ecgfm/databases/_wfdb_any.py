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

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_files import INT16_FORMATS, INVALID, read_counts, read_with_wfdb
from ecgfm.databases._wfdb_header import Header, lead_names, of_standard_leads, scale
from ecgfm.errors import RecordError
from ecgfm.leads import canonical_name
from ecgfm.record import MISSING, Counts

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
    if all(spec.format in INT16_FORMATS for spec in header.signals):
        counts_LT = read_counts(header, path.parent)
        if len(rows) < len(names):
            counts_LT = np.ascontiguousarray(counts_LT[rows])
    else:
        stored_LT = read_with_wfdb(header, path)
        _check_against_header(header, stored_LT)
        counts_LT, offset_counts = _smallest(kept, stored_LT[rows], offset_counts)
    return AnySignalFields(
        counts_LT=counts_LT,
        leads=lead_names(kept),
        microvolt_per_count=microvolt_per_count,
        offset_counts=offset_counts,
        rate_hz=header.rate_hz,
    )


def _check_against_header(header: Header, counts_LT: NDArray[np.int64]) -> None:
    """Refuse a signal whose first sample or sum is not the one that the header gives.

    As for format 16, 0 and 0 for every signal mean that the header was never filled in.
    """
    if all((spec.initial_value, spec.checksum) == (0, 0) for spec in header.signals):
        return
    for spec, row in zip(header.signals, counts_LT, strict=True):
        # How "no sample" enters the sum is not settled between the tools that write these formats.
        if (row == INVALID[spec.format]).any():
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
    invalid_L = np.array([INVALID[spec.format] for spec in header.signals])
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
