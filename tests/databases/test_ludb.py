"""LUDB: the scale that the files do not give, derived again, and the statements against its own table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.databases.ludb import SCALE_RULE
from ecgfm.errors import DatabaseError
from ecgfm.record import Record


def records(root: Path, name: str) -> list[Record]:
    database = load_database(name)
    return [database.read(ref) for ref in database.refs(root)]


def test_all_integers_satisfy_einthoven_so_the_leads_share_one_scale(ecg_data: Path) -> None:
    found = records(ecg_data / "ludb", "ludb")
    assert len(found) == 200
    for record in found:
        one, two, three = record.counts_LT[:3].astype(np.int64)
        np.testing.assert_array_equal(two, one + three)


def test_the_headers_gains_break_einthoven(ecg_data: Path) -> None:
    worst_mv = []
    for number in range(1, 21):
        one, two, three = wfdb.rdrecord(str(ecg_data / f"ludb/data/{number}")).p_signal[:, :3].T
        worst_mv.append(np.abs(two - one - three).max())
        np.testing.assert_allclose(np.ptp(one), 1.0, atol=0.01)  # each lead is scaled to 1 mV
    assert np.median(worst_mv) > 0.1


def test_at_one_microvolt_a_count_the_amplitudes_are_those_of_other_databases(ecg_data: Path) -> None:
    def median_span_mv(found: list[Record]) -> NDArray[np.float64]:
        spans = [np.ptp(one.counts_LT * one.microvolt_per_count[:, None], axis=1) * 1e-3 for one in found]
        return np.asarray(np.median(spans, axis=0))

    others = records(ecg_data / "challenge-2021", "georgia") + records(ecg_data / "challenge-2021", "ningbo")
    ratio = median_span_mv(records(ecg_data / "ludb", "ludb")) / median_span_mv(others)
    # Measured 0.91 to 1.39; a scale wrong by the usual factors (2, 2.44, 4.88, 5) would be far outside.
    assert 0.8 < np.median(ratio) < 1.25 and (ratio > 0.6).all() and (ratio < 1.6).all()


def test_the_rule_is_recorded_in_every_record(ecg_data: Path) -> None:
    for record in records(ecg_data / "ludb", "ludb"):
        assert record.mended == (SCALE_RULE,) and (record.microvolt_per_count == 1.0).all()


def test_statements_age_and_sex_are_those_of_the_table(ecg_data: Path) -> None:
    with (ecg_data / "ludb/ludb.csv").open(encoding="utf-8", newline="") as file:
        table = {row.pop("ID").strip(): row for row in csv.DictReader(file)}
    found = records(ecg_data / "ludb", "ludb")
    assert {record.record for record in found} == table.keys()
    for record in found:
        row = table[record.record]
        age, sex = row.pop("Age").strip(), row.pop("Sex").strip()
        assert record.age == (90.0 if age == ">89" else float(age))
        assert record.sex == {"F": "female", "M": "male"}[sex]
        stated = {line.strip().lower() for cell in row.values() for line in cell.splitlines() if line.strip()}
        read = {label.lower().removeprefix("rhythm: ") for label in record.labels["ludb"]}
        assert stated - {"pacemaker presence, undefined"} == read


def test_statements_of_the_first_record_are_as_published(ecg_data: Path) -> None:
    record = next(record for record in records(ecg_data / "ludb", "ludb") if record.record == "1")
    assert record.labels["ludb"] == (
        "Rhythm: Sinus bradycardia",
        "Electric axis of the heart: left axis deviation",
        "Left ventricular hypertrophy",
        "Left ventricular overload",
        "Non-specific repolarization abnormalities: posterior wall",
    )
    assert record.patient == "1"


def test_another_database_is_refused(ecg_data: Path) -> None:
    with pytest.raises(DatabaseError, match="not a record of LUDB"):
        list(load_database("ludb").refs(ecg_data / "challenge-2021"))
