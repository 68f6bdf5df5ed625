"""Each format against its own formula or somebody else's reader; what is damaged or not told is refused."""

from __future__ import annotations

import datetime
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import wfdb
from numpy.typing import NDArray

from ecgfm.errors import RecordError
from ecgfm.files import Recording, Told, find, read_recording, read_recordings
from ecgfm.files.base import formats
from ecgfm.leads import LEADS

HOW: dict[str, Any] = {"rate_hz": 500.0, "leads": LEADS, "unit": "mV"}
EIGHT: tuple[str, ...] = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")


def test_every_format_has_endings_of_its_own() -> None:
    endings = [ending for one in formats() for ending in one.endings]
    assert len(set(endings)) == len(endings) >= 10
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings)
    assert {type(one).__name__.lower() for one in formats()} == {"wfdb", "npy", "mat", "hdf5", "edf", "dicom"}
    assert all(one.title and one.self_describing in (True, False) for one in formats())


# WFDB.


@pytest.mark.parametrize(
    "name", ["ludb/data/1", "ptb-xl/records100/00000/00001_lr", "challenge-2021/training/georgia/g1/E07507"]
)
def test_wfdb_is_what_its_own_package_reads(ecg_data: Path, name: str) -> None:
    theirs = wfdb.rdrecord(str(ecg_data / name))
    for word in (name, f"{name}.hea"):
        ours = read_recording(ecg_data / word)
        np.testing.assert_allclose(ours.signal_LT, theirs.p_signal.T, rtol=1e-12, atol=1e-12)
        assert (ours.leads, ours.rate_hz, ours.unit) == (tuple(theirs.sig_name), theirs.fs, "mV")
        assert ours.name == theirs.record_name


def test_a_matlab_file_with_a_header_is_read_by_it(
    tmp_path: Path, write_challenge: Callable[..., Path], counts_LT: NDArray[np.int16]
) -> None:
    counts_LT[3, 7:9] = -32768
    header = write_challenge(tmp_path, "E00001", counts_LT, gain="250.0(10)/uV")
    recording = read_recording(header.with_suffix(".mat"))
    assert (recording.age, recording.sex, recording.name) == (50.0, "male", "E00001")
    wanted = (counts_LT.astype(np.float64) - 10) / 250 / 1000
    wanted[3, 7:9] = np.nan
    np.testing.assert_allclose(recording.signal_LT, wanted, rtol=1e-12)


# Arrays, and what is told of them.


def test_what_lies_nearest_is_what_is_told(tmp_path: Path) -> None:
    signal = np.arange(24.0).reshape(8, 3)
    np.save(tmp_path / "a.npy", signal)
    np.save(tmp_path / "b.npy", signal.T)
    (tmp_path / "dataset.json").write_text(json.dumps({"rate_hz": 250, "unit": "uV", "title": "a ward"}))
    (tmp_path / "b.json").write_text(
        json.dumps({"rate_hz": 1000, "axes": ["samples", "leads"], "leads": EIGHT, "age": 63, "sex": "F"})
    )
    a = read_recording(tmp_path / "a.npy", rate_hz=500, leads=EIGHT, unit="V")
    assert (a.rate_hz, a.unit, a.leads, a.age) == (250, "uV", EIGHT, None)
    b = read_recording(tmp_path / "b.npy")
    assert (b.rate_hz, b.unit, b.age, b.sex, b.name) == (1000, "uV", 63, "female", "b")
    for one in (a, b):
        np.testing.assert_array_equal(one.signal_LT, signal)


def test_counts_become_microvolt_and_their_mark_missing(tmp_path: Path) -> None:
    counts = np.array([[100, -32768, 3]] * 8)
    for dtype in (np.int16, np.int32):
        np.save(tmp_path / "a.npy", counts.astype(dtype))
        one = read_recording(tmp_path / "a.npy", rate_hz=500, leads=EIGHT, unit="counts", microvolt_per_count=4.88)
        assert one.unit == "uV"
        middle = np.nan if dtype is np.int16 else -32768 * 4.88
        np.testing.assert_allclose(one.signal_LT[5], [488.0, middle, 14.64])


