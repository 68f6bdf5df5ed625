"""MIMIC-IV-ECG in its published layout.

No genuine record is at hand, so recordings of Georgia (500 Hz, 10 s) are written as its records are: format 16 with 200
counts a millivolt, aVF before aVL, folders by patient. The first row of each table is genuine.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import wfdb
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import MISSING, Record
from ecgfm.shards.writer import Options, convert

LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
GENUINE = ("10000032", "40689238")
"""Subject and study of the first row."""


def place_of(subject: str, study: str) -> str:
    return f"files/p{subject[:4]}/p{subject}/s{study}/{study}"


def write_record(root: Path, subject: str, study: str, counts_LT: NDArray[np.int16]) -> Path:
    """Write a record whose leads are in the order of `LEADS`; return the header's path."""
    header = root / f"{place_of(subject, study)}.hea"
    header.parent.mkdir(parents=True)
    header.with_suffix(".dat").write_bytes(counts_LT.T.astype("<i2").tobytes())
    lines = [f"{study} 12 500 {counts_LT.shape[1]} 08:44:00 23/07/2180"]
    for lead, row in zip(LEADS, counts_LT, strict=True):
        checksum = (sum(int(count) for count in row) + 32768) % 65536 - 32768
        lines.append(f"{study}.dat 16 200.0(0)/mV 16 0 {row[0]} {checksum} 0 {lead}")
    header.write_text("\n".join(lines) + "\n")
    return header


def write_list(root: Path, studies: Sequence[tuple[str, str]], time: str = "2180-07-23 08:44:00") -> None:
    rows = [f"{subject},{study},{study},{time},{place_of(subject, study)}" for subject, study in studies]
    (root / "record_list.csv").write_text("\n".join(["subject_id,study_id,file_name,ecg_time,path", *rows]) + "\n")


def write_statements(root: Path, statements: Mapping[str, Sequence[str]], **dialect: Any) -> None:
    """Write the table of the machine's statements, by study."""
    reports = [f"report_{number}" for number in range(18)]
    with (root / "machine_measurements.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **dialect)
        writer.writerow(["subject_id", "study_id", "cart_id", "ecg_time", *reports, "bandwidth", "rr_interval"])
        for study, lines in statements.items():
            padded = [*lines, *[""] * (18 - len(lines))]
            writer.writerow(["1", study, "6848296", "2180-07-23 08:44:00", *padded, "0.005-150 Hz", "29999"])


def write_patients(root: Path, subject: str, sex: str, anchor_age: str, anchor_year: str) -> None:
    (root / "patients.csv").write_text(
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n"
        f"10000001,M,1,2100,2008 - 2010,\n{subject},{sex},{anchor_age},{anchor_year},2014 - 2016,2180-09-09\n"
    )


def read_all(root: Path) -> list[Record]:
    database = load_database("mimic-iv-ecg")
    return [database.read(ref) for ref in database.refs(root)]


@pytest.fixture(scope="module")
def georgia_mv(ecg_data: Path) -> dict[str, NDArray[np.float64]]:
    """Return one recording by lead, in millivolt."""
    path = ecg_data / "challenge-2021/training/georgia/g1/E07500"
    names = [line.split()[-1] for line in path.with_suffix(".hea").read_text().splitlines()[1:13]]
    return dict(zip(names, scipy.io.loadmat(str(path))["val"] / 1000, strict=True))


@pytest.fixture
def counts_LT(georgia_mv: dict[str, NDArray[np.float64]]) -> NDArray[np.int16]:
    """Return that recording as MIMIC-IV-ECG has it."""
    return np.rint([200 * georgia_mv[lead] for lead in LEADS]).astype(np.int16)


@pytest.fixture
def root(tmp_path: Path, counts_LT: NDArray[np.int16]) -> Path:
    """Return a copy with one record and no statements."""
    write_record(tmp_path, *GENUINE, counts_LT)
    write_list(tmp_path, [GENUINE])
    return tmp_path


def test_signals_are_those_of_wfdb_with_leads_by_name(root: Path, georgia_mv: dict[str, NDArray[np.float64]]) -> None:
    (record,) = read_all(root)
    theirs = wfdb.rdrecord(str(root / place_of(*GENUINE)))
    signal_LT = (record.counts_LT - record.offset_counts[:, None]) * record.microvolt_per_count[:, None] * 1e-3
    np.testing.assert_allclose(signal_LT, theirs.p_signal.T, rtol=0, atol=1e-12)
    assert record.leads == tuple(theirs.sig_name) == LEADS == load_database("mimic-iv-ecg").native_leads
    assert (record.record, record.patient, record.rate_hz) == ("40689238", "10000032", 500.0)
    for lead, row in zip(record.leads, signal_LT, strict=True):
        np.testing.assert_allclose(row, georgia_mv[lead], rtol=0, atol=0.0025 + 1e-9)  # half a count


def test_missing_samples_stay_missing(tmp_path: Path, counts_LT: NDArray[np.int16]) -> None:
    counts_LT[4, 100:200] = MISSING
    write_record(tmp_path, *GENUINE, counts_LT)
    write_list(tmp_path, [GENUINE])
    (record,) = read_all(tmp_path)
    np.testing.assert_array_equal(record.counts_LT, counts_LT)


def test_the_genuine_tables_are_read(ecg_data: Path, root: Path) -> None:
    for name in ("record_list.csv", "machine_measurements.csv"):
        (root / name).write_bytes((ecg_data / "mimic-iv-ecg-metadata" / name).read_bytes())
    (record,) = read_all(root)
    assert record.labels == {
        "report": ("Sinus rhythm", "Possible right atrial abnormality", "Borderline ECG"),
    }
    assert (record.age, record.sex) == (None, None)


@pytest.mark.parametrize(
    "dialect",
    [{}, {"lineterminator": "\n"}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC}],
    ids=["crlf", "lf", "all quoted", "text quoted"],
)
def test_statements_with_quotes_commas_and_line_breaks_belong_to_their_study(
    tmp_path: Path, counts_LT: NDArray[np.int16], dialect: dict[str, Any]
) -> None:
    statements = {
        "40000005": ['Poor "R wave" progression', "axis, left", "two\nlines\n\nof it", '"'],
        "40000003": [",", 'ends in a quote"', "caf\u00e9 \u00b5V"],
        "40000009": [f"line {number}" for number in range(18)],
        "40000001": ["", "  first is empty ", "", "last"],
        "40000004": [],
    }
    studies = [("10000032", study) for study in sorted(statements)]
    for subject, study in studies:
        write_record(tmp_path, subject, study, counts_LT[:, :100])
    write_list(tmp_path, studies)
    write_statements(tmp_path, statements, **dialect)
    found = {record.record: record.labels["report"] for record in read_all(tmp_path)}
    assert found == {study: tuple(line.strip() for line in lines if line) for study, lines in statements.items()}


