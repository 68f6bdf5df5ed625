"""DICOM waveforms of electrocardiograms, through pydicom.

PS3.3 C.10.9, Waveform Module (https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.10.9.html): a
sample's value is sample x sensitivity x correction factor + baseline in the unit of the sensitivity. Leads are told by
the code of their source: MDC 2:1 (PS3.16 CID 3001) or its forerunner SCPECG 5.6.3-9-1, else by its meaning, else by
the channel's label; where they contradict each other the file is refused.

A file may hold several groups of channels, such as ten seconds and the median beat that was derived from them. The
recording is the one that is ORIGINAL and has leads that make twelve; of several such, each is a recording. Groups that
each hold some leads of other moments (3 x 4 printouts) make no twelve and are refused.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.errors import LeadError, RecordError, SignalError
from ecgfm.files.base import FileFormat, Recording, Told, reads
from ecgfm.leads import LEADS, canonical_name, derivable
from ecgfm.signal.units import millivolt_per

if TYPE_CHECKING:
    from pydicom import Dataset

# SCP-ECG's numbers of the leads, which both schemes of codes end in.
_NUMBERS = dict(zip((1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8), LEADS, strict=True))
_CODE = re.compile(r"(?:2:|5\.6\.3-9-)(\d+)")
_MEANING = re.compile(r"(?:(?:ECG\s+)?Lead\s+)?(III|II|I|aVR|aVL|aVF|V[1-6])(?:\s*\(.*\)|,.*)?", re.IGNORECASE)
_SAMPLES = {(8, "SB"), (8, "UB"), (16, "SS"), (16, "US"), (32, "SL"), (32, "UL")}
"""Linear samples; 8-bit mu-law and A-law (MB, AB) are not, and are for sound."""
_YEARS_PER = {"D": 1 / 365.2425, "W": 7 / 365.2425, "M": 1 / 12, "Y": 1.0}


class Dicom(FileFormat):
    """DICOM waveforms; see the module."""

    title = "DICOM"
    endings = (".dcm", ".dicom")
    self_describing = True

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the recordings of a file; see `FileFormat.read`."""
        with reads(path, LookupError, ArithmeticError, AttributeError, TypeError, NotImplementedError):
            import pydicom
            from pydicom.errors import InvalidDicomError

            try:
                dataset = pydicom.dcmread(path)
            except InvalidDicomError as error:
                raise RecordError("file-unreadable", f"{path} is no DICOM file: {error}") from error
            if "WaveformSequence" not in dataset:
                raise RecordError("no-waveform", f"{path} holds no waveform ({dataset.get('Modality', 'no modality')})")
            groups = _groups(path, dataset)
            for number in groups:
                yield _recording(path, dataset, number, several=len(groups) > 1)


def _groups(path: Path, dataset: Dataset) -> list[int]:
    """Return the numbers of the groups that are recordings of twelve leads."""
    found, seen = [], []
    for number, group in enumerate(dataset.WaveformSequence):
        names = [_lead(path, channel) for channel in group.ChannelDefinitionSequence]
        originality = str(group.get("WaveformOriginality", "ORIGINAL"))
        seen.append(f"{originality} with {', '.join(name or '?' for name in names)}")
        try:
            derivable([name for name in names if name])
        except LeadError:
            continue
        if originality == "ORIGINAL":
            found.append(number)
    if not found:
        raise RecordError("leads-missing", f"{path} has no original group of all leads (it has: {'; '.join(seen)})")
    return found


def _recording(path: Path, dataset: Dataset, number: int, *, several: bool) -> Recording:
    group = dataset.WaveformSequence[number]
    samples_TC = _samples(path, dataset, number)
    names, rows = [], []
    for column, channel in enumerate(group.ChannelDefinitionSequence):
        name = _lead(path, channel)
        if name is not None:
            names.append(name)
            rows.append(_millivolt(path, name, channel, samples_TC[:, column]))
    signal_LT = np.stack(rows)
    padding = _padding(group)
    if padding is not None:
        kept = [_lead(path, channel) is not None for channel in group.ChannelDefinitionSequence]
        signal_LT[(samples_TC == padding).T[kept]] = np.nan
    return Recording(
        signal_LT=signal_LT,
        rate_hz=float(group.SamplingFrequency),
        leads=tuple(names),
        unit="mV",
        name=f"{path.stem}[{number}]" if several else path.stem,
        age=_age(str(dataset.get("PatientAge", ""))),
        sex=sex_of(str(dataset.get("PatientSex", ""))),
    )