def test_an_array_of_several_gives_each(tmp_path: Path) -> None:
    signals = np.random.default_rng(0).normal(size=(3, 7, 12)).astype(np.float32)
    np.save(tmp_path / "many.npy", signals)
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["exams/tracings"] = signals
        file["exams/ids"] = np.arange(3)
    told = Told(**HOW, axes="samples,leads")
    for name in ("many.npy", "many.h5"):
        found = list(read_recordings(tmp_path / name, told))
        assert [one.name for one in found] == ["many[0]", "many[1]", "many[2]"]
        for one, signal in zip(found, signals, strict=True):
            np.testing.assert_array_equal(one.signal_LT, signal.T)
        with pytest.raises(RecordError, match="several recordings"):
            read_recording(tmp_path / name, **HOW, axes="samples,leads")


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"rate_hz": None}, "not-told", "does not say its rate_hz"),
        ({"leads": None}, "not-told", "does not say its leads"),
        ({"unit": None}, "not-told", "does not say its unit"),
        ({"unit": "counts"}, "not-told", "--microvolt-per-count"),
        ({"unit": "mmHg"}, "told-wrong", "unit 'mmHg'"),
        ({"rate_hz": float("nan")}, "told-wrong", "rate_hz is nan"),
        ({"leads": ("I", *LEADS[:11])}, "told-wrong", "named twice"),
        ({"axes": "samples,leads"}, "array-mismatch", "give --axes leads,samples"),
        ({"leads": EIGHT}, "array-mismatch", "name 12 leads"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, change: dict[str, Any], reason: str, message: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12, 50)))
    with pytest.raises(RecordError, match=message) as caught:
        read_recording(tmp_path / "a.npy", **{**HOW, **change})
    assert caught.value.reason == reason


class _Runs:
    """What a pickle would do when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_objects_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    array = np.array([[_Runs(tmp_path / "ran")] * 2] * 12, dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "b.npz", signal=array)
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npy").read_bytes())
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(RecordError):
            read_recording(tmp_path / name, **HOW)
    assert not (tmp_path / "ran").exists()


def test_the_array_of_an_archive_is_the_one_that_fits(tmp_path: Path) -> None:
    first, second = np.ones((12, 50)), np.full((12, 60), 2.0)
    np.savez(tmp_path / "one.npz", ecg=first, fs=np.array([500]), wave=np.zeros((3, 50)))
    np.savez(tmp_path / "two.npz", ecg=first, filtered=second)
    assert read_recording(tmp_path / "one.npz", **HOW).signal_LT.shape == (12, 50)
    with pytest.raises(RecordError, match=r"2 arrays of 12 leads.*filtered \(12, 60\)"):
        read_recording(tmp_path / "two.npz", **HOW)
    np.testing.assert_array_equal(read_recording(tmp_path / "two.npz", **HOW, variable="filtered").signal_LT, second)
    with pytest.raises(RecordError, match="no array 'raw'"):
        read_recording(tmp_path / "two.npz", **HOW, variable="raw")


# MATLAB.


def write_mat(path: Path, version: str, signal: NDArray[Any]) -> None:
    if version != "7.3":
        content = {"val": signal, "fs": 500.0, "note": "text"}
        scipy.io.savemat(path, content, format=version[0], do_compression=version == "5 compressed")
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        file["val"] = signal.T  # MATLAB's axes are HDF5's in reverse
        file["fs"] = np.array([[500.0]])
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("version", ["4", "5", "5 compressed", "7.3"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_matlab_of_all_versions_gives_the_same(tmp_path: Path, version: str, dtype: type) -> None:
    signal: NDArray[Any] = (100 * np.random.default_rng(1).normal(size=(12, 40))).astype(dtype)
    write_mat(tmp_path / "a.mat", version, signal)
    np.testing.assert_array_equal(read_recording(tmp_path / "a.mat", **HOW).signal_LT, signal)


def test_real_matlab_files_are_what_scipy_reads(ecg_data: Path) -> None:
    for path, field, rate in (
        (ecg_data / "cpsc2018" / "A1980.mat", "ECG.data", 500.0),
        (ecg_data / "code-15" / "code_15_1238362.mat", "feats", 400.0),
    ):
        content: Any = scipy.io.loadmat(path)
        wanted = content["ECG"]["data"][0, 0] if field == "ECG.data" else content[field]
        for variable in (None, field):
            ours = read_recording(path, rate_hz=rate, leads=LEADS, unit="mV", variable=variable)
            np.testing.assert_array_equal(ours.signal_LT, wanted)


# EDF.


@pytest.fixture
def edf() -> Iterator[Any]:
    yield pytest.importorskip("edfio")


def write_edf(edfio: Any, path: Path, *, seconds: int = 10, rate: float = 250.0) -> NDArray[np.float64]:
    """Write leads in two units with a fixed range of each, and return what they are in mV by the format's formula."""
    draw = np.random.default_rng(3)
    signals, wanted = [], []
    for number, lead in enumerate(LEADS):
        unit, half = ("uV", 3000.0 + number) if number % 2 else ("mV", 3.5 + number)
        digital = draw.integers(-2000, 2000, int(seconds * rate)).astype(np.int16)
        low, high = -2048, 2047 - number
        label = (f"ECG {lead}", f"EKG {lead}", lead.upper(), f"Lead {lead}")[number % 4]
        signals.append(
            edfio.EdfSignal.from_digital(
                digital,
                rate,
                label=label,
                physical_dimension=unit,
                physical_range=(-half, half + 1),
                digital_range=(low, high),
            )
        )
        physical = (digital.astype(np.float64) - low) / (high - low) * (2 * half + 1) - half
        wanted.append(physical * (1e-3 if number % 2 else 1.0))
    signals.insert(4, edfio.EdfSignal(np.zeros(seconds * 25), 25, label="Resp", physical_range=(-1, 1)))
    edfio.Edf(
        signals,
        patient=edfio.Patient(sex="F", birthdate=datetime.date(1960, 5, 1)),
        recording=edfio.Recording(startdate=datetime.date(2020, 5, 1)),
    ).write(path)
    return np.stack(wanted)


