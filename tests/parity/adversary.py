"""An objective with all that an engine must bear, and the same as a plain loop with two optimizers.

`Everything` has a target that follows the encoder, a queue of old keys, and an adversary that guesses a label from the
features while the encoder learns to hide it. In the engine the adversary is a parameter group of its own (learning
rate, betas, decay) behind a reversed gradient; in the plain loop it has an AdamW of its own.

python tests/parity/adversary.py FOLDER is one rank: it trains under each stage and precision, stops and goes on in the
middle, and writes what it came to.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit import ViT
from ecgfm.objectives.base import Losses, Objective, Progress

STEPS = 8
STOP = 3
ROWS = 4
QUEUE = 10
WIDTH = 16
TEMPERATURE = 0.2
AT = 100
MAIN: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.05, "eps": 1e-6}
OTHER: dict[str, Any] = {"lr": 2e-2, "betas": (0.5, 0.9), "weight_decay": 0.0, "eps": 1e-6}
RUNS: list[tuple[Literal[0, 1, 2, 3], Literal["float32", "bfloat16-weights"]]] = [
    (0, "float32"),
    (1, "float32"),
    (2, "float32"),
    (3, "float32"),
    (1, "bfloat16-weights"),
    (3, "bfloat16-weights"),
]


class Reverse(torch.autograd.Function):
    """The same values, and the gradient with the other sign (Ganin and Lempitsky 2015, section 3)."""

    @staticmethod
    def forward(_context: FunctionCtx, features: Tensor) -> Tensor:
        """Return the features."""
        return features.view_as(features)

    @staticmethod
    def backward(_context: FunctionCtx, *gradient: Tensor) -> Tensor:
        """Return the gradient of the adversary's opponent."""
        return -gradient[0]


