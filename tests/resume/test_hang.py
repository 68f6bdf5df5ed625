"""A rank that hangs, dies or fails ends the run, which names it, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]


@contextmanager
def training(start_recipe: Start, ranks: int, words: list[str], run: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a run, wait for its first checkpoint, and in the end kill what is left of it."""
    log = run.with_suffix(".log")
    words = [*words, "--optim.schedule-steps", "100000", "--checkpoint-every", "5", "--out", str(run)]
    launcher = start_recipe(ranks, *words, log=log)
    try:
        until = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step-????????")):
            assert launcher.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.1)
        yield launcher
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()


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


def is_asked_to_end(process: int) -> bool:
    """Tell whether a stopped process has a SIGTERM waiting for it."""
    pending = re.search(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert pending
    return bool(int(pending[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_rank_that_hangs_ends_the_run_and_is_named(tmp_path: Path, start_recipe: Start, tiny: list[str]) -> None:
    stages = {0: "0", 1: "2"}
    """By the rank that hangs. The second run starts while the first one waits."""
    with ExitStack() as stack:
        launchers, hangs = {}, {}
        for hung, stage in stages.items():
            words = [*tiny, "--engine.zero-stage", stage, "--engine.timeout-min", "0.2"]
            launchers[hung] = stack.enter_context(training(start_recipe, 2, words, tmp_path / str(hung)))
            hangs[hung] = process_of_rank(launchers[hung], hung)
            os.kill(hangs[hung], signal.SIGSTOP)
        for hung, launcher in launchers.items():
            # 12 s of waiting, and up to 20 s of asking who is there.
            until = time.monotonic() + 90
            while not is_asked_to_end(hangs[hung]):
                assert time.monotonic() < until, (tmp_path / f"{hung}.log").read_text()[-3000:]
                time.sleep(0.1)
            # What the launcher does after 30 s.
            os.kill(hangs[hung], signal.SIGKILL)
            assert launcher.wait(timeout=60) == 1
            text = (tmp_path / f"{hung}.log").read_text()
            who = (
                rf"error.*: rank {hung} on {socket.gethostname()} does not answer: it hangs, or .*--engine\.timeout-min"
            )
            assert re.search(who + rf".*seen by rank {1 - hung} on .* in step \d+", text), text
            assert "the same command goes on from the last checkpoint" in text and "Traceback" not in text


def test_a_rank_that_is_killed_is_named_by_all_others(tmp_path: Path, start_recipe: Start, tiny: list[str]) -> None:
    # An hour of patience with a rank that hangs: a death needs none.
    words = [*tiny, "--data.batch-size", "9", "--engine.timeout-min", "60"]
    with training(start_recipe, 3, words, tmp_path / "run") as launcher:
        os.kill(process_of_rank(launcher, 1), signal.SIGKILL)
        # The launcher ends with the status of the rank that it sees end first.
        assert launcher.wait(timeout=60) != 0
    text = (tmp_path / "run.log").read_text()
    for rank in (0, 2):
        said = rf"error.*: rank 1 on {socket.gethostname()} ended without a word: it was killed"
        assert re.search(said + rf".*seen by rank {rank} on .* in step \d+; the same command goes on", text), text
    assert "Traceback" not in text
