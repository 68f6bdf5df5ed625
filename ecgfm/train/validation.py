"""The objective's losses on windows that no step trains on, and nothing of the training moved by it.

Windows are taken in chunks of a fixed size, each chunk with masks of its own that are the same whenever and wherever
it is computed, so any number of ranks comes to the same figures. The module is called as it is, and not DeepSpeed's
engine around it, which would count a micro-batch; without a gradient, in evaluation mode, under the run's precision.

Shapes: N windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import nn

from ecgfm.data.batch import Batch, Draws
from ecgfm.data.prepare import Prepare
from ecgfm.data.validation import ReadShard, ValidationWindows
from ecgfm.errors import ShardError
from ecgfm.objectives._by_database import settled
from ecgfm.objectives.base import Objective, Progress
from ecgfm.rng import derive
from ecgfm.train.world import World

CHUNK = 32
"""Windows that go through the objective together, on whatever number of ranks."""
_SEED = derive(0, "validation masks")  # and not the run's: runs are compared on the same masks


class Validation:
    """Computes the losses of a fixed set of windows. All ranks must make it.

    Args:
        world: The ranks.
        objective: In the engine's hands.
        prepare: What the loop normalises with.
        windows: The set.
        autocast: Compute in bfloat16, as the training does.
        read_shard: Where the shards are not on this machine: see `ValidationWindows.read`.

    Raises:
        ShardError: A record cannot be read, on this or another rank.
    """

    def __init__(
        self,
        world: World,
        objective: Objective,
        prepare: Prepare,
        windows: ValidationWindows,
        *,
        autocast: bool,
        read_shard: ReadShard | None = None,
    ) -> None:
        self._world, self._objective, self._prepare = world, objective, prepare
        self._autocast = autocast
        self._total = len(windows)
        chunks = -(-len(windows) // CHUNK)
        # Where the weights are in pieces every rank must go through the objective equally often: those that have no
        # chunk left take their last one again, or the first, and count it for nothing.
        rounds = -(-chunks // world.size)
        own = list(range(world.rank, chunks, world.size))
        self._own = own + [own[-1] if own else 0] * (rounds - len(own))
        self._count = len(own)
        # Chunks that follow each other lie in the same shards, and each is read from afar once.
        read_shard = lru_cache(maxsize=1)(read_shard) if read_shard else None
        # Read once and kept: 120 kB a window.
        self._read: dict[int, Batch] = {}
        fault = None
        try:
            for number in dict.fromkeys(self._own):
                last = min((number + 1) * CHUNK, len(windows))
                self._read[number] = windows.read(number * CHUNK, last, read_shard)
        except ShardError as error:
            fault = error
        world.agree(fault, patient=True)

    @torch.no_grad()
    def figures(self, at: Progress) -> dict[str, float]:
        """Return the losses, as means over all windows, with `val_` before their names. All ranks must call it."""
        sums: dict[str, torch.Tensor] = {}
        with untouched(self._objective, self._world.device, autocast=self._autocast):
            for place, number in enumerate(self._own):
                batch = self._read[number]
                rows = len(batch.signal_BLT)
                draws = Draws(seed=_SEED, step=number, rows=(0, rows), all_rows=rows, device=self._world.device)
                views = self._objective.views(self._prepare(batch.to(self._world.device)), draws)
                weight = rows if place < self._count else 0
                for name, value in self._objective(views, at).items():
                    sums[name] = sums.get(name, 0.0) + value.detach().double() * weight
        total = torch.stack(list(sums.values())).cpu()
        means = self._world.mean(total) * self._world.size / self._total
        figures = settled(dict(zip(sums, means.tolist(), strict=True)))
        return {f"val_{name}": value for name, value in figures.items()}


@contextlib.contextmanager
def untouched(module: nn.Module, device: torch.device, *, autocast: bool = False) -> Iterator[None]:
    """Have a module in evaluation mode, and every part of it as it was afterwards, with torch's generators."""
    training = [(part, part.training) for part in module.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        module.eval()
        try:
            yield
        finally:
            for part, mode in training:
                part.training = mode
