"""Watching, drawing and comparing runs, as a user does."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that has logged nine of ten steps a moment ago."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"optim": {"schedule_steps": 10}, "seed": 1}))
    now = time.time()
    lines = [{"step": step, "time": now + step - 9, "loss": 1 / step} for step in range(1, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_watched_until_ctrl_c_and_once(run: Path, command: Command) -> None:
    done = command("tools/watch.py", run, "--once")
    assert done.returncode == 0, done.stderr
    assert "training" in done.stdout and "step 9 of 10" in done.stdout

    ours, theirs = pty.openpty()
    words = [sys.executable, "tools/watch.py", str(run), "--every-s", "0.1"]
    process = subprocess.Popen(words, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    seen = b""
    while b"step 9 of 10" not in seen:
        seen += os.read(ours, 65_536)
    # It draws what has come since.
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "time": time.time(), "loss": 0.1}) + "\n")
    while b"finished" not in seen:
        seen += os.read(ours, 65_536)
    process.send_signal(signal.SIGINT)
    rest = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        rest += part
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in rest
    # It has left the alternate screen, and given the cursor back.
    assert b"\x1b[?1049l" in rest and b"\x1b[?25h" in rest


def test_runs_are_drawn_and_compared(run: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text(json.dumps({"optim": {"schedule_steps": 10}, "seed": 2, "kept": [True]}))
    (other / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    table, picture, alone = tmp_path / "x.md", tmp_path / "x.png", tmp_path / "one.pdf"
    done = command("tools/compare_runs.py", run, other, "--out", table, "--picture", picture)
    assert done.returncode == 0, done.stderr
    assert "settings that differ" in done.stdout and "[true]" in done.stdout
    assert "| seed | 1 | 2 |" in table.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    done = command("tools/plot_run.py", run, "--out", alone)
    assert done.returncode == 0 and alone.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    "words",
    [["tools/watch.py", "FOLDER", "--once"], ["tools/compare_runs.py", "FOLDER", "FOLDER"]],
)
def test_a_folder_that_is_no_run_is_answered_with_a_sentence(
    words: list[str], tmp_path: Path, command: Command
) -> None:
    done = command(*(str(tmp_path) if word == "FOLDER" else word for word in words))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} holds no run: it has no run.json; give the folder that --out of a " + (
        "recipe named\n"
    )
