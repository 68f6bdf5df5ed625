"""k steps, stop, resume to n gives the bits of n steps: on one rank and on two, with and without the launcher.

The same runs show that two ranks give what one rank gives with the same windows a step.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

Start = Callable[..., "subprocess.Popen[str]"]
Train = Callable[[int, list[str], Path], str]
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
def train(run_ranks: Callable[..., list[int]]) -> Train:
    """Return a function that runs the recipe to its end, without a launcher, and returns what it has said."""

    def run(ranks: int, words: list[str], out: Path) -> str:
        log = out.with_suffix(".said")
        status = run_ranks(ranks, "recipes/jepa_vit.py", *words, "--out", out, log=log)
        assert status == ranks * [0], log.read_text()[-3000:]
        return log.read_text()

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], train: Train) -> dict[int, Path]:
    """Return whole float32 runs on one rank and on two."""
    folder = tmp_path_factory.mktemp("whole")
    for ranks in (1, 2):
        train(ranks, [*tiny, *FLOAT32], folder / str(ranks))
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopping_and_going_on_changes_no_bit(
    tmp_path: Path,
    ranks: int,
    whole: dict[int, Path],
    train: Train,
    tiny: list[str],
    losses: Callable[[Path], list[float]],
) -> None:
    run = tmp_path / "run"
    said = [train(ranks, [*tiny, *FLOAT32, "--steps", str(steps)], run) for steps in (2, STEPS)]
    assert "going on from step 2" not in said[0] and "going on from step 2" in said[1]
    assert losses(run) == losses(whole[ranks])
    assert_same_bits(run, whole[ranks], STEPS)


def test_two_ranks_give_the_losses_of_one(whole: dict[int, Path], losses: Callable[[Path], list[float]]) -> None:
    one, two = (losses(whole[ranks]) for ranks in (1, 2))
    assert len(one) == STEPS and one[0] != one[-1]
    for first, second in zip(one, two, strict=True):
        assert abs(first - second) <= 1e-6 * abs(first)


def test_sigterm_to_the_deepspeed_command_saves_and_bfloat16_goes_on_exactly(
    tmp_path: Path, start_recipe: Start, train: Train, tiny: list[str], losses: Callable[[Path], list[float]]
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
    steps = ["--steps", str(stopped + 3)]
    finish(start_recipe(2, *words, *steps, "--out", run, log=log), log)
    train(2, [*words, *steps], whole)
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
    # And a disk that damaged the newest that is there. Rank 0 sees it, and all go on from the one before.
    newest, before = (folder for _, folder in zip(range(2), newest_first(run), strict=False))
    os.truncate(newest / "engine.safetensors", 5000)
    log.write_text("")
    finish(start_recipe(2, *words, log=log), log)
    text = log.read_text()
    assert f"WARNING: {newest}/engine.safetensors is damaged: it has 5,000 bytes" in text
    assert f"going on from step {int(before.name[5:])}" in text
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    assert losses(run) == losses(whole[2])
    assert_same_bits(run, whole[2], STEPS)
    assert (run / "checkpoints" / "latest").read_text() == f"step-{STEPS:08d}\n"


def test_a_run_that_is_killed_again_and_again_while_it_writes_ends_with_the_same_bits(
    tmp_path: Path, tiny: list[str], losses: Callable[[Path], list[float]], whole: dict[int, Path]
) -> None:
    run, log, moments, known = tmp_path / "run", tmp_path / "log", random.Random(0), 0
    words = [*tiny, *FLOAT32, "--checkpoint-every", "1", "--keep-checkpoints", "1", "--out", str(run)]
    for kill in (True, True, False):
        process = start_alone(words, log)
        if not kill:
            finish(process, log)
            break
        # A few steps more, and then anywhere in the next ones.
        wait_for(partial(has_passed, run, known + 1), process, log, 0.01)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        process.wait(timeout=60)
        there = int(next(newest_first(run)).name[5:])
        assert known < there < STEPS, "it came to its end before it was killed"
        known = there
    assert log.read_text().count("going on from step") == 2
    assert losses(run) == losses(whole[1])
    assert_same_bits(run, whole[1], STEPS)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"latest", f"step-{STEPS:08d}"}


def has_passed(run: Path, step: int) -> bool:
    return any(int(path.name[5:]) > step for path in newest_first(run))


def newest_first(run: Path) -> Iterator[Path]:
    """Yield the checkpoints that are whole by their names."""
    return iter(sorted((run / "checkpoints").glob("step-????????"), reverse=True))


def start_alone(words: list[str], log: Path) -> subprocess.Popen[str]:
    """Start the recipe without a launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    full = [sys.executable, "recipes/jepa_vit.py", *words]
    with log.open("a") as file:
        return subprocess.Popen(
            full, cwd=Path(__file__).parents[2], env=environment, stdout=file, stderr=subprocess.STDOUT, text=True
        )


def lines(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str] | None, log: Path, every_s: float = 0.1
) -> None:
    for _ in range(round(120 / every_s)):
        if condition():
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(every_s)
    pytest.fail(f"waited in vain: {log.read_text()[-3000:]}")
