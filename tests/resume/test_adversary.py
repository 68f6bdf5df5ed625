"""A run with an adversary that has settings of its own, stopped and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

LR, MASKER_LR = 5e-4, 2e-2


def test_masker_and_encoder_go_on_as_if_they_had_not_stopped_each_at_its_own_rate(
    training_shards: Path, tmp_path: Path, run_ranks: Callable[..., list[int]]
) -> None:
    def run(out: Path, steps: int) -> dict[int, dict[str, Tensor]]:
        words = (
            f"recipes/advmask_resnet.py --preset laptop --data.shards {training_shards} --data.batch-size 8 "
            f"--objective.masker.lr {MASKER_LR} --engine.zero-stage 2 --checkpoint-every 1 --log-every 1 "
            f"--keep-checkpoints 9 --steps {steps} --out {out}"
        )
        log = out.with_suffix(".log")
        assert run_ranks(0, *words.split(), log=log) == [0], log.read_text()[-3000:]
        folders = sorted((out / "checkpoints").glob("step-*"))
        return {int(folder.name[5:]): load_file(folder / "engine.safetensors") for folder in folders}

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "stopped", 2)
    again = run(tmp_path / "stopped", 4)
    assert whole[4].keys() == again[4].keys() and any("exp_avg.masker" in name for name in whole[4])
    for name, value in whole[4].items():
        assert torch.equal(value, again[4][name]), name
    # AdamW moves a weight by about its learning rate in each of the first steps.
    for part, rate in (("model.encoder", LR), ("model.masker", MASKER_LR)):
        moved = max(
            float((value - whole[1][name]).abs().max())
            for name, value in whole[2].items()
            if name.startswith(part) and "running" not in name and "tracked" not in name
        )
        assert 0.2 * rate < moved < 2 * rate, part
