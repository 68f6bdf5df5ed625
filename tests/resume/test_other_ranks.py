"""A run goes on with another number of ranks, another ZeRO stage and another accumulation, to the same losses.

They change the order in which gradients are added and nothing else, so the bound is float32's rounding.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

Start = Callable[..., "subprocess.Popen[str]"]
STEPS = 12
# One share of hidden tokens: it is drawn once a micro-batch, so another accumulation would draw it otherwise.
SETTINGS = "--engine.precision float32 --objective.mask-ratio 0.8 0.8 --optim.clip-norm 0.1"
ACCEPT = "--accept-change engine.zero_stage engine.accumulation"


@pytest.fixture(scope="module")
def go(start_recipe: Start, tiny: list[str]) -> Callable[..., None]:
    """Return a function that runs up to a step and waits for the end."""

    def run(out: Path, ranks: int, steps: int, words: str = "") -> None:
        log = out.with_suffix(".log")
        full = [*tiny, *SETTINGS.split(), *words.split(), "--steps", steps, "--out", out]
        assert start_recipe(ranks, *full, log=log).wait(timeout=240) == 0, log.read_text()[-3000:]

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, go: Callable[..., None]) -> Path:
    """Return a run on one rank that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    go(out, 1, STEPS, "--engine.zero-stage 0")
    return out


@pytest.mark.parametrize(
    "legs",
    [
        [(2, "--engine.zero-stage 2"), (1, "--engine.zero-stage 2"), (2, "--engine.zero-stage 2")],
        [(1, "--engine.zero-stage 0"), (2, "--engine.zero-stage 3"), (1, "--engine.zero-stage 2")],
        [(2, "--engine.zero-stage 1"), (2, "--engine.zero-stage 0 --engine.accumulation 2")],
        [(1, "--engine.zero-stage 2 --engine.accumulation 4"), (2, "--engine.zero-stage 0")],
    ],
    ids=["ranks 2 1 2", "stages 0 3 2", "stage 1 to 0, accumulation 2", "accumulation 4, stage 2 to 0"],
)
def test_other_ranks_stages_and_accumulation_go_on_to_the_same_losses(
    legs: list[tuple[int, str]],
    whole: Path,
    tmp_path: Path,
    go: Callable[..., None],
    losses: Callable[[Path], list[float]],
) -> None:
    run = tmp_path / "run"
    for number, (ranks, words) in enumerate(legs, start=1):
        # Odd places to stop, so that no count of micro-batches divides by chance.
        go(run, ranks, STEPS if number == len(legs) else 3 * number, f"{words} {ACCEPT}")
    assert losses(run) == pytest.approx(losses(whole), rel=1e-6)
    # The losses of some steps say little of AdamW's averages: those are compared as they are.
    one, other = (load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "engine.safetensors") for out in (run, whole))
    assert one.keys() == other.keys() and one["step"].item() == STEPS
    for name, tensor in other.items():
        if name.startswith("exp_avg"):
            torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max()), msg=name)


def test_another_stage_is_refused_until_it_is_accepted_by_name(
    tmp_path: Path, tiny: list[str], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = [*tiny, "--out", tmp_path / "run"]
    assert command("recipes/jepa_vit.py", *words, "--steps", "1").returncode == 0
    done = command("recipes/jepa_vit.py", *words, "--steps", "2", "--engine.zero-stage", "0")
    assert done.returncode == 1 and "--accept-change engine.zero_stage" in done.stderr
    # How long to wait changes no weight.
    done = command("recipes/jepa_vit.py", *words, "--steps", "2", "--engine.timeout-min", "30")
    assert done.returncode == 0, done.stderr[-3000:]
