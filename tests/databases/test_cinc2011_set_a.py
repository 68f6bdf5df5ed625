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
