"""Checkpoints of one rank with an engine of few weights, without torch.distributed or DeepSpeed's engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ecgfm.encoders.vit import ViT
from ecgfm.leads import LEADS
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.run_folder import checkpoints
from ecgfm.signal.contract import SignalContract
from ecgfm.train.checkpoint import read_whole
from ecgfm.train.checkpoint_writer import Saver
from ecgfm.train.engine import Engine
from ecgfm.train.world import World

T = TypeVar("T")
ENCODER = ViT.Config(width=8, patch_samples=100, depth=1, num_heads=2)
CONTRACT = SignalContract(
    rate_hz=500, leads=LEADS, mean_mv=(0.0,) * 12, std_mv=(1.0,) * 12, highpass_hz=None, clip=5.0, window_samples=5000
)


class Alone(World):
    """A world of one rank, without torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def agree(self, error: Exception | None, *, patient: bool = False) -> None:
        """Raise it."""
        if error:
            raise error

    def from_first(self, value: T) -> T:
        """Return it."""
        return value


class FewWeights(Engine):
    """What a checkpoint needs of an engine."""

    def __init__(self) -> None:
        self.world = Alone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.objective = build_objective(JEPA.Config(min_block=4), ENCODER, 5000, 500.0)

    @torch.no_grad()
    def fill_(self, value: float) -> None:
        """Set all weights, as a step would change them."""
        for weight in self.objective.parameters():
            weight.fill_(value)

    def collect(self) -> dict[str, Tensor]:
        """Return copies of the weights, and what stands for AdamW's state."""
        whole = {f"model.{name}": tensor.clone() for name, tensor in self.objective.state_dict().items()}
        # What is not equal to itself is compared too.
        return whole | {"step": torch.tensor(3.0), "exp_avg.x": torch.tensor([[float("nan"), -0.0]])}


class Lone:
    """A run's folder, and what writes its checkpoints."""

    def __init__(self, run: Path, *, keep: int = 3, keep_every: int | None = None) -> None:
        self.run, self.engine, self.said = run, FewWeights(), list[str]()
        self.saver = Saver(self.engine, run, CONTRACT, keep=keep, keep_every=keep_every, say=self.said.append)

    def save(self, step: int) -> None:
        """Begin to write weights that are all `step`."""
        self.engine.fill_(step)
        self.saver.save(state_of(step))

    def write(self, *steps: int) -> None:
        """Write checkpoints, and wait for them."""
        for step in steps:
            self.save(step)
        self.saver.finish()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, each of which must be whole."""
        return [read_whole(folder).step for folder in checkpoints(self.run)]

    def latest(self) -> str:
        """Return the name of the newest checkpoint, as people read it."""
        return (self.run / "checkpoints" / "latest").read_text().strip()


def state_of(step: int) -> dict[str, Any]:
    """Return what the loop says of a step."""
    return {
        "step": step,
        "records_seen": 8 * step,
        "world_size": 1,
        "fingerprint": "0" * 16,
        "identity": {"seed": 0},
        "shards": [],
        "versions": {},
        "last_metrics": {"loss": 1 / (step + 2)},
        "alarms": {"spikes": [0.1, 2.0]},
    }


def flip(path: Path, place: int) -> None:
    """Change a bit."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
