"""On a GPU: the recipe trains under each precision, stops, and goes on to the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run pytest -m gpu on a machine with one"),
]


@pytest.mark.parametrize(
    "engine",
    [
        "--engine.zero-stage 0",
        "--engine.zero-stage 1",
        "--engine.zero-stage 2 --engine.checkpoint-activations --engine.offload",
        "--engine.zero-stage 1 --engine.compile",
        "--engine.zero-stage 3 --engine.precision float32",
        "--engine.zero-stage 1 --engine.precision bfloat16-weights",
        "--engine.zero-stage 3 --engine.precision bfloat16-weights --engine.offload",
        "--engine.zero-stage 1 --engine.precision float16 --engine.deterministic",
        "--engine.zero-stage 3 --engine.precision float16",
    ],
)
def test_stopping_and_going_on_gives_the_same_losses_on_a_gpu(
    engine: str, tmp_path: Path, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    # What tests/conftest.py and a developer's shell set for the CPU.
    cpu = ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE")
    environment = {name: value for name, value in os.environ.items() if name not in cpu}
    for name, all_steps in (("whole", [12]), ("stopped", [5, 12])):
        for steps in all_steps:
            words = [*tiny, *engine.split(), "--steps", steps, "--out", tmp_path / name]
            done = subprocess.run(
                [sys.executable, "recipes/jepa_vit.py", *map(str, words)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert "on cuda" in done.stdout or steps != all_steps[0]
    # Kernels of the backward pass may add in another order: equal to bfloat16's rounding, not to the bit.
    assert losses(tmp_path / "stopped") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)
