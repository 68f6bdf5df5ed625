"""Shards with a label that can be learned, a small encoder, and settings of runs that take a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfm import ECGEncoder, config
from ecgfm.databases.base import load_database
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit import ViT
from ecgfm.eval.finetune_config import Finetune, Phase
from ecgfm.eval.tasks.base import Task
from ecgfm.eval.tasks.table import Table
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy
from ecgfm.signal.contract import SignalContract

RECORDS = 40
RATE_HZ = 500.0


def write_shards(folder: Path, write_challenge: Any) -> Path:
    """Write 40 records of 4 to 5 s: beats with noise, of which those of odd number turn in the chest leads."""
    random = np.random.default_rng(0)
    for number in range(1, RECORDS + 1):
        time_s = np.arange(2000 + 10 * number) / RATE_HZ
        beat = np.exp(-(((time_s * random.uniform(0.8, 2.0)) % 1 - 0.5) ** 2) / 0.001)
        size = random.uniform(300, 900, (12, 1))
        if number % 2:
            size[6:] *= -1
        # Limb leads that keep Einthoven's law.
        one, two = size[0, 0], size[1, 0]
        size[2:6, 0] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
        signal = size * beat + random.normal(0, 30, (12, len(time_s)))
        write_challenge(folder / "georgia", f"E{number:05d}", np.rint(signal).astype(np.int16))
    options = Options(records_per_shard=16, signal=Policy(min_s=2.0))
    convert(load_database("georgia"), folder / "georgia", folder / "shards", options)
    return folder / "shards"


def write_table(path: Path, flip: str = "") -> Path:
    """Write the label, a number and the part of each record; `flip` names a part whose labels are turned round."""
    lines = ["record,turned,group,number,part"]
    for number in range(1, RECORDS + 1):
        part = "test" if number % 5 == 0 else "validation" if number % 5 == 1 else "train"
        turned = (number % 2 == 1) != (part == flip)
        lines.append(f"E{number:05d},{int(turned)},{'abc'[number % 2]},{10 + 3 * (number % 2)},{part}")
    path.write_text("\n".join(lines) + "\n")
    return path


def small_encoder(settings: Encoder.Config | None = None, seed: int = 3) -> ECGEncoder:
    """Return an encoder with random weights, of windows of 2 s."""
    settings = settings or ViT.Config(width=16, depth=2, num_heads=2, patch_samples=50)
    contract = SignalContract(rate_hz=RATE_HZ, mean_mv=(0.0,) * 12, std_mv=(0.2,) * 12, window_samples=1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4.0)
    return model.eval()


def settings_of(shards: Path, table: Path, encoder: Path, out: Path, **changes: Any) -> Finetune:
    """Return settings of a run of 12 and 12 steps."""
    task = Table.Config(table=table, columns=("turned",), split_column="part")
    plain = Finetune(
        encoder=str(encoder),
        shards=(shards,),
        task=task,
        out=out,
        batch_size=8,
        validate_every=4,
        checkpoint_every=5,
        log_every=1,
        draws=20,
        frozen=Phase(steps=12, lr=1e-2),
        full=Phase(steps=12, lr=1e-3, final_lr=1e-4, warmup_steps=2, schedule="cosine"),
    )
    return replace(plain, **changes)


def task_of_column(table: Path, column: str, targets: Any) -> Task.Config:
    """Return the task of one column of the table."""
    return Table.Config(table=table, columns=(column,), targets=targets, split_column="part")
