"""Set A of the Challenge 2011: judgements from either layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError
from ecgfm.leads import LEADS

Write = Callable[..., Path]


def test_judgements_are_counted_as_in_the_table(ecg_data: Path) -> None:
    database = load_database("cinc2011-set-a")
    labels = Counter(ref.info["quality"] for ref in database.refs(ecg_data / "cinc2011-set-a"))
    # cut -d, -f2 quality.csv | sort | uniq -c
    assert labels == {"acceptable": 619, "unacceptable": 179, "": 2}


def test_a_record_is_that_of_wfdb_at_5_microvolt_a_count(ecg_data: Path) -> None:
    database = load_database("cinc2011-set-a")
    ref = next(ref for ref in database.refs(ecg_data / "cinc2011-set-a") if ref.record == "1002867")
    record = database.read(ref)
    theirs = wfdb.rdrecord(str(ecg_data / "cinc2011-set-a/1002867"))
    np.testing.assert_allclose(record.counts_LT * 5.0 * 1e-3, theirs.p_signal.T, rtol=0, atol=1e-12)
    assert (record.microvolt_per_count == 5.0).all()
    assert record.labels == {"quality": ("acceptable",)}


def test_lists_of_records_judge_as_well(tmp_path: Path, write_challenge: Write) -> None:
    for name in ("1", "2", "3"):
        write_challenge(tmp_path, name, np.zeros((12, 10), np.int16))
    (tmp_path / "RECORDS-acceptable").write_text("1\n")
    (tmp_path / "RECORDS-unacceptable").write_text("3\n")
    database = load_database("cinc2011-set-a")
    labels = [database.read(ref).labels for ref in database.refs(tmp_path)]
    assert labels == [{"quality": ("acceptable",)}, {}, {"quality": ("unacceptable",)}]


@pytest.mark.parametrize("table", ["a,b\n1,2\n", "record,quality\n1,splendid\n"])
def test_a_foreign_table_is_refused(tmp_path: Path, table: str) -> None:
    (tmp_path / "quality.csv").write_text(table)
    with pytest.raises(DatabaseError, match=r"quality\.csv"):
        list(load_database("cinc2011-set-a").refs(tmp_path))


def test_exchanged_names_of_avl_and_avf_are_put_right(ecg_data: Path) -> None:
    database = load_database("cinc2011-set-a")
    exchanged: Counter[str] = Counter()
    for ref in list(database.refs(ecg_data / "cinc2011-set-a"))[::20]:
        record = database.read(ref)
        if ref.info["quality"] != "acceptable":
            continue
        lead = dict(zip(record.leads, record.counts_LT.astype(float), strict=True))
        # Rounding to a count in each of three leads.
        assert np.abs(lead["aVL"] - (lead["I"] - lead["II"] / 2)).max() <= 2
        assert np.abs(lead["aVF"] - (lead["II"] - lead["I"] / 2)).max() <= 2
        exchanged.update(record.mended)
    assert exchanged["avl-and-avf-exchanged"] > 20


def test_right_names_are_left_alone(ecg_data: Path, tmp_path: Path, write_challenge: Write) -> None:
    ludb = load_database("ludb")
    counts_LT = np.asarray(ludb.read(next(ludb.refs(ecg_data / "ludb"))).counts_LT, dtype=np.int16)
    write_challenge(tmp_path, "1", counts_LT)
    write_challenge(tmp_path, "2", np.zeros((12, 5000), np.int16))
    (tmp_path / "quality.csv").write_text("record,quality\n1,acceptable\n2,unacceptable\n")
    database = load_database("cinc2011-set-a")
    for record in map(database.read, database.refs(tmp_path)):
        assert (record.leads, record.mended) == (LEADS, ())
