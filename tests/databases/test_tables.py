"""Tables in CSV: any text in any field, and each row again by where it begins."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.databases._tables import row_at, rows
from ecgfm.errors import DatabaseError

FIELD = st.text(st.sampled_from("ab1 ,;\"'\n\u00b5\U0001f493"), max_size=6)


@given(
    content=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=8),
    newline=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_rows_come_back_as_written_and_each_again_by_its_byte(
    content: list[tuple[str, str, str]], newline: str, quoting: int
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("one", "two", "three"), *content])
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        table.write_bytes(text.getvalue().encode())
        found = list(rows(table, ("three", "one"), "nobody"))
        assert [row.values for row in found] == [(three, one) for one, _, three in content]
        for row, entries in reversed(list(zip(found, content, strict=True))):
            assert row_at(table, row.byte) == dict(zip(("one", "two", "three"), entries, strict=True))


def test_lines_are_those_of_an_editor(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text('a,b\n1,2\n"x\ny",3\n\n4,5')
    assert [(row.line, row.values) for row in rows(table, ("a", "b"), "nobody")] == [
        (2, ("1", "2")), (4, ("x\ny", "3")), (6, ("4", "5")),
    ]  # fmt: skip


def test_a_short_row_is_empty_at_its_end(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b,c\n1\n2,3,4,5\n")
    assert [row.values for row in rows(table, ("c", "a"), "nobody")] == [("", "1"), ("4", "2")]


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    with pytest.raises(DatabaseError, match=r"table\.csv does not exist; give the folder of Somebody"):
        list(rows(table, ("a", "b"), "Somebody"))
    table.write_text("a,c\n")
    with pytest.raises(DatabaseError, match=r"no column b, d: it is not the table of Somebody"):
        list(rows(table, ("a", "b", "d"), "Somebody"))


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n3,4\n", encoding="utf-8-sig")
    found = list(rows(table, ("a", "b"), "nobody"))
    assert [row.values for row in found] == [("1", "2"), ("3", "4")]
    assert [row_at(table, row.byte) for row in found] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\nM\u00fcller,1\n".encode("latin-1"), "is not UTF-8 text .*save it as CSV in UTF-8"),
        (b"a;b\n1;2\n", "semicolons or tabs for commas"),
        (b"a\tb\n1\t2\n", "semicolons or tabs for commas"),
        (b"", "no column a, b"),
    ],
)
def test_a_table_that_a_spreadsheet_has_changed_is_named_with_the_fix(
    tmp_path: Path, content: bytes, words: str
) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with pytest.raises(DatabaseError, match=words):
        list(rows(table, ("a", "b"), "Somebody"))