class Everything(Objective):
    """A target, a queue and an adversary."""

    queue_QD: Tensor
    filled: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """None."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            Everything.Config(), ViT(ViT.Config(width=WIDTH, num_leads=3, patch_samples=25, depth=1, num_heads=2))
        )
        self.target = ViT(self.encoder.config)  # type: ignore[arg-type]
        self.target.load_state_dict(self.encoder.state_dict())
        self.target.requires_grad_(False)
        self.adversary = nn.Linear(WIDTH, 2)
        self.register_buffer("queue_QD", functional.normalize(torch.randn(QUEUE, WIDTH), dim=1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.keys: list[Tensor] = []

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Nothing is refused."""

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Return the batch."""
        return batch

    def parts(self, batch: Batch, *, reverse: bool) -> tuple[Tensor, Tensor]:
        """Return the contrastive loss and the adversary's."""
        with torch.no_grad():
            keys_BD = functional.normalize(self.target.pool(self.target(batch.signal_BLT)), dim=1)
        self.keys.append(keys_BD)
        features_BD = self.encoder.pool(self.encoder(batch.signal_BLT))
        query_BD = functional.normalize(features_BD, dim=1)
        alike_B1 = (query_BD * keys_BD).sum(dim=1, keepdim=True)
        logits = torch.cat([alike_B1, query_BD @ self.queue_QD.T], dim=1) / TEMPERATURE
        first = torch.zeros(len(logits), dtype=torch.int64)
        seen_BD = Reverse.apply(features_BD) if reverse else features_BD
        guess = self.adversary(seen_BD.to(self.adversary.weight.dtype)).float()
        return functional.cross_entropy(logits, first), functional.cross_entropy(guess, batch.database_B)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Return both losses, of which the encoder gets the second one's gradient reversed."""
        contrast, guess = self.parts(batch, reverse=True)
        return {"loss": contrast + guess, "contrast": contrast, "guess": guess}

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the target."""
        return ((self.target, self.encoder),)

    def momentum(self, at: Progress) -> float:
        """Return a low one, whose effect is seen at once."""
        return 0.8 + 0.1 * at.step / at.schedule_steps

    def after_step(self, at: Progress) -> dict[str, float]:
        """Put the step's keys of all ranks into the queue, in the order of the rows."""
        own_MBD = torch.stack(self.keys)
        self.keys = []
        every = [own_MBD]
        if torch.distributed.is_initialized():
            every = [torch.empty_like(own_MBD) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(every, own_MBD)
        self.enqueue_(torch.cat(every, dim=1).flatten(0, 1))
        return {}

    def enqueue_(self, keys_BD: Tensor) -> None:
        """Write keys over the oldest."""
        place = (self.filled + torch.arange(len(keys_BD))) % QUEUE
        self.queue_QD[place] = keys_BD
        self.filled += len(keys_BD)

    def published(self) -> Encoder:
        """Return the target."""
        return self.target


def batch(step: int, rows: slice) -> Batch:
    """Return rows of a step's windows, whose label is a tone in them."""
    generator = torch.Generator().manual_seed(step)
    label_B = torch.randint(0, 2, (ROWS,), generator=generator)
    signal_BLT = torch.randn(ROWS, 3, 200, generator=generator) + label_B[:, None, None]
    return Batch(signal_BLT=signal_BLT[rows], microvolt_per_count_B=torch.ones(ROWS)[rows], database_B=label_B[rows])


def train_plainly() -> tuple[list[float], dict[str, Tensor]]:
    """Return losses and state of whole batches, without an engine and with two optimizers."""
    objective = Everything()
    main = torch.optim.AdamW(objective.encoder.parameters(), foreach=False, **MAIN)
    other = torch.optim.AdamW(objective.adversary.parameters(), foreach=False, **OTHER)
    encoder, adversary = list(objective.encoder.parameters()), list(objective.adversary.parameters())
    losses = []
    for step in range(STEPS):
        contrast, guess = objective.parts(batch(step, slice(None)), reverse=False)
        hiding = torch.autograd.grad(contrast - guess, encoder, retain_graph=True)
        guessing = torch.autograd.grad(guess, adversary)
        for weight, gradient in zip((*encoder, *adversary), (*hiding, *guessing), strict=True):
            weight.grad = gradient
        main.step()
        other.step()
        momentum = objective.momentum(Progress(step=step, schedule_steps=AT))
        with torch.no_grad():
            for target, source in zip(objective.target.parameters(), encoder, strict=True):
                target.copy_(momentum * target + (1 - momentum) * source)
        objective.enqueue_(objective.keys.pop())
        losses.append((contrast + guess).item())
    return losses, objective.state_dict()


def main(folder: Path) -> None:
    """Train under each stage and precision, on this rank of several."""
    from ecgfm.train.engine import ENGINE, Engine
    from ecgfm.train.engine_config import EngineConfig
    from ecgfm.train.lifeline import How
    from ecgfm.train.world import end_world, start_world

    world = start_world(5.0)

    def engine_of(stage: Literal[0, 1, 2, 3], precision: Any) -> Engine:
        objective = Everything()
        groups = [
            {"params": list(objective.encoder.parameters()), **MAIN},
            {"params": list(objective.adversary.parameters()), **OTHER},
        ]
        # Two micro-batches a step on one rank, one on each of two.
        config = EngineConfig(zero_stage=stage, precision=precision, accumulation=2 // world.size)
        adamw = torch.optim.AdamW(groups, fused=True)
        return Engine(config, world, objective, adamw, micro_batch_size=ROWS // 2, clip_norm=None)

    for number, (stage, precision) in enumerate(RUNS):
        engine, losses = engine_of(stage, precision), []
        for step in range(STEPS):
            if step == STOP:
                whole, saved = engine.collect(), folder / f"{number}-stopped"
                if world.rank == 0:
                    saved.mkdir()
                    save_file(whole, saved / ENGINE)
                world.barrier()
                engine = engine_of(stage, precision)
                engine.load(saved)
            at = Progress(step=step, schedule_steps=AT)
            total = 0.0
            for micro in range(2 // world.size):
                first = (world.rank + micro) * (ROWS // 2)
                losses_now = engine.forward(batch(step, slice(first, first + ROWS // 2)), at)
                engine.backward(losses_now["loss"])
                total += losses_now["loss"].item() * world.size / 2
                engine.step()
            losses.append(float(world.mean(torch.tensor(total))))
            engine.after_step(at)
        whole = engine.collect()
        if world.rank == 0:
            save_file(whole, folder / f"{number}.safetensors")
            (folder / f"{number}.json").write_text(json.dumps(losses))
        bad = batch(STEPS, slice(0, ROWS // 2))
        bad.signal_BLT[0, 0, 0] = torch.nan if world.rank == 0 else 0.0
        for _ in range(2 // world.size):
            engine.backward(engine.forward(bad, Progress(step=STEPS, schedule_steps=AT))["loss"])
            engine.step()
        after = engine.collect()
        if world.rank == 0:
            same = all(torch.equal(value, whole[name]) for name, value in after.items())
            (folder / f"{number}-bad.json").write_text(json.dumps({"applied": engine.applied, "same": same}))
    world.barrier()
    if world.lifeline:
        world.lifeline.leave(How.FINISHED, world.rank)
    end_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
