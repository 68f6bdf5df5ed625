"""tools/download.py as a user runs it, on a server of this machine that serves real recordings."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
TEN = ["--only", "data/1?.hea", "data/1?.dat"]


@pytest.fixture
def ludb(server: Any, ecg_data: Path) -> Any:
    """Serve the Lobachevsky database as it is published, with its own list of hashes."""
    server.root = ecg_data / "ludb"
    return server


def test_real_recordings_come_whole_and_convert(ludb: Any, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "ludb"
    done = command("tools/download.py", "ludb", out, "--address", ludb.address, *TEN)
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "Lobachevsky" in first and "ODC-By-1.0" in first and ludb.address in first
    assert "20 files" in done.stdout and "Kalyakulina" in done.stdout
    assert "python tools/convert.py ludb" in done.stdout
    names = sorted(path.name for path in (out / "data").iterdir())
    assert names == sorted(f"{number}.{ending}" for number in range(10, 20) for ending in ("hea", "dat"))
    for name in names:
        assert (out / "data" / name).read_bytes() == (ludb.root / "data" / name).read_bytes()
    converted = command("tools/convert.py", "ludb", out, tmp_path / "shards", "--workers", "1")
    assert converted.returncode == 0, converted.stderr
    assert "10 of 200 published" in converted.stdout
    again = command("tools/download.py", "ludb", out, "--address", ludb.address, *TEN)
    assert again.returncode == 0 and len(ludb.asked("data/10.dat")) == 1


def test_a_killed_download_goes_on_where_it_was(ludb: Any, tmp_path: Path, command: Command) -> None:
    words = ["tools/download.py", "ludb", str(tmp_path), "--address", ludb.address, *TEN, "--workers", "2"]
    ludb.chunk_wait_s = 0.02
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)

    def began() -> bool:
        parts = (tmp_path / "data").glob("*.dat.part")
        return bool(list((tmp_path / "data").glob("*.dat"))) and any(part.stat().st_size > 20_000 for part in parts)

    while process.poll() is None and not began():
        time.sleep(0.005)
    assert process.poll() is None, "it was done before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = {path.name for path in (tmp_path / "data").glob("*.dat")}
    asked, ludb.chunk_wait_s = len(ludb.requests), 0.0
    done = command(*words)
    assert done.returncode == 0, done.stderr
    later = ludb.requests[asked:]
    assert any(headers.get("range", "").startswith("bytes=") for _, headers in later)
    assert whole and not whole & {path.removeprefix("data/") for path, _ in later}
    for number in range(10, 20):
        for ending in ("hea", "dat"):
            name = f"data/{number}.{ending}"
            assert (tmp_path / name).read_bytes() == (ludb.root / name).read_bytes()
    assert not list((tmp_path / "data").glob("*.part"))


def test_a_wrong_file_is_named_and_the_command_fails(ludb: Any, tmp_path: Path, command: Command) -> None:
    ludb.contents["data/13.dat"] = 2 * [b"wrong"]
    words = ["tools/download.py", "ludb", tmp_path, "--address", ludb.address, *TEN]
    done = command(*words)
    assert done.returncode == 1
    assert "1 of 20 files could not be had" in done.stderr and "data/13.dat: wrong hash" in done.stderr
    assert hashlib.sha256(b"wrong").hexdigest() in done.stderr
    assert "Traceback" not in done.stderr and "tools/convert.py" not in done.stdout
    assert (tmp_path / ".download" / "failed.txt").read_text().startswith("data/13.dat\t")
    assert command(*words).returncode == 0
    assert (tmp_path / "data" / "13.dat").read_bytes() == (ludb.root / "data" / "13.dat").read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["synthetic", "OUT"], "cannot be fetched by this command"),
        (["cpsc-2018-original", "OUT"], "python tools/convert.py cpsc-2018-original FOLDER SHARDS"),
        (["ptbxl", "OUT"], "did you mean ptb-xl"),
        (["ludb", "OUT", "--workers", "0"], "--workers must be 1 to 32"),
        (["ludb", "OUT", "--attempts", "0"], "--attempts must be at least 1"),
        (["ludb", "OUT", "--silence-s", "0"], "--silence-s must be more than 0"),
        (["ludb", "OUT", "--address", "ftp://example.org"], "--address must be a folder"),
        (["ludb", "OUT", "--address", "http://127.0.0.1:9", "--attempts", "1"], "is there a network"),
        (["ludb", "FILE"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_answered_with_what_to_do(
    words: list[str], expected: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "file").write_text("not a folder")
    places = {"OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    done = command("tools/download.py", *(places.get(word, word) for word in words))
    assert done.returncode in (1, 2)
    assert expected.lower() in done.stderr.lower(), done.stderr
    assert "Traceback" not in done.stderr
