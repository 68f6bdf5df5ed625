"""Published lists: both forms are read, and a list that is not to be trusted ends the download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecgfm.databases._download_list import Entry, entries, safe_path
from ecgfm.errors import DatabaseError

SHA = "0123456789abcdef" * 4
MD5 = "0123456789abcdef" * 2


def read(folder: Path, content: str | bytes) -> list[Entry]:
    path = folder / "list"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(entries(path, "https://example.org/list"))


def test_lines_are_read_however_the_hash_is_parted_from_the_path(tmp_path: Path) -> None:
    text = f"{SHA} RECORDS\n{SHA.upper()}  a b/c.dat\r\n{MD5} *d\n\n{SHA} ./e/f"
    assert read(tmp_path, text) == [
        Entry("RECORDS", SHA),
        Entry("a b/c.dat", SHA),
        Entry("d", MD5),
        Entry("e/f", SHA),
    ]


def test_the_list_that_ludb_is_published_with_is_read(ecg_data: Path) -> None:
    path = ecg_data / "ludb" / "SHA256SUMS.txt"
    found = list(entries(path, "ludb"))
    expected = [line.split() for line in path.read_text().splitlines()]
    assert [[entry.digest, entry.path] for entry in found] == expected
    assert len(found) == 2805


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "..",
        "a\\..\\b",
        "a\tb",
        "a\x00b",
        "a\x1b[31m",
        "a\u202eb",
        ".download/journal",
        "./.download/lock",
        "a.dat.part",
        "./../a",
        "././a",
    ],
)
def test_a_path_that_could_do_harm_is_refused_with_its_line(path: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is refused"):
        safe_path(path, "list")
    with pytest.raises(DatabaseError, match=r"list line 2.*Nothing of this list is fetched"):
        read(tmp_path, f"{SHA} good\n{SHA} {path}\n".encode())
    with pytest.raises(DatabaseError, match=r"files\[0\]"):
        read(tmp_path, json.dumps({"files": [{"key": path, "size": 1, "checksum": f"md5:{MD5}"}]}))


@pytest.mark.parametrize("path", ["a", "a/b.c", "a b/(c).dat", "..a/b..", "a.part.gz", "x/.download", "\u00e9"])
def test_an_ordinary_path_is_kept(path: str) -> None:
    assert safe_path(path, "list") == path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{SHA} a\n<html>\n", "line 2 is not"),
        (f"{SHA[:-1]} a\n", "line 1 is not"),
        (f"{SHA}\n", "line 1 is not"),
        (b"\xff\xfe\x00", "is not text"),
        (f"{SHA} a\n{SHA} b\n{SHA} ./a\n", "names 'a' twice"),
        ("{", "is not: "),
        ('{"hits": 3}', "without a list 'files'"),
    ],
)
def test_what_is_no_list_is_refused_saying_where(content: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=words):
        read(tmp_path, content)


def test_zenodos_description_of_a_record_is_read(tmp_path: Path) -> None:
    files = [
        {"key": "exams.csv", "size": 12, "checksum": f"md5:{MD5}", "links": {"self": "https://example.org"}},
        {"key": "part.zip", "size": 0, "checksum": f"sha256:{SHA}"},
    ]
    assert read(tmp_path, json.dumps({"id": 1, "files": files})) == [
        Entry("exams.csv", MD5, 12),
        Entry("part.zip", SHA, 0),
    ]


@pytest.mark.parametrize(
    "change",
    [{"key": 3}, {"size": "12"}, {"size": -1}, {"size": True}, {"checksum": None}, {"checksum": f"sha1:{MD5}"}],
)
def test_an_entry_of_zenodo_that_lacks_something_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"files\[0\]"):
        read(tmp_path, json.dumps({"files": [{"key": "a", "size": 1, "checksum": f"md5:{MD5}"} | change]}))
