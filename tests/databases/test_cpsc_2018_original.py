"""CPSC 2018 in its own files: five genuine records, and the table in its published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record

HEADING = "Recording,First_label,Second_label,Third_label\n"
WHOLE_MICROVOLTS = ("A1983", "A1984")


def records(root: Path) -> dict[str, Record]:
    database = load_database("cpsc-2018-original")
    return {ref.record: database.read(ref) for ref in database.refs(root)}


@pytest.fixture
def one(ecg_data: Path, tmp_path: Path) -> Path:
    """Return a folder with one genuine record."""
    shutil.copyfile(ecg_data / "cpsc2018/A1980.mat", tmp_path / "A1980.mat")
    return tmp_path


def test_genuine_records_keep_every_digit_in_millivolt(ecg_data: Path) -> None:
    found = records(ecg_data / "cpsc2018")
    assert list(found) == ["A1980", "A1981", "A1982", "A1983", "A1984"]
    for name, record in found.items():
        theirs = scipy.io.loadmat(ecg_data / f"cpsc2018/{name}.mat")["ECG"][0, 0]
        assert record.counts_LT.dtype == np.float64 and record.counts_LT.flags.c_contiguous
        np.testing.assert_array_equal(record.counts_LT, theirs["data"])
        assert (record.microvolt_per_count == 1000.0).all() and not record.offset_counts.any()
        assert (record.rate_hz, record.patient, record.mended, record.labels) == (500.0, None, (), {})
    # Read off scipy.io.loadmat by eye.
    assert {name: (record.age, record.sex, record.counts_LT.shape) for name, record in found.items()} == {
        "A1980": (52.0, "male", (12, 5000)), "A1981": (48.0, "female", (12, 7950)),
        "A1982": (89.0, "male", (12, 5000)), "A1983": (49.0, "male", (12, 7500)),
        "A1984": (23.0, "female", (12, 9500)),
    }  # fmt: skip


def test_the_limb_leads_stand_in_the_order_that_they_are_given(ecg_data: Path) -> None:
    for record in records(ecg_data / "cpsc2018").values():
        leads = dict(zip(record.leads, record.counts_LT, strict=True))
        np.testing.assert_allclose(leads["II"], leads["I"] + leads["III"], rtol=0, atol=1e-12)
        # Measured 1.13 microvolt at most: these were rounded before the means were taken off.
        np.testing.assert_allclose(leads["aVR"], -(leads["I"] + leads["II"]) / 2, rtol=0, atol=1.2e-3)
        np.testing.assert_allclose(leads["aVL"], leads["I"] - leads["II"] / 2, rtol=0, atol=1.2e-3)
        np.testing.assert_allclose(leads["aVF"], leads["II"] - leads["I"] / 2, rtol=0, atol=1.2e-3)


def test_no_whole_counts_give_back_what_is_published(ecg_data: Path) -> None:
    for name, record in records(ecg_data / "cpsc2018").items():
        for row_mv in record.counts_LT:
            steps_microvolt = np.diff(np.unique(row_mv)) * 1e3
            if name in WHOLE_MICROVOLTS:
                assert abs(row_mv.mean()) < 1e-9  # every lead had its mean taken off
                np.testing.assert_allclose(steps_microvolt, np.rint(steps_microvolt), rtol=0, atol=1e-9)
                # The mean was a fraction of a count, so 0 V is no whole count.
                assert abs(row_mv[0] * 1e3 - np.rint(row_mv[0] * 1e3)) > 1e-3
            else:
                assert len(steps_microvolt) == len(row_mv) - 1 and steps_microvolt.min() < 1e-4


def test_classes_are_read_from_the_tables_below(ecg_data: Path, tmp_path: Path) -> None:
    # Three archives, one of which has a table; that it may lie in any of them is allowed for.
    for number, name in enumerate(("A1980", "A1981", "A1982"), 1):
        home = tmp_path / f"TrainingSet{number}"
        home.mkdir()
        shutil.copyfile(ecg_data / f"cpsc2018/{name}.mat", home / f"{name}.mat")
    rows = "A0001,5,,\nA1980,1,,\nA1981,2,5,8\n"
    (tmp_path / "TrainingSet1/REFERENCE.csv").write_bytes(b"\xef\xbb\xbf" + (HEADING + rows).encode())
    (tmp_path / "REFERENCE.csv").write_text(HEADING + "A1980,1,,\n")
    labels = {name: record.labels for name, record in records(tmp_path).items()}
    assert labels == {"A1980": {"cpsc2018": ("1",)}, "A1981": {"cpsc2018": ("2", "5", "8")}, "A1982": {}}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("Recording,label\nA1980,1\n", "no column First_label"),
        (HEADING + "A1980,10,,\n", "line 2: classes .*10"),
        (HEADING + "A1980,,,\n", "line 2: classes"),
        (HEADING + "A1980,1,,\nA1980,2,,\n", "A1980 the classes 2, another table or line 1"),
    ],
)
def test_a_table_that_cannot_be_it_is_refused(one: Path, table: str, words: str) -> None:
    (one / "REFERENCE.csv").write_text(table)
    with pytest.raises(DatabaseError, match=words):
        records(one)


def test_the_copy_of_the_cinc_challenge_is_refused_by_name(one: Path, ecg_data: Path) -> None:
    shutil.copyfile(ecg_data / "challenge-2021/training/georgia/g1/E07500.hea", one / "A1980.hea")
    with pytest.raises(DatabaseError, match="convert it as cpsc-2018"):
        records(one)


def test_a_signal_of_the_cinc_challenge_under_this_name_is_refused(one: Path, ecg_data: Path) -> None:
    shutil.copyfile(ecg_data / "challenge-2021/training/georgia/g1/E07500.mat", one / "A1980.mat")
    with pytest.raises(RecordError, match="not a little-endian MATLAB file of version 5") as caught:
        records(one)
    assert caught.value.reason == "file-malformed"


def test_a_file_of_another_name_is_refused(one: Path) -> None:
    shutil.copyfile(one / "A1980.mat", one / "Q0001.mat")
    with pytest.raises(DatabaseError, match=r"Q0001\.mat is not a record of CPSC 2018"):
        records(one)


@pytest.mark.parametrize("shape", [(5000, 12), (8, 5000), (12, 0)])
def test_a_matrix_that_is_not_twelve_leads_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    scipy.io.savemat(tmp_path / "A0001.mat", {"ECG": {"sex": "Male", "age": 1.0, "data": np.ones(shape)}})
    with pytest.raises(RecordError, match="expected 12 leads x samples") as caught:
        records(tmp_path)
    assert caught.value.reason == "file-malformed"


@pytest.mark.parametrize(
    ("fields", "age", "sex"),
    [
        ({"sex": "Female", "age": np.nan}, None, "female"),
        ({"sex": "Unknown", "age": np.zeros((0, 0))}, None, None),
        ({"sex": 1.0, "age": "old"}, None, None),
        ({}, None, None),
    ],
)
def test_age_and_sex_that_are_not_said_are_unknown(
    tmp_path: Path, fields: dict[str, object], age: float | None, sex: str | None
) -> None:
    scipy.io.savemat(tmp_path / "A0001.mat", {"ECG": {**fields, "data": np.ones((12, 30))}})
    record = records(tmp_path)["A0001"]
    assert (record.age, record.sex) == (age, sex)


def test_infinite_samples_are_refused(tmp_path: Path) -> None:
    data = np.ones((12, 30))
    data[2, 7] = np.inf
    scipy.io.savemat(tmp_path / "A0001.mat", {"ECG": {"sex": "Male", "age": 1.0, "data": data}})
    with pytest.raises(RecordError, match="infinite") as caught:
        records(tmp_path)
    assert caught.value.reason == "signal-infinite"
