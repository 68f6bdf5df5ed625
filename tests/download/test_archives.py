"""Zip archives, as CODE-15 is published on Zenodo: checked, unpacked, deleted, and never trusted."""

from __future__ import annotations

import os
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecgfm.databases._download import Choice, Tally, fetch_database
from ecgfm.databases._download_http import Patience
from ecgfm.databases.base import Download

RECORD = "4916206"
Change = Callable[[Path], None]


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo("folder/"), b"")
        for name, content in members.items():
            # ZipInfo would make a name with a zero byte shorter, and mend a backslash on other systems.
            info = zipfile.ZipInfo("x" * len(name))
            info.filename = info.orig_filename = name
            file.writestr(info, content)


@pytest.fixture
def parts(server: Any) -> dict[str, bytes]:
    """Serve a table and two archives with Zenodo's description, and return the members."""
    content = random.Random(1)
    members = {"exams_part0.hdf5": content.randbytes(70_000), "exams_part1.hdf5": bytes(50_000)}
    (server.root / "exams.csv").write_text("exam_id,age\n1,50\n")
    for name, body in members.items():
        write_zip(server.root / name.replace("hdf5", "zip"), {name: body})
    server.write_zenodo(RECORD)
    return members


def fetch(server: Any, out: Path, **choice: Any) -> Tally:
    download = Download(
        address=server.address,
        sums=f"{server.address}{RECORD}",
        files=("exams.csv", "exams_part*.zip"),
        archives=("*.zip",),
    )
    patience = Patience(attempts=3, first_wait_s=0.002)
    return fetch_database(download, out, Choice(patience=patience, **choice))


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".download" not in path.parts}


def test_archives_are_unpacked_and_deleted_and_stay_known(server: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    tally = fetch(server, tmp_path)
    published = sum(path.stat().st_size for path in server.root.iterdir() if path.name != RECORD)
    assert (tally.files, tally.fetched, tally.total_bytes, tally.bytes) == (3, 3, published, published)
    assert names(tmp_path / ".") - {f"published/{path.name}" for path in server.root.iterdir()} == {
        "exams.csv",
        *parts,
    }
    for name, body in parts.items():
        assert (tmp_path / name).read_bytes() == body
    tally = fetch(server, tmp_path)
    assert (tally.there, tally.fetched) == (3, 0)
    assert len(server.asked("exams_part0.zip")) == 1


def test_a_member_that_is_gone_or_changed_is_fetched_again(
    server: Any, parts: dict[str, bytes], tmp_path: Path
) -> None:
    fetch(server, tmp_path)
    (tmp_path / "exams_part0.hdf5").unlink()
    path = tmp_path / "exams_part1.hdf5"
    times, body = path.stat(), path.read_bytes()
    for content, verify, fetched in ((body + b"1", False, 2), (b"1" + body[1:], True, 1)):
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fetch(server, tmp_path, verify=verify).fetched == fetched
        times = path.stat()
    for name, body in parts.items():
        assert (tmp_path / name).read_bytes() == body


def test_bytes_are_counted_once_whatever_was_thrown_away(server: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    server.contents["exams.csv"] = [b"wrong"]
    server.cut_after["exams_part0.zip"] = [20_000]
    server.ignores_ranges = True
    (tmp_path / "exams_part1.zip.part").write_bytes((server.root / "exams_part1.zip").read_bytes()[:9])
    tally = fetch(server, tmp_path)
    assert tally.failed == 0 and tally.bytes == tally.total_bytes
    assert tally.received > tally.bytes


def test_members_with_other_times_are_hashed_and_fetched_only_if_changed(
    server: Any, parts: dict[str, bytes], tmp_path: Path
) -> None:
    fetch(server, tmp_path)
    for name in parts:
        os.utime(tmp_path / name)
    tally = fetch(server, tmp_path)
    assert (tally.there, tally.fetched) == (3, 0) and tally.bytes == tally.total_bytes
    (tmp_path / "exams_part1.hdf5").write_bytes(b"1" + parts["exams_part1.hdf5"][1:])  # same size, another time
    assert fetch(server, tmp_path).fetched == 1


def test_an_archive_that_was_fetched_and_not_unpacked_is_unpacked(
    server: Any, parts: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "exams_part0.zip").write_bytes((server.root / "exams_part0.zip").read_bytes())
    (tmp_path / "exams_part0.hdf5.part").write_bytes(b"rest of an unpacking that was killed")
    fetch(server, tmp_path)
    assert server.asked("exams_part0.zip") == []
    assert (tmp_path / "exams_part0.hdf5").read_bytes() == parts["exams_part0.hdf5"]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.zip"))


def test_a_mirror_has_the_description_under_its_last_name(server: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    download = Download(
        address="https://zenodo.org/records/4916206/files/",
        sums="https://zenodo.org/api/records/4916206",
        files=("exams.csv",),
    )
    assert fetch_database(download, tmp_path, Choice(address=server.address)).fetched == 1


@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "a\x00b", "a\nb", ".download/journal", "exams_part0.zip", ""],
)
def test_an_evil_name_is_refused_before_anything_is_unpacked(
    name: str, server: Any, parts: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    write_zip(server.root / "exams_part0.zip", {"good.hdf5": b"good", name: b"evil"})
    server.write_zenodo(RECORD)
    tally = fetch(server, out)
    assert (tally.failed, tally.fetched) == (1, 2)
    assert tally.examples[0].startswith("exams_part0.zip: ")
    assert names(out) == {"exams.csv", "exams_part1.hdf5", "exams_part0.zip"}
    assert not list(tmp_path.rglob("*evil*"))


def _link(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")


def _doubled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a", b"1")
        file.writestr("a", b"2")


def _encrypted(path: Path) -> None:
    write_zip(path, {"a": b"1"})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # bit 0 of the flags in the directory
    path.write_bytes(content)


def _damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"some content")
    path.write_bytes(path.read_bytes().replace(b"some content", b"same content", 1))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_link, "is a link"),
        (_doubled, "names 'a' twice"),
        (_encrypted, "is encrypted"),
        (_damaged, "Bad CRC-32"),
        (_cut, "not a zip file"),
    ],
)
def test_an_archive_that_cannot_be_trusted_is_reported(
    change: Change, words: str, server: Any, parts: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    change(server.root / "exams_part0.zip")
    server.write_zenodo(RECORD)
    tally = fetch(server, out)
    assert tally.failed == 1 and words in tally.examples[0]
    assert {"exams.csv", "exams_part1.hdf5"} <= names(out)
    assert not {"a", "link"} & names(out)
