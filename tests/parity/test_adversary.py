"""A target, a queue and a second optimizer under every ZeRO stage come to what a plain loop comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import adversary
from tests.parity.launch import launch_ranks

Plain = tuple[list[float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def plainly() -> Plain:
    """Return losses and state of the loop with two optimizers."""
    return adversary.train_plainly()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what two ranks came to under each stage; each run stopped and went on."""
    folder = tmp_path_factory.mktemp("adversary")
    launch_ranks(2, ["tests/parity/adversary.py", str(folder)], folder / "logs")
    return folder


@pytest.mark.parametrize(("number", "run"), list(enumerate(adversary.RUNS)), ids=str)
def test_a_target_a_queue_and_an_adversary_are_those_of_the_plain_loop(
    number: int, run: tuple[int, str], folder: Path, plainly: Plain
) -> None:
    losses, state = plainly
    found = load_file(folder / f"{number}.safetensors")
    # Float32: sums in another order. 16 bits: their rounding in eight steps at a high learning rate.
    loss_bound, state_bound = (1e-5, 1e-4) if run[1] == "float32" else (0.05, 0.3)
    assert json.loads((folder / f"{number}.json").read_text()) == pytest.approx(losses, rel=loss_bound)
    for name, wanted in state.items():
        value = found[f"model.{name}"]
        assert value.dtype == wanted.dtype, name
        assert float((value - wanted).float().norm()) <= state_bound * float(wanted.float().norm()), name
    assert found["model.filled"].item() == adversary.STEPS * adversary.ROWS


@pytest.mark.parametrize("number", range(len(adversary.RUNS)))
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(number: int, folder: Path) -> None:
    assert json.loads((folder / f"{number}-bad.json").read_text()) == {"applied": False, "same": True}


def test_the_queue_is_float32_beside_weights_of_16_bits(folder: Path) -> None:
    number = adversary.RUNS.index((1, "bfloat16-weights"))
    queue = load_file(folder / f"{number}.safetensors")["model.queue_QD"]
    assert not torch.equal(queue, queue.bfloat16().float())


def test_the_adversary_learns_by_its_own_rate_and_the_encoder_hides(plainly: Plain) -> None:
    """With the main optimizer's settings, or without the reversal, the plain loop comes to something else."""
    _, state = plainly
    once = adversary.OTHER
    try:
        adversary.OTHER = adversary.MAIN
        _, other = adversary.train_plainly()
    finally:
        adversary.OTHER = once
    wanted = state["adversary.weight"]
    assert float((other["adversary.weight"] - wanted).norm()) > 0.01 * float(wanted.norm())
