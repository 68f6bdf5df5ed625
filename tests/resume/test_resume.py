"""k steps, stop, resume to n gives the bits of n steps: through the real launcher, on one rank and on two.

The same runs show that two ranks give what one rank gives with the same windows a step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

Start = Callable[..., "subprocess.Popen[str]"]
STEPS = 20
FLOAT32 = ["--engine.precision", "float32", "--engine.accumulation", "2"]
BFLOAT16 = ["--engine.precision", "bfloat16", "--engine.zero-stage", "2", "--optim.clip-norm", "0.1"]


def assert_same_bits(one: Path, other: Path, step: int) -> None:
    """Compare weights, optimizer state and target of two runs."""
    folders = [run / "checkpoints" / f"step-{step:08d}" for run in (one, other)]
    for name in ("engine.safetensors", "encoder.safetensors"):
        first, second = (load_file(folder / name) for folder in folders)
        assert first.keys() == second.keys()
        for place, tensor in first.items():
            assert torch.equal(tensor, second[place]), f"{name} {place}"
        kinds = {place.partition(".")[0] for place in first}
        assert name == "encoder.safetensors" or kinds == {"model", "exp_avg", "exp_avg_sq", "step"}


def finish(process: subprocess.Popen[str], log: Path) -> None:
    assert process.wait(timeout=240) == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start_recipe: Start, tiny: list[str]) -> dict[int, Path]:
    """Return whole float32 runs on one rank and on two."""
    folder = tmp_path_factory.mktemp("whole")
    for ranks in (1, 2):
        log = folder / f"{ranks}.log"
        words = [*tiny, *FLOAT32, "--steps", str(STEPS), "--out", folder / str(ranks)]
        finish(start_recipe(ranks, *words, log=log), log)
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopping_and_going_on_changes_no_bit(
    tmp_path: Path,
    ranks: int,
    whole: dict[int, Path],
    start_recipe: Start,
    tiny: list[str],
    losses: Callable[[Path], list[float]],
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for steps in (2, STEPS):
        words = [*tiny, *FLOAT32, "--steps", str(steps), "--out", run]
        finish(start_recipe(ranks, *words, log=log), log)
    assert "going on from step 2" in log.read_text()
    assert losses(run) == losses(whole[ranks])
    assert_same_bits(run, whole[ranks], STEPS)


def test_two_ranks_give_the_losses_of_one(whole: dict[int, Path], losses: Callable[[Path], list[float]]) -> None:
    one, two = (losses(whole[ranks]) for ranks in (1, 2))
    assert len(one) == STEPS and one[0] != one[-1]
    for first, second in zip(one, two, strict=True):
        assert abs(first - second) <= 1e-6 * abs(first)


def test_sigterm_to_the_deepspeed_command_saves_and_bfloat16_goes_on_exactly(
    tmp_path: Path, start_recipe: Start, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, whole, log = tmp_path / "run", tmp_path / "whole", tmp_path / "log"
    words = [*tiny, *BFLOAT16, "--optim.schedule-steps", "100000", "--checkpoint-every", "100000"]
    process = start_recipe(2, *words, "--out", run, log=log)
    wait_for(lambda: len(lines(run)) >= 5, process, log)
    os.kill(process.pid, signal.SIGTERM)  # the command alone; its ranks notice that it is gone
    process.wait(timeout=60)
    wait_for(lambda: any(path.suffix != ".tmp" for path in (run / "checkpoints").glob("step-*")), None, log)
    wait_for(lambda: "the same command goes on" in log.read_text(), None, log)
    stopped = len(lines(run))
    for folder in (run, whole):
        finish(start_recipe(2, *words, "--steps", str(stopped + 3), "--out", folder, log=log), log)
    assert losses(run) == losses(whole)
    assert_same_bits(run, whole, stopped + 3)


def test_killing_a_rank_loses_only_the_steps_since_the_last_checkpoint(
    tmp_path: Path, start_recipe: Start, tiny: list[str], losses: Callable[[Path], list[float]], whole: dict[int, Path]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny, *FLOAT32, "--out", run]
    # A checkpoint a step takes longer than the step: there is time to kill it before its end.
    process = start_recipe(2, *words, "--checkpoint-every", "1", log=log)
    wait_for(lambda: (run / "checkpoints" / "step-00000002").exists(), process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (run / "checkpoints" / f"step-{STEPS:08d}").exists(), "it came to its end before it was killed"
    finish(start_recipe(2, *words, log=log), log)
    assert "going on from step" in log.read_text()
    assert losses(run) == losses(whole[2])
    assert_same_bits(run, whole[2], STEPS)


def lines(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None, log: Path) -> None:
    for _ in range(1200):
        if condition():
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"waited in vain: {log.read_text()[-3000:]}")
