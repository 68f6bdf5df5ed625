"""The download against a server of this machine that has the faults of real ones."""

from __future__ import annotations

import email.utils
import fcntl
import filecmp
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from ecgfm.databases import _download, _download_disk
from ecgfm.databases._download import Choice, Tally, fetch_database
from ecgfm.databases._download_http import FetchError, Patience, redirect_target
from ecgfm.databases.base import Download
from ecgfm.errors import ConfigError, DatabaseError

# A server on this machine answers at once: waits of milliseconds, and three tries.
PATIENCE = Patience(attempts=3, first_wait_s=0.002, longest_wait_s=0.01, silence_s=5)
BIG = "records500/00000/00001_hr.dat"


@pytest.fixture
def tree(server: Any) -> Any:
    """Serve a small tree in the layout of PTB-XL, with a name that an address must quote and an empty file."""
    content = random.Random(0)
    sizes = {BIG: 120_000, "RECORDS": 90, "ptbxl_database.csv": 5000, "notes/a #1 50%.txt": 10, "empty": 0}
    sizes |= {f"records500/00000/{number:05d}_hr.hea": 300 + number for number in range(1, 21)}
    for name, size in sizes.items():
        path = server.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.randbytes(size))
    server.write_sums()
    return server


def fetch(server: Any, out: Path, *, download: dict[str, Any] | None = None, **choice: Any) -> Tally:
    settings: dict[str, Any] = {"patience": PATIENCE, **choice}
    return fetch_database(Download(address=server.address, **(download or {})), out, Choice(**settings))


def assert_same(published: Path, out: Path) -> None:
    """Compare the trees byte by byte; of the download's own there is `.download` only."""
    names = sorted(str(path.relative_to(published)) for path in published.rglob("*") if path.is_file())
    own = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert [name for name in own if not name.startswith(".download/")] == names
    assert filecmp.cmpfiles(published, out, names, shallow=False)[0] == names


def test_the_tree_comes_as_published_over_few_connections(tree: Any, tmp_path: Path) -> None:
    tally = fetch(tree, tmp_path / "out", workers=3)
    assert_same(tree.root, tmp_path / "out")
    assert (tally.files, tally.fetched, tally.there, tally.failed) == (25, 25, 0, 0)
    assert tally.received == sum(
        path.stat().st_size for path in tree.root.rglob("*") if path.is_file() and path.name != "SHA256SUMS.txt"
    )
    assert tree.connections <= 4  # one for the list, one each worker
    assert not (tmp_path / "out" / ".download" / "failed.txt").exists()


