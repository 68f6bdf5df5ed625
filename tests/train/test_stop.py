"""A signal ends a run after its step, saved, with a status that says whether steps are left: on every rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ecgfm.train.stop import EX_REQUEUE, stopping

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.Popen[str]"]
# A checkpoint a step takes longer than the step: there is time for a signal before the end.
SLOW = ["--checkpoint-every", "1", "--optim.schedule-steps", "200"]


def lines(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_steps(run: Path, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(1200):
        if len(lines(run)) >= 2:
            return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    pytest.fail(f"waited in vain: {log.read_text()[-3000:]}")


def rank_process(run: Path, rank: int) -> int:
    """Return the process of a rank of a run; the launcher's own have no RANK in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # gone meanwhile
            continue
        if str(run).encode() in command and f"RANK={rank}".encode() in environment.split(b"\0"):
            return int(folder.name)
    raise AssertionError(f"rank {rank} of {run} is not there")


def start_alone(words: list[str], log: Path) -> subprocess.Popen[str]:
    """Start the recipe without a launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "recipes/jepa_vit.py", *words],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )


def newest(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-????????"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_signal_without_a_launcher_saves_and_ends_with_its_status(
    number: signal.Signals, status: int, tmp_path: Path, tiny: list[str]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny, "--optim.schedule-steps", "1000000", "--checkpoint-every", "1000000", "--out", str(run)]
    process = start_alone(words, log)
    wait_for_steps(run, process, log)
    process.send_signal(number)
    assert process.wait(timeout=60) == status, log.read_text()[-3000:]
    assert f"stopped at step {newest(run):,} by {number.name}" in log.read_text()
    assert newest(run) == len(lines(run))


def test_a_warning_to_one_rank_ends_the_deepspeed_command_with_85_and_the_same_command_finishes_with_0(
    tmp_path: Path, start_recipe: Start, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny, *SLOW, "--out", run]
    process = start_recipe(2, *words, log=log)
    wait_for_steps(run, process, log)
    # Rank 0, which writes, hears of it from rank 1 alone, and then gets the launcher's SIGTERM.
    os.kill(rank_process(run, 1), signal.SIGUSR1)
    assert process.wait(timeout=60) == EX_REQUEUE, log.read_text()[-3000:]
    stopped = newest(run)
    assert f"stopped at step {stopped:,} by another rank" in log.read_text()
    assert len(losses(run)) == stopped
    assert not list((run / "checkpoints").glob("*.tmp"))
    process = start_recipe(2, *words, "--steps", str(stopped + 1), log=log)
    assert process.wait(timeout=120) == 0, log.read_text()[-3000:]
    assert len(losses(run)) == stopped + 1


def test_ctrl_c_at_the_deepspeed_command_saves(tmp_path: Path, start_recipe: Start, tiny: list[str]) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start_recipe(2, *tiny, *SLOW, "--out", run, log=log)
    wait_for_steps(run, process, log)
    ranks = [rank_process(run, rank) for rank in (0, 1)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    # Python's own answer to Ctrl-C, which a shell shows as 130.
    assert process.wait(timeout=60) in (-signal.SIGINT, 130), log.read_text()[-3000:]
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in ranks):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    assert f"stopped at step {newest(run):,} by SIG" in log.read_text()
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_after_the_last_checkpoint_end_nothing(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        with stopping() as stop:
            stop.status = EX_REQUEUE  # another rank was told, not this one
        signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_run_that_fails_is_not_ended_before_it_has_said_why() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError), stopping():
            raise RuntimeError
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_counts_whatever_came_with_it() -> None:
    for numbers in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)):
        before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        try:
            with stopping() as stop:
                for number in numbers:
                    signal.raise_signal(number)
                assert stop.interrupted() and stop.reason() == numbers[0].name
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
