"""What a person writes beside an archive of their own: the table `records.csv` and the facts `dataset.json`.

Both are read strictly, because nobody else will notice a slip: a column that is not known, a value that cannot be
meant or a record named twice stops the conversion with the line and the value. An empty cell says nothing.

Lists inside a cell (codes, leads, axes) are separated by `;`, since the cells are separated by commas.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ecgfm.databases._fields import sex_of
from ecgfm.databases.base import Database
from ecgfm.errors import DatabaseError
from ecgfm.record import Sex

TABLE = "records.csv"
ABOUT = "dataset.json"
SUBJECT_COLUMNS = ("record", "patient", "age", "sex", "split", "fold")
"""Columns that every archive may have, besides `labels:<scheme>`."""
NO_CODE = "none"
"""The cell of a record that was labelled and has none of the scheme's codes."""
SPLITS = ("all", "train", "val", "test")
FACTS = ("title", "licence", "citation", "address", "version")
NAME = "name"
"""What shards call the archive, so that patient 17 of one hospital is not taken for that of another."""
OLDEST_YEARS = 150.0

_OWN = ("record", "file", "patient")
"""Columns whose cells differ from row to row."""
_LABELS = re.compile(r"labels:[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    line: int
    """Line of the file, from 1, on which the row ends."""
    cells: Mapping[str, str]
    """What is written, without the space around; empty cells are left out."""


class SubjectFields(TypedDict):
    """The fields of a `Record` that a table gives."""

    patient: str | None
    age: float | None
    sex: Sex | None
    fold: int | None
    labels: dict[str, tuple[str, ...]]


def items(text: str) -> tuple[str, ...]:
    """Return the entries of a list in a cell, each once, in their order."""
    return tuple(dict.fromkeys(entry for part in text.split(";") if (entry := part.strip())))


def near(word: str, known: Sequence[str]) -> str:
    """Return the hint that follows a word which is not known; empty when nothing is like it."""
    found = difflib.get_close_matches(word.lower(), known, n=2)
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def whole(text: str) -> int | None:
    """Return a whole number from 0; "3.0" too, as some tools write a column with empty cells. None for other text."""
    return int(text.split(".")[0]) if re.fullmatch(r"[0-9]{1,15}(\.0*)?", text) else None


def read_table(path: Path, *, columns: Sequence[str], required: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table in UTF-8 with commas, and check what `subject` will read of them.

    Args:
        path: The table.
        columns: Names that it may have; `labels:<scheme>` always.
        required: Names of which every row needs a value.

    Raises:
        DatabaseError: The table cannot be read, a column is not known, doubled or missing, or a value cannot be meant.
    """
    try:
        # Spreadsheets put a byte order mark before the first name, which utf-8-sig takes off.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = _columns(path, next(reader, []), columns, required)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(names):
                    raise DatabaseError(
                        f"{path} line {reader.line_num} has {len(cells)} cells, the first line has {len(names)}; put a "
                        "cell that holds a comma between double quotes"
                    )
                row = Row(line=reader.line_num, cells=_filled(names, cells))
                _check_row(path, row, names, required)
                yield row
    except UnicodeDecodeError as error:
        raise DatabaseError(f"{path} is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DatabaseError(f"{path} cannot be read: {error}") from error


def subject(cells: Mapping[str, str]) -> SubjectFields:
    """Return patient, age, sex, fold and labels of a row; None, or no scheme, where the cell is empty.

    Raises:
        DatabaseError: A value cannot be meant. The message gives the column and the value.
    """
    return SubjectFields(
        patient=cells.get("patient"),
        age=_age(cells["age"]) if "age" in cells else None,
        sex=_sex(cells["sex"]) if "sex" in cells else None,
        fold=_fold(cells["fold"]) if "fold" in cells else None,
        labels={name.partition(":")[2]: _codes(name, cells[name]) for name in cells if name.startswith("labels:")},
    )


def read_about(root: Path, constants: Sequence[str] = ()) -> dict[str, Any]:
    """Return what `dataset.json` in `root` says; empty when there is none.

    Args:
        root: Folder of the archive.
        constants: Keys that it may have besides the facts.

    Raises:
        DatabaseError: It cannot be read, has a key that is not known, or a fact that is not one line of text.
    """
    path = root / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatabaseError(f"{path} is not JSON: {error}") from error
    if not isinstance(about, dict):
        raise DatabaseError(f'{path} must hold one object, as in {{"title": "Our archive", "version": "1"}}')
    known = (NAME, *FACTS, *constants)
    for name, value in about.items():
        if name not in known:
            raise DatabaseError(f"{path}: {name!r} is not known{near(name, known)}; there are {', '.join(known)}")
        if name in FACTS and not (isinstance(value, str) and value.strip() and value.isprintable()):
            raise DatabaseError(f"{path}: {name} is {value!r}, expected one line of text between double quotes")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(about.get(NAME, "own"))):
        raise DatabaseError(
            f"{path}: name is {about[NAME]!r}; it becomes part of file names: write small letters, digits and -"
        )
    licence = about.get("licence", "none")
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
        raise DatabaseError(
            f"{path}: licence {licence!r} is not an SPDX identifier; write for example CC-BY-4.0, or LicenseRef- and a "
            "name of your own (https://spdx.org/licenses)"
        )
    return about


def take_facts_(database: Database, about: Mapping[str, Any]) -> None:
    """Give this one reader the facts of the archive that it reads, in place of its class's."""
    for name in FACTS:
        if name in about:
            setattr(database, name, about[name])
    database.called = about.get(NAME, database.called)


def _columns(path: Path, first: Sequence[str], columns: Sequence[str], required: Sequence[str]) -> list[str]:
    """Return the names of the columns."""
    names = [name.strip() for name in first]
    if len(names) <= 1 and any(mark in "".join(names) for mark in ";\t"):
        raise DatabaseError(f"{path} is separated by semicolons or tabs; save it with commas")
    for name in names:
        if name not in columns and not _LABELS.fullmatch(name):
            raise DatabaseError(
                f"{path} line 1: there is no column {name!r}{near(name, columns)}; delete or rename it. There "
                f"are {', '.join(columns)}, and labels:<scheme> with a scheme of small letters, digits and -"
            )
        if names.count(name) > 1:
            raise DatabaseError(f"{path} line 1: the column {name!r} is there twice; delete one")
    missing = [name for name in required if name not in names]
    if missing:
        raise DatabaseError(f"{path} line 1: the column {missing[0]!r} is missing; every record needs it")
    return names


def _filled(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Return the cells that are not empty, by column."""
    stripped = ((name, cell.strip()) for name, cell in zip(names, cells, strict=True))
    # All rows are in memory at once: one "train" for a million of them.
    return {name: cell if name in _OWN else sys.intern(cell) for name, cell in stripped if cell}


def _check_row(path: Path, row: Row, names: Sequence[str], required: Sequence[str]) -> None:
    """Refuse a row that lacks a value or holds one that cannot be meant."""
    # An empty split would be read as `all`, that is, as open to pretraining: that is not for us to decide.
    needed = (*required, "split") if "split" in names else required
    empty = next((name for name in needed if name not in row.cells), None)
    split = row.cells.get("split", "all")
    try:
        if empty:
            raise DatabaseError(f"{empty} is empty; every record needs it")
        if split not in SPLITS:
            raise DatabaseError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        subject(row.cells)
    except DatabaseError as error:
        raise DatabaseError(f"{path} line {row.line}: {error}") from error


def _age(text: str) -> float:
    try:
        age = float(text)
    except ValueError:
        age = -1.0
    if not 0 <= age <= OLDEST_YEARS:
        raise DatabaseError(
            f"age {text!r} is not 0 to {OLDEST_YEARS:g} years; leave the cell empty where it is not known"
        )
    return age


def _sex(text: str) -> Sex:
    sex = sex_of(text)
    if sex is None:
        raise DatabaseError(
            f"sex {text!r} is not female, male, F or M (numbers are not guessed); leave the cell empty where it is not "
            "known"
        )
    return sex


def _fold(text: str) -> int:
    fold = whole(text)
    if fold is None:
        raise DatabaseError(f"fold {text!r} is not a whole number")
    return fold


def _codes(column: str, text: str) -> tuple[str, ...]:
    codes = items(text)
    if codes == (NO_CODE,):
        return ()
    if NO_CODE in codes:
        raise DatabaseError(f"{column} {text!r} says {NO_CODE!r} beside other codes; write either")
    damaged = next((code for code in codes if re.fullmatch(r"[0-9]+\.0*|[0-9.]+[eE]\+?[0-9]+", code)), None)
    if damaged:
        raise DatabaseError(
            f"{column} {damaged!r} is a code that a tool has turned into a decimal number; write the column as text"
        )
    return codes
