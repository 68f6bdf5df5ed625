"""A training loop without an engine: one process, whole batches, float32, plain torch.

Own code from the formulas, nothing of ecgfm/train: what DeepSpeed, the ranks, the stages and the resuming come to is
compared with this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecgfm.data.batch import Draws
from ecgfm.data.loader import Loader
from ecgfm.data.prepare import Prepare
from ecgfm.encoders.vit import ViT
from ecgfm.objectives.base import Progress, build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.rng import derive
from ecgfm.shards.reader import Shards

STEPS = 8
SCHEDULE = 16
WARMUP = 2
BATCH = 8
WINDOW = 5000
CLIP_NORM = 0.1
LR = 3e-3
MOMENTUM = (0.9, 0.99)  # so low that a wrong average shows in the losses of a few steps
ENCODER = ViT.Config(width=32, depth=2, num_heads=2, patch_samples=100)
OBJECTIVE = JEPA.Config(min_block=4, momentum=MOMENTUM)
WORDS = (
    f"--data.batch-size {BATCH} --encoder.width 32 --encoder.depth 2 --encoder.num-heads 2 "
    f"--encoder.patch-samples 100 --objective.min-block 4 --optim.schedule-steps {SCHEDULE} "
    f"--optim.warmup-share {WARMUP / SCHEDULE} --optim.clip-norm {CLIP_NORM} --log-every 1 "
    f"--optim.lr {LR} --objective.momentum {MOMENTUM[0]} {MOMENTUM[1]}"
).split()
"""The same run for the recipe."""


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What the plain loop came to."""

    losses: list[float]
    weights: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


def half_cosine(step: int, steps: int, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def train_plainly(folder: Path) -> Plain:
    """Return the losses of each step, and weights and AdamW's averages after the last."""
    shards = Shards((folder,))
    loader = Loader(shards, window_samples=WINDOW, batch_size=BATCH, accumulation=1, rank=0, world_size=1, seed=0)
    manifest = shards.manifests[0]
    prepare = Prepare(torch.tensor([manifest.mean_mv]), torch.tensor([manifest.std_mv]), 5.0)
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "weights"))
        objective = build_objective(OBJECTIVE, ENCODER, WINDOW, 500.0)
    assert isinstance(objective, JEPA)
    decayed = {id(module.weight) for module in objective.modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    trained = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in trained.values() if id(weight) in decayed]},
        {"params": [weight for weight in trained.values() if id(weight) not in decayed], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-6, foreach=False)
    losses = []
    for step in range(STEPS):
        if step < WARMUP:
            rate = 1e-6 + (LR - 1e-6) * step / WARMUP
        else:
            rate = half_cosine(step - WARMUP, SCHEDULE - WARMUP, LR, 1e-6)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.param_groups[0]["weight_decay"] = half_cosine(step, SCHEDULE, 0.01, 0.1)
        draws = Draws(seed=0, step=step, rows=(0, BATCH), all_rows=BATCH, device=torch.device("cpu"))
        batch = objective.views(prepare(loader.read(step * BATCH)), draws)
        loss = objective(batch, Progress(step=step, schedule_steps=SCHEDULE))["loss"]
        losses.append(loss.item())
        adamw.zero_grad()
        torch.autograd.backward(loss)
        norm = math.sqrt(sum(float((weight.grad**2).sum()) for weight in trained.values() if weight.grad is not None))
        for weight in trained.values():
            assert weight.grad is not None
            weight.grad *= min(1.0, CLIP_NORM / norm)
        adamw.step()
        momentum = MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * step / SCHEDULE
        with torch.no_grad():
            for target, source in zip(objective.target.parameters(), objective.encoder.parameters(), strict=True):
                target.copy_(momentum * target + (1 - momentum) * source)
    return Plain(
        losses=losses,
        weights={name: weight.detach().clone() for name, weight in objective.state_dict().items()},
        exp_avg={name: adamw.state[weight]["exp_avg"] for name, weight in trained.items()},
        exp_avg_sq={name: adamw.state[weight]["exp_avg_sq"] for name, weight in trained.items()},
    )
