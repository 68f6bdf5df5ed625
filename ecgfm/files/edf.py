"""EDF, EDF+ and BDF files, through edfio. Rate, lead names and units are the header's.

Kemp and Olivan 2003, https://doi.org/10.1016/S1388-2457(03)00123-8. Signals are called `ECG II`, `EKG V1`, `Lead aVR`
or `II`; others (respiration, annotations) are left out. Files that were cut, that have gaps (EDF+D), and leads of
different rates are refused. EDF has no mark for a sample that is missing.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgfm.errors import RecordError, SignalError
from ecgfm.files.base import FileFormat, Recording, Told, reads
from ecgfm.leads import canonical_name
from ecgfm.record import Sex
from ecgfm.signal.units import millivolt_per

if TYPE_CHECKING:
    import edfio

_PREFIX = re.compile(r"^(ecg|ekg|lead)[\s_:.-]+", re.IGNORECASE)
_SEX: dict[str, Sex] = {"F": "female", "M": "male"}
_DAYS_OF_A_YEAR = 365.2425


class Edf(FileFormat):
    """EDF and BDF; see the module."""

    title = "EDF"
    endings = (".edf", ".bdf")
    self_describing = True

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the one recording of a file; see `FileFormat.read`."""
        with reads(path, LookupError, ArithmeticError, AttributeError, TypeError):
            import edfio

            content = path.read_bytes()
            _check_length(path, content)
            if path.suffix.lower() == ".edf":
                file: Any = edfio.read_edf(content, lazy_load_data=False)
            else:
                file = edfio.read_bdf(content)
            yield _recording(path, file)


def _recording(path: Path, file: edfio.Edf | edfio.Bdf) -> Recording:
    if not file.is_continuous:
        raise RecordError("gaps", f"{path} has gaps between its data records (EDF+D); export it without")
    named = [(_PREFIX.sub("", signal.label.strip()), signal) for signal in file.signals]
    leads = [(name, signal) for name, signal in named if canonical_name(name)]
    if not leads:
        there = ", ".join(name for name, _ in named) or "none"
        raise RecordError("leads-unknown", f"{path} has no signal that is called as one of the twelve leads ({there})")
    rates = sorted({signal.sampling_frequency for _, signal in leads})
    if len(rates) > 1:
        raise RecordError("rates-differ", f"{path}: its leads have different rates, {rates} Hz; export them with one")
    rows = [np.asarray(signal.data) * _millivolt(path, name, signal) for name, signal in leads]
    return Recording(
        signal_LT=np.stack(rows),
        rate_hz=float(rates[0]),
        leads=tuple(name for name, _ in leads),
        unit="mV",
        name=path.stem,
        age=_age(file),
        sex=_sex(file),
    )


def _check_length(path: Path, content: bytes) -> None:
    """Refuse what edfio mends with no more than a warning: a file that is shorter or longer than its header says."""
    whole = _whole_number(path, content[236:244], "number of data records")
    start = _whole_number(path, content[184:192], "length of the header")
    signals = _whole_number(path, content[252:256], "number of signals")
    first = 256 + 216 * signals
    samples = [
        _whole_number(path, content[first + 8 * number : first + 8 * number + 8], "samples of a data record")
        for number in range(signals)
    ]
    expected = start + whole * sum(samples) * (3 if path.suffix.lower() == ".bdf" else 2)
    if whole < 0 or min(samples, default=0) < 0 or start != 256 * (signals + 1) or len(content) != expected:
        reason = "truncated" if len(content) < expected or whole < 0 else "header-signal-disagree"
        raise RecordError(
            reason,
            f"{path} has {len(content):,} bytes, its header announces {expected:,} ({whole} data records): it was not "
            "closed, or is damaged; export or copy it again",
        )


def _whole_number(path: Path, field: bytes, what: str) -> int:
    try:
        return int(field)
    except ValueError as error:
        raise RecordError("header-malformed", f"{path}: {what} is {field!r}") from error


def _millivolt(path: Path, name: str, signal: Any) -> float:
    """Return the millivolt of one physical unit."""
    if signal.digital_min >= signal.digital_max or signal.physical_min == signal.physical_max:
        raise RecordError(
            "header-malformed",
            f"{path}: lead {name} is not calibrated (digital {signal.digital_min} to {signal.digital_max}, physical "
            f"{signal.physical_min} to {signal.physical_max})",
        )
    try:
        return millivolt_per(signal.physical_dimension)
    except SignalError as error:
        raise RecordError("unit-unknown", f"{path}: lead {name}: {error}") from error


def _age(file: Any) -> float | None:
    # EDF without the plus has no such fields, and EDF+ may leave them out: a ValueError of edfio.
    with contextlib.suppress(ValueError, LookupError):
        days = (file.recording.startdate - file.patient.birthdate).days
        return days / _DAYS_OF_A_YEAR if days >= 0 else None
    return None


def _sex(file: Any) -> Sex | None:
    with contextlib.suppress(ValueError, LookupError):
        return _SEX.get(file.patient.sex)
    return None