def test_edf_is_what_its_header_says(edf: Any, tmp_path: Path) -> None:
    wanted = write_edf(edf, tmp_path / "a.EDF")
    one = read_recording(tmp_path / "a.EDF")
    np.testing.assert_allclose(one.signal_LT, wanted, rtol=1e-9, atol=1e-9)
    assert [lead.lower() for lead in one.leads] == [lead.lower() for lead in LEADS]
    assert (one.rate_hz, one.unit, one.sex) == (250.0, "mV", "female")
    assert one.age is not None and abs(one.age - 60) < 0.01


def test_bdf_has_24_bits(edf: Any, tmp_path: Path) -> None:
    digital = np.random.default_rng(0).integers(-(2**22), 2**22, (12, 500)).astype(np.int32)
    edf.Bdf(
        [
            edf.BdfSignal.from_digital(
                row,
                500,
                label=lead,
                physical_dimension="uV",
                physical_range=(-8000, 8000),
                digital_range=(-8_000_000, 8_000_000),
            )
            for lead, row in zip(LEADS, digital, strict=True)
        ]
    ).write(tmp_path / "a.bdf")
    np.testing.assert_allclose(read_recording(tmp_path / "a.bdf").signal_LT, digital * 1e-6, rtol=1e-9, atol=1e-9)


