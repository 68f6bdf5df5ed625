"""Tables that databases publish as CSV: needed columns of every row, and a single row by where it begins.

A row ends where Python's csv module says so, thus a quoted field may hold commas and line breaks. Tables have up to
a million rows: they are read row by row, and no row is kept.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ecgfm.errors import DatabaseError


class Row(NamedTuple):
    """Where a row stands and what its needed columns hold."""

    line: int
    """Line on which it ends, counted from 1, for messages."""
    byte: int
    """Where it begins in the file; see `row_at`."""
    values: tuple[str, ...]
    """In the order that was asked for; empty where the row is too short."""


def rows(table: Path, columns: tuple[str, str, *tuple[str, ...]], owner: str) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        table: The CSV file, in UTF-8.
        columns: Names of the columns that are needed.
        owner: Whose table it is, for the message when it is another.

    Raises:
        DatabaseError: It is missing, cannot be read, or lacks a column.
    """
    try:
        with table.open("rb") as file:
            reader = csv.reader(_lines(file))
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                separated = len(header) == 1 and any(mark in header[0] for mark in ";\t")
                why = "it has semicolons or tabs for commas" if separated else f"it is not the table of {owner}"
                raise DatabaseError(f"{table} has no column {', '.join(missing)}: {why}")
            positions = [header.index(name) for name in columns]
            pick, needed = itemgetter(*positions), max(positions) + 1
            byte = file.tell()
            for row in reader:
                if row:
                    if len(row) < needed:
                        row += [""] * (needed - len(row))
                    yield Row(reader.line_num, byte, pick(row))
                byte = file.tell()
    except FileNotFoundError as error:
        raise DatabaseError(f"{table} does not exist; give the folder of {owner} that holds {table.name}") from error
    except UnicodeDecodeError as error:
        raise DatabaseError(
            f"{table} cannot be read: it is not UTF-8 text ({error}); download it again, or save it as CSV in UTF-8"
        ) from error
    except OSError as error:
        raise DatabaseError(f"{table} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DatabaseError(f"{table} cannot be read: {error}; download it again") from error


def row_at(table: Path, byte: int) -> dict[str, str]:
    """Return by column the row that begins at a byte, as `rows` gave it; empty when there is none.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: The table is not what it was when `rows` read it.
    """
    with table.open("rb") as file:
        reader = csv.reader(_lines(file))
        header = next(reader, [])
        file.seek(byte)
        return dict(zip(header, next(reader, []), strict=False))


def _lines(file: BinaryIO) -> Iterator[str]:
    # The csv module asks for a line only when it needs one, so that the file stands at the end of the row.
    # Spreadsheets put a byte order mark before the first name.
    return (line.removeprefix(codecs.BOM_UTF8 if at == 0 else b"").decode() for at, line in enumerate(file))