def test_a_study_without_a_row_has_no_labels_and_one_without_statements_an_empty_list(root: Path) -> None:
    (record,) = read_all(root)
    assert record.labels == {}  # there is no table
    write_statements(root, {"40689237": ["Sinus rhythm"], "40689239": ["Sinus rhythm"]})
    (record,) = read_all(root)
    assert record.labels == {}
    write_statements(root, {"40689237": ["Sinus rhythm"], "40689238": []})
    (record,) = read_all(root)
    assert record.labels == {"report": ()}


def test_a_table_that_changed_since_is_noticed(root: Path) -> None:
    write_statements(root, {"40000001": ["Sinus rhythm"], GENUINE[1]: ["Atrial fibrillation"]})
    database = load_database("mimic-iv-ecg")
    (ref,) = database.refs(root)
    write_statements(root, {GENUINE[1]: ["Atrial fibrillation"], "40000001": ["Sinus rhythm"]})
    with pytest.raises(RecordError, match="changed") as caught:
        database.read(ref)
    assert caught.value.reason == "table-malformed"
    (root / "machine_measurements.csv").unlink()
    with pytest.raises(RecordError, match="cannot be read") as caught:
        database.read(ref)
    assert caught.value.reason == "table-malformed"


def test_a_reference_is_enough_for_another_process(root: Path) -> None:
    write_statements(root, {GENUINE[1]: ["Sinus rhythm"]})
    (ref,) = load_database("mimic-iv-ecg").refs(root)
    record = load_database("mimic-iv-ecg").read(pickle.loads(pickle.dumps(ref)))  # noqa: S301
    assert record.labels == {"report": ("Sinus rhythm",)}


@pytest.mark.parametrize(
    ("entries", "age", "sex"),
    [
        (("F", "52", "2180"), 52.0, "female"),
        (("M", "52", "2178"), 54.0, "male"),
        (("M", "52", "2183"), 49.0, "male"),
        (("", "91", "2180"), 91.0, None),
        (("F", "0", "2183"), None, "female"),  # not born yet
    ],
)
def test_age_is_that_at_the_recording(
    root: Path, entries: tuple[str, str, str], age: float | None, sex: str | None
) -> None:
    write_patients(root, GENUINE[0], *entries)
    (record,) = read_all(root)
    assert (record.age, record.sex) == (age, sex)


