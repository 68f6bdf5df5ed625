"""CODE-15% in its published layout: genuine exams and rows of the table, put back into parts with their padding.

The exams here come one by one, as millivolt without the padding; the parts are written as the publication describes
them, as no genuine part is at hand.
"""

from __future__ import annotations

import csv
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from ecgfm.databases import code_15
from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record, RecordRef
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy

PUBLISHED = {
    "exam_id": "7", "age": "50", "is_male": "True", "nn_predicted_age": "51.5", "1dAVb": "False", "RBBB": "True",
    "LBBB": "False", "SB": "False", "ST": "False", "AF": "True", "patient_id": "99", "death": "", "timey": "",
    "normal_ecg": "False", "trace_file": "exams_part0.hdf5",
}  # fmt: skip
"""Columns of the published table, in its order, with the entries of an exam."""
Signals = dict[int, NDArray[np.float32]]


@pytest.fixture(scope="module")
def signals_LT(ecg_data: Path) -> Signals:
    """Return the genuine exams by exam_id, shape (12, T), in millivolt."""
    paths = sorted((ecg_data / "code-15").glob("*.mat"))
    assert len(paths) == 6
    return {int(path.stem.split("_")[-1]): scipy.io.loadmat(str(path))["feats"] for path in paths}


def padded(signal_LT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return shape (4096, 12) with zeros on both sides."""
    left = (4096 - signal_LT.shape[1]) // 2
    return np.pad(signal_LT.T, ((left, 4096 - left - signal_LT.shape[1]), (0, 0)))


def write_part(path: Path, exams: list[tuple[int, NDArray[np.float32]]], **layout: Any) -> None:
    """Write a part as published: the exams, then a row of zeros with exam_id 0."""
    with h5py.File(path, "w") as file:
        tracings = np.stack([*(padded(signal_LT) for _, signal_LT in exams), np.zeros((4096, 12), np.float32)])
        file.create_dataset("tracings", data=tracings, **layout)
        file["exam_id"] = np.array([*(exam for exam, _ in exams), 0])


@pytest.fixture
def genuine(ecg_data: Path, tmp_path: Path, signals_LT: Signals) -> Callable[..., Path]:
    """Return a function that writes the six exams into two parts beside the genuine rows of the table."""

    def write(**layout: Any) -> Path:
        with (ecg_data / "code-15/exams-columns.csv").open(newline="") as file:
            rows = [{name: row[name] for name in PUBLISHED} for row in csv.DictReader(file)]
        with (tmp_path / "exams.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(PUBLISHED))
            writer.writeheader()
            writer.writerows(rows)
        exams = sorted(signals_LT.items(), reverse=True)  # not the order of the table
        write_part(tmp_path / "exams_part0.hdf5", exams[:4], **layout)
        write_part(tmp_path / "exams_part10.hdf5", exams[4:], **layout)
        return tmp_path

    return write


def one_exam(root: Path, signal_LT: NDArray[np.float32], **changed: str) -> Path:
    """Write a copy of one exam, number 7, with the entries of the table that a test changes."""
    row = PUBLISHED | changed
    (root / "exams.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    write_part(root / "exams_part0.hdf5", [(7, signal_LT)])
    return root


def read_all(root: Path) -> list[Record]:
    database = load_database("code-15")
    return [database.read(ref) for ref in database.refs(root)]


def refused(root: Path) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read_all(root)
    return caught.value


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"chunks": (1, 4096, 12), "compression": "gzip"},
        {"chunks": (2, 512, 1), "compression": "gzip"},
        {"chunks": (3, 4096, 12)},
    ],
    ids=["contiguous", "exam", "slice", "three exams"],
)
def test_genuine_millivolts_come_back_whatever_the_layout(
    genuine: Callable[..., Path], signals_LT: Signals, layout: dict[str, Any]
) -> None:
    records = read_all(genuine(**layout))
    assert [record.record for record in records] == ["2969044", "2754228", "2657522", "1594286", "1238362", "270272"]
    for record in records:
        assert record.counts_LT.dtype == np.float32 and record.counts_LT.flags.c_contiguous
        np.testing.assert_array_equal(record.counts_LT, signals_LT[int(record.record)])
        assert set(record.microvolt_per_count) == {1000.0} and not record.offset_counts.any()
        assert (record.rate_hz,) == code_15.Code15.native_rates_hz == (400.0,)
        # Einthoven: the leads are in the order that is said, and the padding left nothing behind.
        assert record.leads[:3] == ("I", "II", "III")
        one, two, three = record.counts_LT[:3]
        assert np.median(np.abs(two - one - three)) < 1e-5


def test_the_block_in_memory_is_bounded(
    genuine: Callable[..., Path], signals_LT: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_15, "_LARGEST_BLOCK", 2)
    root = genuine(chunks=(3, 4096, 1), compression="gzip")
    database = load_database("code-15")
    for ref in database.refs(root):
        np.testing.assert_array_equal(database.read(ref).counts_LT, signals_LT[int(ref.record)])
        assert isinstance(database, code_15.Code15) and database._part is not None
        assert len(database._part._block_NTL) <= 2


def test_exams_are_the_same_in_any_order_and_in_another_process(
    genuine: Callable[..., Path], signals_LT: Signals
) -> None:
    refs = list(load_database("code-15").refs(genuine(chunks=(2, 4096, 12))))
    shuffled: list[RecordRef] = pickle.loads(pickle.dumps(refs)) * 3  # noqa: S301
    random.Random(0).shuffle(shuffled)
    database = load_database("code-15")
    records = [database.read(ref) for ref in shuffled]  # also: a record is not changed by those read after it
    for record in records:
        np.testing.assert_array_equal(record.counts_LT, signals_LT[int(record.record)])


def test_fields_are_those_of_the_genuine_table_by_exam_and_not_by_order(genuine: Callable[..., Path]) -> None:
    about = {
        record.record: (record.patient, record.age, record.sex, record.labels["code15"])
        for record in read_all(genuine())
    }
    assert about == {
        "1594286": ("1599228", 68.0, "female", ("RBBB",)),
        "1238362": ("648630", 64.0, "male", ("SB",)),
        "2969044": ("918688", 47.0, "female", ("ST",)),
        "2754228": ("725849", 48.0, "female", ("1dAVb",)),
        "2657522": ("1266252", 35.0, "male", ("SB",)),
        "270272": ("125585", 58.0, "male", ("RBBB",)),
    }


@pytest.mark.parametrize(
    ("entries", "codes"),
    [
        ({"RBBB": "False", "AF": "False", "normal_ecg": "True"}, ("normal",)),
        ({"RBBB": "False", "AF": "False"}, ()),
        ({"1dAVb": "True", "LBBB": "True", "SB": "True", "ST": "True"}, ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")),
    ],
)
def test_labels_are_the_columns_that_are_true(
    tmp_path: Path, signals_LT: Signals, entries: dict[str, str], codes: tuple[str, ...]
) -> None:
    (record,) = read_all(one_exam(tmp_path, signals_LT[1238362], **entries))
    assert record.labels == {"code15": codes}


@pytest.mark.parametrize("entry", ["", "maybe", "nan"])
def test_a_diagnosis_that_is_neither_true_nor_false_is_refused(tmp_path: Path, signals_LT: Signals, entry: str) -> None:
    fault = refused(one_exam(tmp_path, signals_LT[1238362], LBBB=entry))
    assert fault.reason == "table-malformed" and "LBBB" in fault.message and "exam 7" in fault.message


def test_unknown_sex_and_age_stay_unknown(tmp_path: Path, signals_LT: Signals) -> None:
    (record,) = read_all(one_exam(tmp_path, signals_LT[1238362], is_male="", age=""))
    assert (record.age, record.sex) == (None, None)


def test_only_whole_samples_of_zero_at_the_ends_are_cut(tmp_path: Path, signals_LT: Signals) -> None:
    signal_LT = signals_LT[1238362].copy()
    signal_LT[1:, 0] = 0  # eleven leads of the first sample
    signal_LT[:-1, -1] = 0  # and of the last
    signal_LT[:, 1000:1400] = 0  # a second in between
    assert signal_LT[0, 0] and signal_LT[-1, -1]
    (record,) = read_all(one_exam(tmp_path, signal_LT))
    np.testing.assert_array_equal(record.counts_LT, signal_LT)


def test_missing_samples_are_no_padding(tmp_path: Path, signals_LT: Signals) -> None:
    signal_LT = signals_LT[1238362].copy()
    signal_LT[:, :5] = signal_LT[:, -7:] = np.nan
    (record,) = read_all(one_exam(tmp_path, signal_LT))
    np.testing.assert_array_equal(record.counts_LT, signal_LT)


def test_a_single_sample_is_found(tmp_path: Path) -> None:
    signal_LT = np.zeros((12, 4096), np.float32)
    signal_LT[3, 4095] = 1
    (record,) = read_all(one_exam(tmp_path, signal_LT))
    np.testing.assert_array_equal(record.counts_LT, signal_LT[:, 4095:])


def test_an_exam_of_zeros_is_refused(tmp_path: Path) -> None:
    fault = refused(one_exam(tmp_path, np.zeros((12, 4096), np.float32)))
    assert fault.reason == "signal-empty" and "exam 7" in fault.message


def test_an_exam_that_the_table_lacks_is_refused(tmp_path: Path, signals_LT: Signals) -> None:
    fault = refused(one_exam(tmp_path, signals_LT[1238362], exam_id="8"))
    assert fault.reason == "not-in-table" and "exam 7" in fault.message


def test_exams_without_a_part_are_passed_over(genuine: Callable[..., Path]) -> None:
    root = genuine()
    (root / "exams_part0.hdf5").unlink()
    assert [record.record for record in read_all(root)] == ["1238362", "270272"]
    assert load_database("code-15").expected_records == 345_779


def test_a_part_may_lie_in_a_folder_of_its_own(genuine: Callable[..., Path]) -> None:
    root = genuine()
    (root / "exams_part10").mkdir()
    (root / "exams_part10.hdf5").rename(root / "exams_part10/exams_part10.hdf5")
    assert len(read_all(root)) == 6


def test_an_exam_in_two_parts_is_found_twice(genuine: Callable[..., Path], signals_LT: Signals) -> None:
    root = genuine()
    write_part(root / "exams_part3.hdf5", [(270272, signals_LT[270272])])
    found = [(ref.path.name, ref.index) for ref in load_database("code-15").refs(root) if ref.record == "270272"]
    assert found == [("exams_part3.hdf5", 0), ("exams_part10.hdf5", 1)]


def test_two_rows_of_one_exam_are_refused_where_they_differ(tmp_path: Path, signals_LT: Signals) -> None:
    table = one_exam(tmp_path, signals_LT[1238362]) / "exams.csv"
    row = table.read_text().splitlines()[1]
    table.write_text(table.read_text() + row + "\n")
    assert len(read_all(tmp_path)) == 1
    table.write_text(table.read_text() + row.replace(",99,", ",98,") + "\n")
    with pytest.raises(DatabaseError, match="line 4: exam 7 is in the table twice"):
        read_all(tmp_path)


@pytest.mark.parametrize("column", ["exam_id", "patient_id"])
def test_a_number_that_is_none_is_refused_with_its_line(tmp_path: Path, signals_LT: Signals, column: str) -> None:
    one_exam(tmp_path, signals_LT[1238362], **{column: "7.5"})
    with pytest.raises(DatabaseError, match=rf"exams\.csv line 2: .*{column} '7\.5'"):
        read_all(tmp_path)


def test_a_table_of_another_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exams.csv").write_text("exam_id,age\n1,2\n")
    with pytest.raises(DatabaseError, match="no column patient_id, is_male, 1dAVb"):
        read_all(tmp_path)


def test_parts_that_are_still_packed_are_named(tmp_path: Path, signals_LT: Signals) -> None:
    part = one_exam(tmp_path, signals_LT[1238362]) / "exams_part0.hdf5"
    part.unlink()
    with pytest.raises(DatabaseError, match=r"download and unpack exams_part0\.zip"):
        read_all(tmp_path)
    part.with_suffix(".zip").write_bytes(b"PK")
    with pytest.raises(DatabaseError, match=r"; unpack exams_part0\.zip"):
        read_all(tmp_path)


def damage_cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:100_000])


def damage_text(part: Path) -> None:
    part.write_text("not HDF5")


def damage_leads(part: Path) -> None:
    with h5py.File(part, "a") as file:
        del file["tracings"]
        file["tracings"] = np.zeros((2, 4096, 8), np.float32)


def damage_precision(part: Path) -> None:
    with h5py.File(part, "a") as file:
        del file["tracings"]
        file["tracings"] = np.zeros((2, 4096, 12), np.float64)


def damage_exams(part: Path) -> None:
    with h5py.File(part, "a") as file:
        del file["exam_id"]
        file["exam_id"] = np.array([7])


def damage_group(part: Path) -> None:
    with h5py.File(part, "a") as file:
        del file["exam_id"]
        file.create_group("exam_id")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_cut, "cannot be read as HDF5"),
        (damage_text, "cannot be read as HDF5"),
        (damage_leads, r"\(2, 4096, 8\)"),
        (damage_precision, "float64"),
        (damage_exams, r"exam_id \(1,\)"),
        (damage_group, "must hold"),
    ],
)
def test_a_damaged_or_foreign_part_is_refused_with_its_path(
    tmp_path: Path, signals_LT: Signals, damage: Callable[[Path], None], words: str
) -> None:
    part = one_exam(tmp_path, signals_LT[1238362]) / "exams_part0.hdf5"
    refs = list(load_database("code-15").refs(tmp_path))
    damage(part)
    with pytest.raises(DatabaseError, match=words) as caught:
        list(load_database("code-15").refs(tmp_path))
    assert str(part) in str(caught.value)
    with pytest.raises(RecordError, match=words) as later:  # damaged after the exams were found
        load_database("code-15").read(refs[0])
    assert later.value.reason == "truncated"


def test_a_compressed_exam_that_cannot_be_decoded_is_refused_alone(
    genuine: Callable[..., Path], signals_LT: Signals
) -> None:
    root = genuine(chunks=(1, 4096, 12), compression="gzip")
    part = root / "exams_part0.hdf5"
    with h5py.File(part) as file:
        chunk = file["tracings"].id.get_chunk_info_by_coord((1, 0, 0))
    content = bytearray(part.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    content[middle : middle + 64] = bytes(64)
    part.write_bytes(content)
    database = load_database("code-15")
    first, second, third = list(database.refs(root))[:3]
    with pytest.raises(RecordError) as caught:
        database.read(second)
    assert caught.value.reason == "truncated" and "row 1" in caught.value.message
    for ref in (first, third):
        np.testing.assert_array_equal(database.read(ref).counts_LT, signals_LT[int(ref.record)])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_sample_refuses_its_exam_alone(tmp_path: Path, signals_LT: Signals, value: float) -> None:
    (first, signal_LT), (second, other_LT) = list(signals_LT.items())[:2]
    damaged_LT = signal_LT.copy()
    damaged_LT[3, 1000] = value
    write_part(tmp_path / "exams_part0.hdf5", [(first, damaged_LT), (second, other_LT)])
    rows = [PUBLISHED | {"exam_id": str(exam)} for exam in (first, second)]
    with (tmp_path / "exams.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PUBLISHED))
        writer.writeheader()
        writer.writerows(rows)
    manifest = convert(
        load_database("code-15"), tmp_path, tmp_path / "out", Options(signal=Policy(highpass_hz=0.5, min_s=5.0))
    )
    assert (manifest.kept, manifest.refused) == (1, {"signal-infinite": 1})