def test_a_second_call_fetches_nothing_and_reads_no_file(
    tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(tree, tmp_path / "out")
    asked = len(tree.requests)
    monkeypatch.setattr(_download, "hash_of", None)
    tally = fetch(tree, tmp_path / "out")
    assert (tally.there, tally.fetched, tally.received) == (25, 0, 0)
    assert [path for path, _ in tree.requests[asked:]] == ["SHA256SUMS.txt"]
    assert "if-modified-since" in tree.requests[-1][1]  # and the list itself is not sent again


def test_what_is_missing_or_changed_is_fetched_again_and_nothing_else(tree: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(tree, out)
    (out / "RECORDS").unlink()
    (out / "ptbxl_database.csv").write_bytes(b"other")
    asked = len(tree.requests)
    tally = fetch(tree, out)
    assert (tally.there, tally.fetched) == (23, 2)
    assert {path for path, _ in tree.requests[asked + 1 :]} == {"RECORDS", "ptbxl_database.csv"}
    assert_same(tree.root, out)


def test_verify_finds_what_size_and_time_hide(tree: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(tree, out)
    path = out / BIG
    times = path.stat()
    changed = bytearray(path.read_bytes())
    changed[777] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fetch(tree, out).fetched == 0
    tally = fetch(tree, out, verify=True)
    assert (tally.there, tally.fetched) == (24, 1)
    assert_same(tree.root, out)


def test_files_that_something_else_fetched_are_hashed_and_taken(tree: Any, tmp_path: Path) -> None:
    for name in (BIG, "RECORDS"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes((tree.root / name).read_bytes())
    (tmp_path / "out" / "RECORDS").write_bytes(b"cut")
    tally = fetch(tree, tmp_path / "out")
    assert (tally.there, tally.fetched) == (1, 24)
    assert tree.asked(BIG) == []
    assert_same(tree.root, tmp_path / "out")


def test_a_new_version_of_the_list_is_followed(tree: Any, tmp_path: Path) -> None:
    fetch(tree, tmp_path / "out")
    (tree.root / "RECORDS").write_bytes(b"new records")
    tree.write_sums()
    later = time.time() + 10
    os.utime(tree.root / "SHA256SUMS.txt", (later, later))
    assert fetch(tree, tmp_path / "out").fetched == 1
    assert_same(tree.root, tmp_path / "out")


def test_broken_connections_are_taken_up_where_they_broke(tree: Any, tmp_path: Path) -> None:
    # More breaks than tries: each brings something new.
    tree.cut_after[BIG] = [30_000, 30_000, 30_000, 10_000, 0]
    assert fetch(tree, tmp_path / "out").failed == 0
    assert_same(tree.root, tmp_path / "out")
    ranges = [int(headers.get("range", "bytes=0-")[6:-1]) for headers in tree.asked(BIG)]
    assert ranges == sorted(ranges) and len(ranges) == 6 and ranges[1] > 20_000
    assert ranges[-1] == ranges[-2] >= 90_000


def test_a_server_that_only_breaks_is_given_up_and_the_part_kept(tree: Any, tmp_path: Path) -> None:
    tree.cut_after[BIG] = [50_000] + 20 * [0]
    tally = fetch(tree, tmp_path / "out")
    assert (tally.failed, tally.fetched) == (1, 24)
    assert "given up after 3 tries" in tally.examples[0] and BIG in tally.examples[0]
    assert (tmp_path / "out" / ".download" / "failed.txt").read_text().startswith(f"{BIG}\t")
    assert not (tmp_path / "out" / BIG).exists()
    assert 0 < (tmp_path / "out" / f"{BIG}.part").stat().st_size <= 50_000
    tree.cut_after.clear()
    assert fetch(tree, tmp_path / "out").fetched == 1
    assert_same(tree.root, tmp_path / "out")
    assert not (tmp_path / "out" / ".download" / "failed.txt").exists()


@pytest.mark.parametrize("fault", ["ignores_ranges", "wrong_range"])
def test_a_server_that_answers_a_range_otherwise_starts_over(fault: str, tree: Any, tmp_path: Path) -> None:
    setattr(tree, fault, True)
    tree.cut_after[BIG] = [50_000]
    tally = fetch(tree, tmp_path / "out")
    assert tally.failed == 0
    assert "range" in tree.asked(BIG)[1]
    assert_same(tree.root, tmp_path / "out")


def test_a_range_that_starts_elsewhere_is_not_taken_for_the_rest(tree: Any, tmp_path: Path) -> None:
    # Were it taken, the hash would be wrong both times.
    tree.wrong_range = True
    tree.cut_after[BIG] = [50_000, 1_000_000, 50_000, 1_000_000]
    assert fetch(tree, tmp_path / "out", patience=Patience(attempts=9, first_wait_s=0.002)).failed == 0
    assert_same(tree.root, tmp_path / "out")


@pytest.mark.parametrize("extra", [b"", b"too long", None])
def test_a_part_as_long_as_the_file_or_longer_or_of_another_file_comes_right(
    extra: bytes | None, tree: Any, tmp_path: Path
) -> None:
    part = tmp_path / "out" / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    whole = (tree.root / BIG).read_bytes()
    part.write_bytes(bytes(40_000) if extra is None else whole + extra)
    assert fetch(tree, tmp_path / "out").failed == 0
    assert_same(tree.root, tmp_path / "out")
    # The whole one is kept, the longer one starts over, the foreign one is found out by its hash.
    assert len(tree.asked(BIG)) == (1 if extra == b"" else 2)


def test_a_wrong_hash_is_fetched_once_more(tree: Any, tmp_path: Path) -> None:
    tree.contents["RECORDS"] = [b"not the records"]
    assert fetch(tree, tmp_path / "out").failed == 0
    assert len(tree.asked("RECORDS")) == 2
    assert_same(tree.root, tmp_path / "out")


def test_a_hash_that_stays_wrong_is_reported_and_nothing_of_it_kept(tree: Any, tmp_path: Path) -> None:
    tree.contents["RECORDS"] = 5 * [b"not the records"]
    tally = fetch(tree, tmp_path / "out")
    assert (tally.failed, tally.fetched) == (1, 24)
    assert tally.examples[0].startswith("RECORDS: wrong hash, twice")
    assert len(tree.asked("RECORDS")) == 2
    assert not list((tmp_path / "out").glob("RECORDS*"))


def test_a_file_that_is_there_stays_until_its_better_is(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "RECORDS").write_bytes(b"mine")
    tree.contents["RECORDS"] = 5 * [b"not the records"]
    assert fetch(tree, tmp_path / "out").failed == 1
    assert (tmp_path / "out" / "RECORDS").read_bytes() == b"mine"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int, tree: Any, tmp_path: Path) -> None:
    tree.answers["RECORDS"] = [(status, {}), (status, {})]
    assert fetch(tree, tmp_path / "out").failed == 0
    assert len(tree.asked("RECORDS")) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_all_connections(form: str, tree: Any, tmp_path: Path) -> None:
    # A date has whole seconds, so that two are at least one; reckoned when it is sent.
    after = "1" if form == "seconds" else lambda: email.utils.formatdate(time.time() + 2, usegmt=True)
    tree.answers["RECORDS"] = [(429, {"Retry-After": after})]
    assert fetch(tree, tmp_path / "out", workers=2).failed == 0
    assert len(tree.asked("RECORDS")) == 2
    after_it = tree.times[[path for path, _ in tree.requests].index("RECORDS") :]
    assert len(after_it) > 3  # the other connection had more to fetch, and waited too
    assert max(later - earlier for earlier, later in itertools.pairwise(after_it)) > 0.8
    assert sum(later - after_it[0] < 0.8 for later in after_it[1:]) <= 1


def test_a_server_that_asks_for_too_long_a_wait_is_given_up(tree: Any, tmp_path: Path) -> None:
    tree.answers["RECORDS"] = [(503, {"Retry-After": "86400"})]
    tally = fetch(tree, tmp_path / "out")
    assert tally.failed == 1 and "86,400 s" in tally.examples[0]


def test_a_file_that_is_not_there_is_not_asked_for_twice(tree: Any, tmp_path: Path) -> None:
    (tree.root / "RECORDS").unlink()
    tally = fetch(tree, tmp_path / "out")
    assert tally.examples == ["RECORDS: HTTP 404 Not Found"]
    assert len(tree.asked("RECORDS")) == 1


def test_failures_in_a_row_end_the_download(tree: Any, tmp_path: Path) -> None:
    for path in (tree.root / "records500" / "00000").glob("*.hea"):
        path.unlink()
    patience = Patience(attempts=3, first_wait_s=0.002, failures_in_a_row=5)
    with pytest.raises(DatabaseError, match=r"5 files in a row .*HTTP 404.*run the same command again"):
        fetch(tree, tmp_path / "out", workers=1, patience=patience)
    assert len([path for path, _ in tree.requests if path.endswith(".hea")]) <= 7
    assert len((tmp_path / "out" / ".download" / "failed.txt").read_text().splitlines()) >= 5


def test_a_silent_server_counts_as_broken(tree: Any, tmp_path: Path) -> None:
    tree.chunk_wait_s = 0.6
    patience = Patience(attempts=2, first_wait_s=0.002, silence_s=0.1)
    with pytest.raises(DatabaseError, match=r"list of files .* cannot be had: .*given up after 2 tries"):
        fetch(tree, tmp_path / "out", patience=patience)


def test_no_server_is_said_with_the_address(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DatabaseError, match=r"http://127\.0\.0\.1:9/SHA256SUMS\.txt cannot be had: .*refused"):
        fetch(tree, tmp_path / "out", address="http://127.0.0.1:9")


def test_redirects_are_followed_to_https_only(tree: Any, tmp_path: Path) -> None:
    tree.answers["RECORDS"] = [(302, {"Location": f"{tree.address}ptbxl_database.csv"})]
    tally = fetch(tree, tmp_path / "out")
    assert tally.failed == 1 and "is not https" in tally.examples[0]
    assert redirect_target("https://a.org/x/y", "z?w=1") == "https://a.org/x/z?w=1"
    assert redirect_target("http://a.org/x", "https://b.org/y") == "https://b.org/y"
    for location in ("http://a.org/x", "ftp://a.org/x", "file:///etc/passwd"):
        with pytest.raises(FetchError, match="is not https"):
            redirect_target("https://a.org/x", location)


def test_nothing_of_the_user_is_sent(tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    tree.answers["RECORDS"] = [(503, {"Set-Cookie": "id=1"})]
    fetch(tree, tmp_path / "out", workers=1)
    for _, headers in tree.requests:
        assert headers.keys() & {"authorization", "cookie", "proxy-authorization"} == set()


def test_an_evil_list_fetches_nothing(tree: Any, tmp_path: Path) -> None:
    with (tree.root / "SHA256SUMS.txt").open("a") as file:
        file.write(f"{'0' * 64} ../evil\n")
    with pytest.raises(DatabaseError, match="climbs out"):
        fetch(tree, tmp_path / "out")
    assert {path for path, _ in tree.requests} == {"SHA256SUMS.txt"}


def test_a_list_that_was_none_is_not_kept_for_the_true_one(tree: Any, tmp_path: Path) -> None:
    # As from the page that asks to log in to a network: newer than the list of the database.
    path = tree.root / "SHA256SUMS.txt"
    true, times = path.read_bytes(), path.stat()
    path.write_bytes(b"<html>log in</html>")
    os.utime(path, (times.st_mtime + 1000, times.st_mtime + 1000))
    with pytest.raises(DatabaseError, match="line 1 is not"):
        fetch(tree, tmp_path / "out")
    assert not (tmp_path / "out" / "SHA256SUMS.txt").exists()
    path.write_bytes(true)
    assert fetch(tree, tmp_path / "out").fetched == 25
    assert "if-modified-since" not in tree.asked("SHA256SUMS.txt")[1]
    assert_same(tree.root, tmp_path / "out")


def test_the_database_says_what_is_needed_and_the_user_may_say_otherwise(tree: Any, tmp_path: Path) -> None:
    needed = {"files": ("RECORDS", "*.hea")}
    assert fetch(tree, tmp_path / "out", download=needed).files == 21
    assert fetch(tree, tmp_path / "out", download=needed, only=("*.csv", "*database*", BIG)).fetched == 2
    with pytest.raises(ConfigError, match=r"--only records100/\* fits no file"):
        fetch(tree, tmp_path / "out", only=("RECORDS", "records100/*"))
    with pytest.raises(DatabaseError, match=r"holds no file that fits \*\.xyz"):
        fetch(tree, tmp_path / "out", download={"files": ("*.xyz",)})


def test_without_a_list_the_named_files_are_fetched_and_never_resumed(tree: Any, tmp_path: Path) -> None:
    part = tmp_path / "out" / "RECORDS.part"
    part.parent.mkdir()
    part.write_bytes(b"of another time")
    named = {"sums": "", "files": ("RECORDS", BIG)}
    tree.cut_after[BIG] = [50_000]
    assert fetch(tree, tmp_path / "out", download=named).fetched == 2
    for name in ("RECORDS", BIG):
        assert (tmp_path / "out" / name).read_bytes() == (tree.root / name).read_bytes()
    assert [headers.get("range") for headers in tree.asked("RECORDS")] == [None]
    assert fetch(tree, tmp_path / "out", download=named).there == 2


def test_one_process_at_a_time_and_one_database(tree: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(tree, out, only=("RECORDS",))
    with (out / ".download" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatabaseError, match="another download fills"):
            fetch(tree, out)
    with pytest.raises(DatabaseError, match=r"holds a download of http://127.*, not of https://example\.org/"):
        fetch_database(Download(address="https://example.org/"), out, Choice(address=tree.address))
    fetch(tree, out)


def test_a_journal_line_that_was_cut_harms_nothing(tree: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch(tree, out)
    journal = out / ".download" / "journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert fetch(tree, out).fetched == 0  # the file of the last line is hashed, and noted again
    assert len(journal.read_bytes().splitlines()) == 26


def test_a_full_disk_ends_it_and_keeps_what_is_whole(
    tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _download_disk.Part.write

    def full(self: Any, chunk: bytes) -> None:
        if self.bytes + len(chunk) > 50_000:
            raise OSError(28, "No space left on device", str(self.path))
        original(self, chunk)

    monkeypatch.setattr(_download_disk.Part, "write", full)
    with pytest.raises(DatabaseError, match=r"No space left on device.*What is whole is kept"):
        fetch(tree, tmp_path / "out", workers=2)
    monkeypatch.undo()
    fetch(tree, tmp_path / "out")
    assert_same(tree.root, tmp_path / "out")


def test_an_interrupt_keeps_what_is_whole(tree: Any, tmp_path: Path) -> None:
    tree.chunk_wait_s = 0.01

    def stop(tally: Tally) -> None:
        if tally.fetched == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_database(Download(address=tree.address), tmp_path / "out", Choice(workers=2), progress=stop)
    tree.chunk_wait_s = 0
    done = len(tree.requests)
    tally = fetch(tree, tmp_path / "out")
    assert tally.there >= 3 and tally.there + tally.fetched == 25
    assert done > 3
    assert_same(tree.root, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": 0}, "--workers must be 1 to 32, got 0"),
        ({"workers": 33}, "--workers must be 1 to 32, got 33"),
        ({"address": "ftp://example.org/"}, "--address must be a folder"),
        ({"address": "physionet.org"}, "--address must be a folder"),
        ({"address": "https://me:secret@example.org/"}, "no name or password"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Choice(**settings)
    assert "secret" not in str(caught.value)