def test_a_patient_that_the_table_lacks_or_a_time_that_is_not_known_leaves_the_age_open(root: Path) -> None:
    write_patients(root, "10000033", "F", "52", "2180")
    (record,) = read_all(root)
    assert (record.age, record.sex) == (None, None)
    write_patients(root, GENUINE[0], "F", "52", "2180")
    write_list(root, [GENUINE], time="")
    (record,) = read_all(root)
    assert (record.age, record.sex) == (None, "female")


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Return a folder of 60 studies of 12 patients in 2 groups, without files, and the studies in order."""
    studies = [
        (f"100{group}{patient:04d}", f"4{group}{patient:04d}{study:02d}")
        for group in range(2)
        for patient in range(6)
        for study in range(5)
    ]
    for subject, study in studies:
        (tmp_path / place_of(subject, study)).parent.mkdir(parents=True)
    write_list(tmp_path, studies)
    return tmp_path, studies


def test_studies_that_were_not_downloaded_are_passed_over(many: tuple[Path, list[tuple[str, str]]]) -> None:
    root, studies = many
    study = [(root / place_of(*one)).parent for one in studies]
    study[7].rmdir()  # one study of a patient
    for folder in study[10:15]:  # a patient
        folder.rmdir()
    study[10].parent.rmdir()
    for folder in study[30:]:  # a group
        folder.rmdir()
    for folder in {folder.parent for folder in study[30:]}:
        folder.rmdir()
    study[30].parents[1].rmdir()
    expected = [study for index, (_, study) in enumerate(studies) if index < 30 and index not in (7, *range(10, 15))]
    database = load_database("mimic-iv-ecg")
    refs = list(database.refs(root))
    assert [ref.record for ref in refs] == expected
    assert database.expected_records == 800_035
    with pytest.raises(RecordError) as caught:
        database.read(refs[0])  # a folder is there, its files are not
    assert caught.value.reason == "file-missing"


def test_the_order_of_the_table_changes_nothing(many: tuple[Path, list[tuple[str, str]]]) -> None:
    root, studies = many
    in_order = {(ref.record, str(ref.path), ref.info["patient"]) for ref in load_database("mimic-iv-ecg").refs(root)}
    np.random.default_rng(0).shuffle(studies)
    write_list(root, studies)
    shuffled = {(ref.record, str(ref.path), ref.info["patient"]) for ref in load_database("mimic-iv-ecg").refs(root)}
    assert shuffled == in_order and len(in_order) == 60


def test_the_disk_is_asked_once_a_folder_and_never_once_a_study(
    many: tuple[Path, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    scandir = os.scandir

    def spy(path: str) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    assert len(list(load_database("mimic-iv-ecg").refs(many[0]))) == 60
    below = [name for name in listed if name.startswith(str(many[0] / "files"))]
    assert len(below) == len(set(below)) == 1 + 2 + 12


@pytest.mark.parametrize(
    "place", ["../outside/s1/1", "{above}/outside/s1/1", "", "files", "files/./p1000/p10000032/s40689238/40689238"]
)
def test_a_path_that_leaves_the_folder_is_not_followed(root: Path, place: str) -> None:
    outside = root.parent / "outside" / "s1"
    outside.mkdir(parents=True, exist_ok=True)
    (root / outside.parts[1]).mkdir()
    table = root / "record_list.csv"
    table.write_text(f"{table.read_text()}1,1,1,2180-07-23 08:44:00,{place.format(above=root.parent)}\n")
    assert [ref.record for ref in load_database("mimic-iv-ecg").refs(root)] == [GENUINE[1]]


@pytest.mark.parametrize(("subject", "study"), [("10000032", "s1"), ("p1", "40689238"), ("", "40689238")])
def test_a_number_that_is_none_is_refused_with_its_line(root: Path, subject: str, study: str) -> None:
    table = root / "record_list.csv"
    table.write_text(f"{table.read_text()}{subject},{study},1,2180-07-23 08:44:00,{place_of(*GENUINE)}\n")
    with pytest.raises(DatabaseError, match=r"record_list\.csv line 3: "):
        list(load_database("mimic-iv-ecg").refs(root))


def test_a_table_without_any_record_is_refused(tmp_path: Path) -> None:
    write_list(tmp_path, [GENUINE])
    with pytest.raises(DatabaseError, match="none of its records") as caught:
        list(load_database("mimic-iv-ecg").refs(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["record_list.csv", "machine_measurements.csv", "patients.csv"])
@pytest.mark.parametrize(
    ("content", "words"), [(b"a,b\n1,2\n", "no column"), (b"", "no column"), (b"\xff\xfe\n", "cannot be read")]
)
def test_a_foreign_table_is_refused_by_name(root: Path, name: str, content: bytes, words: str) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(DatabaseError, match=words) as caught:
        list(load_database("mimic-iv-ecg").refs(root))
    assert str(root / name) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root, to whom nothing is closed")
def test_a_closed_folder_is_an_error_and_not_an_empty_one(root: Path) -> None:
    patient = (root / place_of(*GENUINE)).parents[1]
    patient.chmod(0)
    with pytest.raises(DatabaseError, match="cannot be listed"):
        list(load_database("mimic-iv-ecg").refs(root))
    patient.chmod(0o755)


def test_the_download_brings_what_is_read(root: Path) -> None:
    write_statements(root, {})
    download = load_database("mimic-iv-ecg").download
    assert download is not None
    for path in (path.relative_to(root) for path in root.rglob("*") if path.is_file()):
        assert any(fnmatch(str(path), pattern) for pattern in download.files), path


def test_a_copy_that_was_moved_is_the_same_conversion(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_statements(root, {GENUINE[1]: ["Sinus rhythm"]})
    out = tmp_path_factory.mktemp("out")
    before = convert(load_database("mimic-iv-ecg"), root, out, Options())
    moved = tmp_path_factory.mktemp("moved") / "copy"
    root.rename(moved)
    assert convert(load_database("mimic-iv-ecg"), moved, out, Options()) == before
    (ref,) = load_database("mimic-iv-ecg").refs(moved)
    assert load_database("mimic-iv-ecg").read(ref).labels == {"report": ("Sinus rhythm",)}
