"""Labels from a CSV file: what its words mean, and what is refused with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Examples, task_examples
from ecgfm.eval.tasks.table import Table
from tests.eval.tasks.conftest import Make


def ask(told: Make, folder: Path, text: str, number: int = 60, **settings: Any) -> Examples:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    records = [{"patient": f"p{n}"} for n in range(number)]
    return task_examples(told(records), Table.Config(table=path, **settings))


def lines(header: str, *row: str, number: int = 60) -> str:
    """Return a table whose rows go round the given ones."""
    return "\n".join([header, *(f"r{n},{row[n % len(row)]}" for n in range(number))]) + "\n"


def test_labels_are_said_in_several_words_or_not_at_all(tmp_path: Path, told: Make) -> None:
    text = lines("record,af,lbbb", "1,no", "0,YES", "True,", "false,1.0", ",")
    got = ask(told, tmp_path, "\ufeff" + text, columns=("af", "lbbb"))
    assert got.labels == ("af", "lbbb") and got.kind == "multilabel"
    np.testing.assert_array_equal(got.target_NC[:4], [[1, 0], [0, 1], [1, np.nan], [0, 1]])
    assert got.left_out == {"unknown in the table": 12}


def test_an_ejection_fraction_becomes_a_label(tmp_path: Path, told: Make) -> None:
    got = ask(told, tmp_path, lines("record,lvef", "35", "40", "40.5", "nan", "60"), columns=("lvef",), at_most=40.0)
    assert got.labels == ("lvef<=40",) and got.target_NC[:4, 0].tolist() == [1, 1, 0, 0]
    assert got.left_out == {"unknown in the table": 12}


def test_words_become_classes(tmp_path: Path, told: Make) -> None:
    got = ask(told, tmp_path, lines("record,rhythm", "SR", "AF", "SB", ""), columns=("rhythm",), targets="multiclass")
    assert got.labels == ("AF", "SB", "SR") and got.kind == "multiclass"
    np.testing.assert_array_equal(got.target_NC[:3], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert got.left_out == {"unknown in the table": 15}


def test_numbers_stay_numbers(tmp_path: Path, told: Make) -> None:
    got = ask(told, tmp_path, lines("record,k,na", "3.9,140", "4.5,"), columns=("k", "na"), targets="regression")
    np.testing.assert_array_equal(got.target_NC[:2], [[3.9, 140], [4.5, np.nan]])
    assert got.kind == "regression"


def test_parts_and_patients_may_stand_in_the_table(tmp_path: Path, told: Make) -> None:
    text = lines("record,x,part,who", "1,train,a", "0,Training,a", "1,val,b", "0,test,c")
    got = ask(told, tmp_path, text, columns=("x",), split_column="part", patient_column="who")
    assert got.split_N[:4].tolist() == ["train", "train", "validation", "test"]
    assert set(got.patients) == {f"wfdb-folder patient {name}" for name in "abc"}
    with pytest.raises(ConfigError, match="patient a is in train and in test"):
        ask(told, tmp_path, text.replace("r3,0,test,c", "r3,0,test,a"), columns=("x",), split_column="part",
            patient_column="who")  # fmt: skip


def test_segments_share_their_records_label_and_strange_rows_are_counted(tmp_path: Path, told: Make) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(lines("id,x", "1", "0", number=45), encoding="utf-8")
    records = [{"record": f"r{n // 2}", "patient": f"p{n // 2}"} for n in range(100)]
    got = task_examples(told(records), Table.Config(table=path, columns=("x",), record_column="id"))
    assert got.target_NC[:6, 0].tolist() == [1, 1, 0, 0, 1, 1]
    assert got.left_out == {"not in the table": 10} and len(got.index_N) == 90
    few = task_examples(told(records[:60]), Table.Config(table=path, columns=("x",), record_column="id"))
    assert few.left_out == {"of the table, not in the shards": 15}


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("record,y\nr0,1\n", {}, "has no column x; it has record, y"),
        ("name,x\nr0,1\n", {}, "has no column record"),
        ("record,x\nr0,1\nr0,1\n", {}, "line 3: record r0 stands in it twice"),
        ("record,x\nr0,maybe\n", {}, "record r0 has x 'maybe', not 1, 0, yes, no"),
        ("record,x\nr0,high\n", {"at_most": 3.0}, "record r0 has x 'high', not a number"),
        ("record,x\nr0,inf\n", {"targets": "regression"}, "'inf', not a number"),
        ("record,x\nr0,a\nr1,a\n", {"targets": "multiclass"}, "column x has 1 class"),
        ("record,x\n17,1\n", {}, "names 17, the shards r0, r1, r2; is --task.record-column record"),
        ("record,x,part\nr0,1,dev\n", {"split_column": "part"}, "part 'dev', expected train, validation or test"),
        ("record,x\nr0,1\n", {"database": "ptb"}, "--task.database ptb: the shards hold wfdb-folder"),
        ("record,x\nr0,\n", {}, "no record can answer .*1 unknown in the table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    text: str, settings: dict[str, Any], message: str, tmp_path: Path, told: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        ask(told, tmp_path, text, columns=("x",), **settings)


def test_a_table_that_is_not_there_and_settings_that_cannot_be(tmp_path: Path, told: Make) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        task_examples(told([{}]), Table.Config(table=tmp_path / "none.csv"))
    with pytest.raises(ConfigError, match="take one column"):
        Table.Config(columns=("a", "b"), at_most=1.0)
    with pytest.raises(ConfigError, match="each column once"):
        Table.Config(columns=())
    with pytest.raises(ConfigError, match="at-most"):
        Table.Config(at_most=1.0, targets="regression")


def test_a_name_in_two_databases_has_to_be_told_apart(tmp_path: Path, told: Make) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(lines("record,x", "1", "0"), encoding="utf-8")
    records = [{"database": name, "record": f"r{n}"} for name in ("ptb", "georgia") for n in range(60)]
    with pytest.raises(ConfigError, match=r"record r0 is in ptb and in georgia: say which one with --task\.database"):
        task_examples(told(records), Table.Config(table=path, columns=("x",)))
    got = task_examples(told(records), Table.Config(table=path, columns=("x",), database="georgia"))
    assert got.index_N.min() == 60 and got.left_out == {"not in the table": 60}