def test_edf_that_cannot_be_trusted_is_refused(edf: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    write_edf(edf, path)
    whole = path.read_bytes()
    at = 256 + 13 * (16 + 80)  # physical dimensions, 8 bytes a signal
    for content, reason in (
        (whole[:-100], "truncated"),
        (whole + b"\0" * 100, "header-signal-disagree"),
        (whole[:236] + b"-1      " + whole[244:], "truncated"),
        (whole[:at] + b"        " + whole[at + 8 :], "unit-unknown"),
        (whole[:100], "header-malformed"),
    ):
        path.write_bytes(content)
        with pytest.raises(RecordError) as caught:
            read_recording(path)
        assert caught.value.reason == reason, caught.value


def test_edf_with_gaps_or_several_rates_is_refused(edf: Any, tmp_path: Path) -> None:
    row = np.linspace(-1, 1, 1000)
    two = [edf.EdfSignal(row, 500, label="I"), edf.EdfSignal(row[:500], 250, label="II")]
    edf.Edf(two).write(tmp_path / "rates.edf")
    with pytest.raises(RecordError, match="different rates"):
        read_recording(tmp_path / "rates.edf")
    # The annotation signal says when each data record begins: the second one a second late.
    edf.Edf([edf.EdfSignal(row, 500, label="I")], annotations=[edf.EdfAnnotation(0, None, "x")]).write(
        tmp_path / "gap.edf"
    )
    content = (tmp_path / "gap.edf").read_bytes()
    assert content.count(b"+1\x14\x14") == 1
    (tmp_path / "gap.edf").write_bytes(content.replace(b"+1\x14\x14", b"+2\x14\x14"))
    with pytest.raises(RecordError, match="gaps"):
        read_recording(tmp_path / "gap.edf")
    edf.Edf([edf.EdfSignal(row, 500, label="EEG Fp1")]).write(tmp_path / "eeg.edf")
    with pytest.raises(RecordError, match="no signal that is called"):
        read_recording(tmp_path / "eeg.edf")


# DICOM.


@pytest.fixture
def dicom() -> Iterator[Any]:
    yield pytest.importorskip("pydicom")


CODES = ("2:1", "2:2", "2:61", "2:62", "2:63", "2:64", "2:3", "2:4", "2:5", "2:6", "2:7", "2:8")
"""PS3.16 CID 3001, in the order of LEADS."""


def group_of(pydicom: Any, samples_TC: NDArray[np.int16], originality: str = "ORIGINAL") -> Any:
    group = pydicom.Dataset()
    group.WaveformOriginality = originality
    group.NumberOfWaveformSamples, group.NumberOfWaveformChannels = samples_TC.shape
    group.SamplingFrequency = "500"
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    channels = []
    for number, lead in enumerate(LEADS):
        source, unit, channel = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = CODES[number], "MDC", f"Lead {lead}"
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = ("uV", "UCUM", "microvolt")
        if number == 11:
            unit.CodeValue = "mV"
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [unit]
        channel.ChannelSensitivity = "0.005" if number == 11 else "1.25"
        channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = "0.8", str(number)
        channels.append(channel)
    group.ChannelDefinitionSequence = channels
    group.WaveformPaddingValue = struct.pack("<h", -32768)
    group.WaveformData = samples_TC.astype("<i2").tobytes()
    group["WaveformData"].VR = group["WaveformPaddingValue"].VR = "OW"
    return group


def write_dicom(pydicom: Any, path: Path, *groups: Any) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    dataset.Modality, dataset.PatientAge, dataset.PatientSex = "ECG", "018M", "M"
    dataset.WaveformSequence = list(groups)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


@pytest.fixture
def samples_TC() -> NDArray[np.int16]:
    samples = np.random.default_rng(5).integers(-900, 900, (800, 12)).astype(np.int16)
    samples[3, 2] = -32768
    return samples


def test_dicom_is_sample_times_sensitivity_plus_baseline(
    dicom: Any, tmp_path: Path, samples_TC: NDArray[np.int16]
) -> None:
    write_dicom(dicom, tmp_path / "e1", group_of(dicom, samples_TC[:9], "DERIVED"), group_of(dicom, samples_TC))
    (path,) = find([tmp_path])  # without ending: told by its mark
    one = read_recording(path)
    assert (one.leads, one.rate_hz, one.unit, one.age, one.sex) == (LEADS, 500.0, "mV", 1.5, "male")
    for number in range(12):
        step, unit = (0.005 * 0.8, 1.0) if number == 11 else (1.25 * 0.8, 1e-3)
        wanted = [np.nan if x == -32768 else (int(x) * step + number) * unit for x in samples_TC[:, number]]
        np.testing.assert_allclose(one.signal_LT[number], wanted, rtol=1e-12)


def test_a_dicom_file_of_a_recorder_is_what_pydicom_makes_of_it(dicom: Any) -> None:
    path = Path(dicom.data.get_testdata_file("waveform_ecg.dcm"))
    (one,) = list(read_recordings(path))  # it holds the median beat as well
    theirs = dicom.dcmread(path).waveform_array(0).T
    np.testing.assert_allclose(one.signal_LT, theirs * 1e-3, rtol=1e-12)  # the file's unit is microvolt
    assert (one.leads, one.rate_hz, one.signal_LT.shape) == (LEADS, 1000.0, (12, 10000))
    np.testing.assert_allclose(one.signal_LT[1], one.signal_LT[0] + one.signal_LT[2], atol=0.006)  # Einthoven, rounded


def spoil(group: Any, how: str) -> None:
    channel = group.ChannelDefinitionSequence[3]  # aVR
    if how == "minus aVR":
        channel.ChannelSourceSequence[0].CodeValue, channel.ChannelLabel = "2:65", "aVR"
    elif how == "another meaning":
        channel.ChannelSourceSequence[0].CodeMeaning = "Lead II"
    elif how == "no unit":
        del channel.ChannelSensitivityUnitsSequence
    elif how == "mmHg":
        channel.ChannelSensitivityUnitsSequence[0].CodeValue = "mm[Hg]"
    elif how == "short":
        group.WaveformData = group.WaveformData[:-200]
    elif how == "sound":
        group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 8, "MB"
    elif how == "fewer":
        del group.ChannelDefinitionSequence[8:]
    elif how == "channels":
        group.NumberOfWaveformChannels = 11


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("another meaning", "leads-contradict"),
        ("no unit", "unit-unknown"),
        ("mmHg", "unit-unknown"),
        ("short", "truncated"),
        ("sound", "samples-unknown"),
        ("fewer", "leads-missing"),
        ("channels", "header-malformed"),
    ],
)
def test_dicom_that_cannot_be_trusted_is_refused(
    dicom: Any, tmp_path: Path, samples_TC: NDArray[np.int16], how: str, reason: str
) -> None:
    group = group_of(dicom, samples_TC)
    spoil(group, how)
    write_dicom(dicom, tmp_path / "a.dcm", group)
    with pytest.raises(RecordError) as caught:
        read_recording(tmp_path / "a.dcm")
    assert caught.value.reason == reason, caught.value


