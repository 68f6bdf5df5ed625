"""A rank that hangs, dies or fails ends the run, which names it, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


def process_of_rank(launcher: subprocess.Popen[str], rank: int) -> int:
    """Return the process of a rank; all of a launch are in one session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            same = os.getsid(int(folder.name)) == launcher.pid
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        # The launcher has the recipe among its words too, but not this one.
        if same and f"--local_rank={rank}".encode() in words:
            return int(folder.name)
    pytest.fail(f"rank {rank} runs no more")


@pytest.mark.parametrize(("hung", "zero_stage"), [(1, 2), (0, 0)])
def test_a_rank_that_hangs_ends_the_run_and_is_named(
    hung: int, zero_stage: int, tmp_path: Path, start_recipe: Start, tiny: list[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny, "--engine.zero-stage", zero_stage, "--optim.schedule-steps", "100000", "--out", run]
    words += ["--checkpoint-every", "5", "--engine.timeout-min", "0.2"]
    launcher = start_recipe(2, *words, log=log)
    try:
        until = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step-????????")):
            assert launcher.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.1)
        os.kill(process_of_rank(launcher, hung), signal.SIGSTOP)
        # 12 s of waiting, up to 20 s of asking who is there, up to 30 s until the launcher kills what does not end.
        assert launcher.wait(timeout=120) == 1, log.read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    text = log.read_text()
    said = rf"error.*: rank {hung} on {socket.gethostname()} does not answer: it hangs, or .*--engine\.timeout-min"
    assert re.search(said + rf".*seen by rank {1 - hung} on .* in step \d+", text), text
    assert "the same command goes on from the last checkpoint" in text and "Traceback" not in text


def test_a_rank_that_is_killed_is_named_by_all_others(
    tmp_path: Path, start_recipe: Start, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # An hour of patience with a rank that hangs: a death needs none.
    words = [*tiny, "--data.batch-size", "9", "--optim.schedule-steps", "100000", "--out", run]
    words += ["--checkpoint-every", "5", "--engine.timeout-min", "60"]
    launcher = start_recipe(3, *words, log=log)
    try:
        until = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step-????????")):
            assert launcher.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.1)
        os.kill(process_of_rank(launcher, 1), signal.SIGKILL)
        # The launcher ends with the status of the rank that it sees end first.
        assert launcher.wait(timeout=60) != 0, log.read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    text = log.read_text()
    for rank in (0, 2):
        said = rf"error.*: rank 1 on {socket.gethostname()} ended without a word: it was killed"
        assert re.search(said + rf".*seen by rank {rank} on .* in step \d+; the same command goes on", text), text[
            -3000:
        ]
    assert "Traceback" not in text
