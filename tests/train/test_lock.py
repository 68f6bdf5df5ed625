"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ecgfm.errors import CheckpointError
from ecgfm.train.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from ecgfm.train.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
assert lock.take() is None
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Return a process that holds the folder until it reads a line or dies."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    error = RunLock(tmp_path).take(wait_s=0.2)
    holder.kill()
    holder.wait()
    assert isinstance(error, CheckpointError)
    assert str(tmp_path) in str(error) and "--out" in str(error)


def test_a_killed_process_leaves_the_folder_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    lock = RunLock(tmp_path)
    assert lock.take(wait_s=30) is None
    holder.wait()
    lock.release()


def test_a_process_that_ends_is_waited_for(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    assert holder.stdin
    holder.stdin.write("\n")
    holder.stdin.flush()
    lock = RunLock(tmp_path)
    assert lock.take(wait_s=30) is None
    holder.wait()
    lock.release()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lock = RunLock(tmp_path / "file" / "run")
    assert isinstance(lock.take(wait_s=0), CheckpointError)
    lock.release()


def test_a_folder_into_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "runs" / "one")
    assert lock.take() is None
    lock.release()
    assert not (tmp_path / "runs" / "one").exists()
    assert lock.take() is None
    (tmp_path / "runs" / "one" / "run.json").write_text("{}")
    lock.release()
    assert (tmp_path / "runs" / "one" / "run.json").is_file()
