"""Published lists of files and their hashes, read as if an enemy had written them.

Two forms are read. PhysioNet's SHA256SUMS.txt has a line `<hash> <path>` for every file, with one space, where
`sha256sum` writes two, or a space and a star. Zenodo describes a record in JSON (`files[].key`, `size`, `checksum`
as `md5:...`; not checked against its server). A path that could leave the folder it is written to, or take the
place of the download's own files, ends the whole download: such a list is not the database's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ecgfm.errors import DatabaseError

STATE = ".download"
"""Folder of the download's own files, below the folder that it fills."""
PART = ".part"
"""Ending of a file that is not whole yet."""

_NO_NAMES = frozenset(("", ".", ".."))
_LINE = re.compile(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{32}) [ *]?(\S.*)")
_CHECKSUM = re.compile(r"(?:md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64})")


class Entry(NamedTuple):
    """One file of a list."""

    path: str
    """Where it is, relative to the address and to the folder it is written to."""
    digest: str
    """Its hash in lower-case hexadecimal digits; empty where none is published."""
    bytes: int | None = None
    """Its size, where the list gives it."""


def safe_path(text: str, where: str) -> str:
    """Return a path that stays below the folder it is joined to, without a leading `./`.

    Args:
        text: As published.
        where: For the message: the list and line, or the archive.

    Raises:
        DatabaseError: It is absolute or empty, climbs out, holds a backslash or a character that does not print, or
            could be taken for a file of the download itself.
    """
    path = text.removeprefix("./")
    parts = path.split("/")
    if not path.isprintable() or "\\" in path:
        fault = "it holds a backslash or a character that does not print"
    elif not _NO_NAMES.isdisjoint(parts):
        fault = "it is absolute, empty, or climbs out of the folder"
    elif parts[0] == STATE or (PART in path and any(part.endswith(PART) for part in parts)):
        fault = f"{STATE} and names in {PART} are the download's own"
    else:
        return path
    raise DatabaseError(f"{where}: the path {text!r} is refused: {fault}. Nothing of this list is fetched")


def entries(path: Path, name: str) -> Iterator[Entry]:
    """Yield the files of a list in either form, in its order, line by line.

    Args:
        path: The list on this disk.
        name: How to call it in messages: its address.

    Raises:
        DatabaseError: It is no such list, or names a path that is unsafe or doubled.
    """
    # Hashes of the paths, not the paths: 1.6 million of those would be 200 MB.
    seen: set[int] = set()
    for number, entry in enumerate(_json_entries(path, name) if _is_json(path) else _line_entries(path, name), 1):
        key = hash(entry.path)
        if key in seen:
            raise DatabaseError(f"{name} names {entry.path!r} twice (entry {number}); it cannot be trusted")
        seen.add(key)
        yield entry


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"{")


def _line_entries(path: Path, name: str) -> Iterator[Entry]:
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\r\n")
                if not text:
                    continue
                match = _LINE.fullmatch(text)
                if match is None:
                    raise DatabaseError(
                        f"{name} line {number} is not '<SHA-256 or MD5> <path>' but {text[:80]!r}; "
                        "is the address that of the database's folder?"
                    )
                yield Entry(safe_path(match[2], f"{name} line {number}"), match[1].lower())
    except UnicodeDecodeError as error:
        raise DatabaseError(f"{name} is not text after line {number}: {error}") from error


def _json_entries(path: Path, name: str) -> Iterator[Entry]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatabaseError(f"{name} begins like JSON and is not: {error}") from error
    files = data.get("files")
    if not isinstance(files, list):
        raise DatabaseError(f"{name} is JSON without a list 'files'; it is not Zenodo's description of a record")
    for index, file in enumerate(files):
        key, size, checksum = (
            (file.get("key"), file.get("size"), file.get("checksum")) if isinstance(file, dict) else (None, None, None)
        )
        # bool is an int for Python
        if not (isinstance(key, str) and type(size) is int and size >= 0 and isinstance(checksum, str)):
            raise DatabaseError(f"{name}: files[{index}] lacks a key, a size or a checksum: {str(file)[:80]}")
        if not _CHECKSUM.fullmatch(checksum):
            raise DatabaseError(f"{name}: files[{index}] has the checksum {checksum[:80]!r}, neither MD5 nor SHA-256")
        yield Entry(safe_path(key, f"{name}: files[{index}]"), checksum.partition(":")[2].lower(), size)
