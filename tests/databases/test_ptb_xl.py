"""PTB-XL in its own layout: table, folds, rates and partial downloads."""

from __future__ import annotations

import csv
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgfm.databases.base import load_database
from ecgfm.databases.ptb_xl import statements
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS, canonical_name
from ecgfm.record import Record

COLUMNS = ("ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_lr", "filename_hr")


@pytest.fixture
def copy(ecg_data: Path, tmp_path: Path) -> Path:
    """Return a folder with records 1 and 2 at 100 Hz and no table."""
    folder = tmp_path / "records100" / "00000"
    folder.mkdir(parents=True)
    for name in ("00001_lr", "00002_lr"):
        for suffix in (".hea", ".dat"):
            shutil.copy(ecg_data / f"ptb-xl/records100/00000/{name}{suffix}", folder)
    return tmp_path


def write_table(root: Path, **changed: str) -> None:
    """Write a table of record 1, with the entries that a test changes."""
    row = {
        "ecg_id": "1", "patient_id": "15709.0", "age": "56.0", "sex": "1", "scp_codes": "{'NORM': 100.0}",
        "heart_axis": "", "strat_fold": "3", "filename_lr": "records100/00000/00001_lr",
        "filename_hr": "records500/00000/00001_hr",
    } | changed  # fmt: skip
    with (root / "ptbxl_database.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)


def read_first(root: Path) -> Record:
    database = load_database("ptb-xl")
    return database.read(next(database.refs(root)))


def test_signals_are_those_of_wfdb(ecg_data: Path) -> None:
    database = load_database("ptb-xl")
    refs = list(database.refs(ecg_data / "ptb-xl"))
    assert [ref.record for ref in refs] == ["00001", "00002", "00003", "00004", "00005"]
    for ref in refs:
        record = database.read(ref)
        theirs = wfdb.rdrecord(str(ecg_data / f"ptb-xl/records100/00000/{ref.record}_lr"))
        signal_LT = record.counts_LT * record.microvolt_per_count[:, None] * 1e-3
        np.testing.assert_allclose(signal_LT, theirs.p_signal.T, rtol=0, atol=1e-12)
        assert tuple(canonical_name(lead) for lead in record.leads) == LEADS
        assert record.rate_hz == 100.0
        assert record.leads == database.native_leads and record.rate_hz in database.native_rates_hz


def test_the_download_brings_the_records_at_500_hz_alone(ecg_data: Path) -> None:
    download = load_database("ptb-xl").download
    assert download is not None
    with (ecg_data / "ptb-xl/ptbxl_database.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def brought(path: str) -> bool:
        return any(fnmatch(path, pattern) for pattern in download.files)

    assert brought("ptbxl_database.csv")
    assert all(brought(f"{row['filename_hr']}.hea") and brought(f"{row['filename_hr']}.dat") for row in rows)
    assert not any(brought(f"{row['filename_lr']}.hea") for row in rows)


def test_a_report_of_several_lines_ends_no_row(ecg_data: Path, copy: Path) -> None:
    with (ecg_data / "ptb-xl/ptbxl_database.csv").open(encoding="utf-8", newline="") as file:
        first, second, *_ = csv.DictReader(file)
    with (copy / "ptbxl_database.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows([first | {"report": 'sinus, "rhythm"\r\n2,00009,\n'}, second])
    database = load_database("ptb-xl")
    assert [database.read(ref).patient for ref in database.refs(copy)] == ["15709", "13243"]


def test_fields_of_the_first_row(ecg_data: Path) -> None:
    record = read_first(ecg_data / "ptb-xl")
    assert (record.patient, record.age, record.sex, record.fold) == ("15709", 56.0, "female", 3)
    assert record.labels == {"scp": ("NORM", "LVOLT", "SR"), "heart-axis": ()}


@pytest.mark.parametrize(("fold", "split"), [("1", "train"), ("8.0", "train"), ("9", "val"), ("10", "test")])
def test_folds_are_split_as_recommended(copy: Path, fold: str, split: str) -> None:
    write_table(copy, strat_fold=fold)
    (ref,) = load_database("ptb-xl").refs(copy)
    assert ref.split == split
    assert read_first(copy).fold == int(float(fold))


@pytest.mark.parametrize("fold", ["", "0", "11", "nan", "x"])
def test_an_impossible_fold_is_refused_with_its_line(copy: Path, fold: str) -> None:
    write_table(copy, strat_fold=fold)
    with pytest.raises(DatabaseError, match="line 2: strat_fold"):
        list(load_database("ptb-xl").refs(copy))


def test_rows_without_files_are_passed_over(ecg_data: Path, copy: Path) -> None:
    shutil.copy(ecg_data / "ptb-xl/ptbxl_database.csv", copy)
    database = load_database("ptb-xl")
    assert [ref.record for ref in database.refs(copy)] == ["00001", "00002"]
    assert database.expected_records == 21_799


def test_a_table_without_any_file_is_refused(ecg_data: Path, tmp_path: Path) -> None:
    shutil.copy(ecg_data / "ptb-xl/ptbxl_database.csv", tmp_path)
    with pytest.raises(DatabaseError, match="none of its records") as caught:
        list(load_database("ptb-xl").refs(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_500_hz_is_preferred_and_never_mixed_with_100_hz(copy: Path) -> None:
    write_table(copy)
    assert read_first(copy).rate_hz == 100.0
    folder = copy / "records500" / "00000"
    folder.mkdir(parents=True)
    with pytest.raises(DatabaseError, match="none of its records"):
        list(load_database("ptb-xl").refs(copy))
    counts_TL = np.random.default_rng(0).integers(-900, 900, (5000, 12))
    wfdb.wrsamp(
        "00001_hr", 500, ["mV"] * 12, list(LEADS), d_signal=counts_TL, fmt=["16"] * 12, adc_gain=[1000.0] * 12,
        baseline=[0] * 12, write_dir=str(folder),
    )  # fmt: skip
    record = read_first(copy)
    assert (record.rate_hz, record.record) == (500.0, "00001")
    np.testing.assert_array_equal(record.counts_LT, counts_TL.T)


@pytest.mark.parametrize(
    ("stated", "age"), [("56.0", 56.0), ("0", 0.0), ("91.0", 91.0), ("300.0", 90.0), ("", None), ("nan", None)]
)
def test_hidden_ages_count_as_old_and_not_as_unknown(copy: Path, stated: str, age: float | None) -> None:
    write_table(copy, age=stated)
    assert read_first(copy).age == age


@pytest.mark.parametrize(
    ("stated", "sex"), [("0", "male"), ("1", "female"), ("1.0", "female"), ("", None), ("2", None)]
)
def test_sex_is_0_for_male_and_1_for_female(copy: Path, stated: str, sex: str | None) -> None:
    write_table(copy, sex=stated)
    assert read_first(copy).sex == sex


def test_statements_fall_in_likelihood_and_keep_their_order_otherwise() -> None:
    assert statements("{'IMI': 50.0, 'LVH': 100, 'ISC_': 100.0, 'SR': 0.0, 'PVC': 0.0}") == (
        "LVH", "ISC_", "IMI", "SR", "PVC",
    )  # fmt: skip
    assert statements("{}") == ()


@pytest.mark.parametrize(
    "text", ["", "NORM", "['NORM']", "{'NORM': 'yes'}", "{1: 2}", "__import__('os').getcwd()", "{[]: 1}"]
)
def test_statements_are_never_evaluated(text: str) -> None:
    with pytest.raises(RecordError) as caught:
        statements(text)
    assert caught.value.reason == "table-malformed"


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ptbxl_database.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatabaseError, match="no column ecg_id"):
        list(load_database("ptb-xl").refs(tmp_path))


def test_the_folder_of_records_alone_is_refused_with_the_name_of_the_table(ecg_data: Path) -> None:
    with pytest.raises(DatabaseError, match=r"ptbxl_database\.csv does not exist"):
        list(load_database("ptb-xl").refs(ecg_data / "ptb-xl/records100"))


def test_the_header_of_another_record_is_refused(copy: Path) -> None:
    # Its signal would get this record's patient, labels and fold: a held-out recording could so be trained on.
    write_table(copy)
    folder = copy / "records100" / "00000"
    shutil.copy(folder / "00002_lr.hea", folder / "00001_lr.hea")
    with pytest.raises(RecordError, match=r"00001_lr\.hea is the header of record 00002_lr") as caught:
        read_first(copy)
    assert caught.value.reason == "header-misplaced"