def _samples(path: Path, dataset: Dataset, number: int) -> NDArray[Any]:
    """Return the raw samples, shape (T, channels)."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    group = dataset.WaveformSequence[number]
    kind = (int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation))
    if kind not in _SAMPLES:
        raise RecordError("samples-unknown", f"{path}: samples of {kind[0]} bits {kind[1]} are not read")
    channels = int(group.NumberOfWaveformChannels)
    expected = int(group.NumberOfWaveformSamples) * channels * kind[0] // 8
    if len(group.WaveformData) < expected:
        raise RecordError(
            "truncated", f"{path} has {len(group.WaveformData):,} bytes of samples, its header announces {expected:,}"
        )
    if channels != len(group.ChannelDefinitionSequence):
        raise RecordError(
            "header-malformed",
            f"{path} announces {channels} channels and describes {len(group.ChannelDefinitionSequence)}",
        )
    return np.asarray(multiplex_array(dataset, number, as_raw=True))


def _millivolt(path: Path, name: str, channel: Dataset, samples_T: NDArray[Any]) -> NDArray[np.float64]:
    if channel.get("ChannelSensitivity") is None or not channel.get("ChannelSensitivityUnitsSequence"):
        raise RecordError("unit-unknown", f"{path}: lead {name} has no sensitivity or no unit, which are never guessed")
    code = str(channel.ChannelSensitivityUnitsSequence[0].get("CodeValue", ""))
    try:
        millivolt = millivolt_per(code)
    except SignalError as error:
        raise RecordError("unit-unknown", f"{path}: lead {name}: {error}") from error
    correction = channel.get("ChannelSensitivityCorrectionFactor")
    step = float(channel.ChannelSensitivity) * (1.0 if correction is None else float(correction))
    if step == 0.0 or not np.isfinite(step):
        raise RecordError("header-malformed", f"{path}: the sensitivity of lead {name} is {step:g}")
    baseline = channel.get("ChannelBaseline")
    return (samples_T.astype(np.float64) * step + (0.0 if baseline is None else float(baseline))) * millivolt


def _lead(path: Path, channel: Dataset) -> str | None:
    """Return the canonical name of a channel's lead, None where it is another signal."""
    source = (channel.get("ChannelSourceSequence") or [{}])[0]
    code = _CODE.fullmatch(str(source.get("CodeValue", "")).strip())
    by_code = _NUMBERS.get(int(code[1])) if code else None
    meaning = _MEANING.fullmatch(str(source.get("CodeMeaning", "")).strip())
    by_meaning = canonical_name(meaning[1]) if meaning else None
    label = _MEANING.fullmatch(str(channel.get("ChannelLabel", "")).strip())
    by_label = canonical_name(label[1]) if label else None
    found = [name for name in (by_code, by_meaning, by_label) if name]
    if len(set(found)) > 1:
        raise RecordError(
            "leads-contradict",
            f"{path}: a channel is {by_code} by its code, {by_meaning} by the code's meaning, {by_label} by its label",
        )
    # A code that is known and no standard lead (2:31, derived; 2:65, -aVR) decides, whatever the label says.
    return None if code and not by_code else (found[0] if found else None)


def _padding(group: Dataset) -> int | None:
    """Return the value that stands for "no sample"."""
    value = group.get("WaveformPaddingValue")
    if value is None or isinstance(value, int):
        return value
    return int.from_bytes(bytes(value), "little", signed=str(group.WaveformSampleInterpretation).startswith("S"))


def _age(text: str) -> float | None:
    """Return the years of an age string, such as 063Y or 018M."""
    age = age_years(text[:-1])
    return age * _YEARS_PER[text[-1]] if age is not None and text[-1] in _YEARS_PER else None
