"""PTB Diagnostic: four genuine records, in the folders of patients in which they are published."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record

# Folders as published (not checked against the files but for their form): four patients here.
HOMES = {"s0010_re": "patient001", "s0015lre": "patient002", "s0017lre": "patient003", "s0043lre": "patient004"}
GAIN_RULE = "gain-2000000-is-1000"


@pytest.fixture
def published(ecg_data: Path, tmp_path: Path) -> Path:
    """Return the samples in the layout as published."""
    for record, home in HOMES.items():
        (tmp_path / home).mkdir()
        for path in (ecg_data / "ptbdb").glob(f"{record}.*"):
            shutil.copyfile(path, tmp_path / home / path.name)
    return tmp_path


def records(root: Path) -> dict[str, Record]:
    database = load_database("ptb-diagnostic")
    return {ref.record: database.read(ref) for ref in database.refs(root)}


def test_the_twelve_leads_are_the_numbers_of_the_dat_file(published: Path) -> None:
    found = records(published)
    assert list(found) == list(HOMES)
    for name, record in found.items():
        raw_TL = np.fromfile(published / HOMES[name] / f"{name}.dat", dtype="<i2").reshape(-1, 12)
        np.testing.assert_array_equal(record.counts_LT, raw_TL.T)
        assert record.counts_LT.dtype == np.int16 and record.counts_LT.flags.c_contiguous
        assert (record.microvolt_per_count == 0.5).all() and not record.offset_counts.any()
        assert record.leads == load_database("ptb-diagnostic").native_leads[:12]
        assert (record.rate_hz, record.patient, record.mended) == (1000.0, HOMES[name], ())
        # Einthoven, within the rounding of the two: the leads are those that they are called.
        one, two, three = record.counts_LT[:3].astype(np.int64)
        assert np.abs(two - one - three).max() <= 4


def test_fields_of_the_headers_are_read(published: Path) -> None:
    found = records(published)
    # Read off the four headers by eye.
    assert {name: (record.age, record.sex) for name, record in found.items()} == {
        "s0010_re": (81.0, "female"), "s0015lre": (58.0, "female"),
        "s0017lre": (63.0, "male"), "s0043lre": (67.0, "male"),
    }  # fmt: skip
    assert all(record.labels == {"ptb-diagnosis": ("Myocardial infarction",)} for record in found.values())


def test_a_record_is_the_same_with_and_without_its_frank_leads(published: Path) -> None:
    before = records(published)["s0010_re"]
    (published / "patient001/s0010_re.xyz").unlink()
    after = records(published)["s0010_re"]
    np.testing.assert_array_equal(before.counts_LT, after.counts_LT)
    assert before.leads == after.leads and len(after.leads) == 12


def test_headers_with_sums_are_compared_and_headers_of_zeros_are_not(published: Path) -> None:
    for name in ("s0010_re", "s0015lre"):
        path = published / HOMES[name] / f"{name}.dat"
        content = bytearray(path.read_bytes())
        content[24_000] ^= 1
        path.write_bytes(content)
    database = load_database("ptb-diagnostic")
    summed, zeros, *_ = database.refs(published)
    with pytest.raises(RecordError, match="checksum of lead i is") as caught:
        database.read(summed)
    assert caught.value.reason == "header-signal-disagree"
    # The header of s0015lre says that every lead begins with 0 and sums to 0. It was never filled in.
    assert "16 0 0 0 0 i\n" in zeros.path.read_text()
    assert database.read(zeros).counts_LT[0, 0] != 0


def test_one_zero_sum_alone_is_still_compared(published: Path) -> None:
    path = published / "patient001/s0010_re.hea"
    path.write_text(path.read_text().replace("16 0 -489 -8337 0 i\n", "16 0 0 0 0 i\n"))
    with pytest.raises(RecordError, match="initial value of lead i is -489"):
        records(published)


def test_a_cut_dat_file_is_refused(published: Path) -> None:
    path = published / "patient002/s0015lre.dat"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(RecordError) as caught:
        records(published)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("reason", "labels"),
    [
        ("Healthy control", {"ptb-diagnosis": ("Healthy control",)}),
        ("n/a", {}),
        ("", {}),
    ],
)
def test_a_reason_that_is_not_given_is_no_label(published: Path, reason: str, labels: dict[str, object]) -> None:
    path = published / "patient001/s0010_re.hea"
    path.write_text(path.read_text().replace("admission: Myocardial infarction", f"admission: {reason}"))
    assert records(published)["s0010_re"].labels == labels


def test_a_record_outside_of_its_patients_folder_has_no_patient(ecg_data: Path) -> None:
    found = records(ecg_data / "ptbdb")
    assert len(found) == 4 and all(record.patient is None for record in found.values())


def test_the_challenges_mended_copy_is_the_same_recording(published: Path, ecg_data: Path) -> None:
    challenge = load_database("ptb", mend=(GAIN_RULE,))
    (ref,) = challenge.refs(ecg_data / "challenge-2021")
    copy, original = challenge.read(ref), records(published)["s0010_re"]
    copy_mv, original_mv = (one.counts_LT * one.microvolt_per_count[:, None] * 1e-3 for one in (copy, original))
    assert (copy.rate_hz, copy.age, copy.sex) == (original.rate_hz, original.age, original.sex)
    assert tuple(lead.lower() for lead in copy.leads) == original.leads
    # The copy halved counts of 0.5 microvolt and rounded; in no lead is the difference larger.
    np.testing.assert_allclose(copy_mv, original_mv, rtol=0, atol=0.5e-3 + 1e-9)


def test_a_record_of_another_database_is_refused(ecg_data: Path) -> None:
    with pytest.raises(DatabaseError, match=r"S0001\.hea is not a record of the PTB Diagnostic.*convert them as ptb"):
        list(load_database("ptb-diagnostic").refs(ecg_data / "challenge-2021/training/ptb"))