def test_the_negative_avr_is_not_avr(dicom: Any, tmp_path: Path, samples_TC: NDArray[np.int16]) -> None:
    group = group_of(dicom, samples_TC)
    spoil(group, "minus aVR")
    write_dicom(dicom, tmp_path / "a.dcm", group)
    assert read_recording(tmp_path / "a.dcm").leads == tuple(lead for lead in LEADS if lead != "aVR")


def test_scp_codes_and_labels_name_leads_too(dicom: Any, tmp_path: Path, samples_TC: NDArray[np.int16]) -> None:
    group = group_of(dicom, samples_TC)
    for number, channel in enumerate(group.ChannelDefinitionSequence):
        if number % 2:
            channel.ChannelSourceSequence[0].CodeValue = CODES[number].replace("2:", "5.6.3-9-")
            channel.ChannelSourceSequence[0].CodeMeaning = ""
        else:
            del channel.ChannelSourceSequence
            channel.ChannelLabel = LEADS[number]
    write_dicom(dicom, tmp_path / "a.dcm", group)
    assert read_recording(tmp_path / "a.dcm").leads == LEADS


# All of them.


def example(folder: Path, kind: str, samples_TC: NDArray[np.int16]) -> Path:
    path = folder / f"a.{kind.split()[0]}"
    signal = samples_TC.T.astype(np.float64)
    if kind == "npy":
        np.save(path, signal)
    elif kind == "npz":
        np.savez_compressed(path, ecg=signal)
    elif kind == "edf":
        write_edf(pytest.importorskip("edfio"), path, seconds=2)
    elif kind == "dcm":
        write_dicom(pydicom := pytest.importorskip("pydicom"), path, group_of(pydicom, samples_TC))
    else:
        write_mat(path, kind.removeprefix("mat "), signal)
    return path


@pytest.mark.filterwarnings("ignore")  # pydicom warns of values that it reads in spite of all
@pytest.mark.parametrize("kind", ["npy", "npz", "mat 4", "mat 5", "mat 5 compressed", "mat 7.3", "edf", "dcm"])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    tmp_path: Path, kind: str, samples_TC: NDArray[np.int16]
) -> None:
    path = example(tmp_path, kind, samples_TC)
    whole = path.read_bytes()
    draw = np.random.default_rng(11)
    refused = 0
    for number in range(39):
        content = bytearray(whole[: int(draw.integers(len(whole)))] if number % 3 == 0 else whole)
        for at in draw.integers(min(len(content), 3000), size=3) if content else ():
            content[at] ^= 1 << int(draw.integers(8))
        path.write_bytes(content)
        try:
            found: list[Recording] = list(read_recordings(path, Told(**HOW)))
        except RecordError as error:
            refused += 1
            assert path.name in error.message
            continue
        assert all(len(one.leads) == len(one.signal_LT) for one in found)
    assert refused >= 13  # those that were cut


# Which files there are.


def test_files_folders_patterns_and_names_are_found_once(
    tmp_path: Path, write_challenge: Callable[..., Path], counts_LT: NDArray[np.int16]
) -> None:
    deep = tmp_path / "ward" / "deep"
    header = write_challenge(deep, "E00001", counts_LT)
    for name in ("b.npy", "a.EDF", "note.txt", "b.json", "nodicom"):
        (deep / name).touch()
    assert find([tmp_path]) == [header, deep / "a.EDF", deep / "b.npy"]
    words: list[str | Path] = [
        deep / "E00001",
        deep / "E00001.mat",
        str(tmp_path / "**" / "*.npy"),
        deep / "gone.edf",
        tmp_path,
    ]
    assert find(words) == [header, deep / "b.npy", deep / "gone.edf", deep / "a.EDF"]
    for word, reason in ((deep / "gone.edf", "file-missing"), (deep / "note.txt", "format-unknown")):
        with pytest.raises(RecordError) as caught:
            read_recording(word)
        assert caught.value.reason == reason
    shutil.rmtree(deep)
    assert find([tmp_path]) == []
