"""The figures of a logged step: losses as means over steps and ranks, rates, norms, waiting, memory.

What they mean:

- `records_per_s`, `tokens_per_s`: windows, and tokens of whole windows (whether the encoder sees all of them or a
  masked part), over all ranks, since the last logged step; checkpoints are not counted.
- `tflops`: the model's operations of one device in 10^12 a second, see flops.py; `mfu`, the share of the peak that
  this is, where the peak is known: of dense bfloat16, whatever the run's precision.
- `loader_wait`: share of that time in which the step waited for its next windows, on the rank that waited most.
- `memory_gb`: most memory that was ever in use, on the rank that used most, in 10^9 bytes: allocated by torch on a GPU,
  of the process on a CPU.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecgfm.objectives._by_database import settled
from ecgfm.objectives.base import Losses
from ecgfm.train.engine import Engine


@dataclass(frozen=True, kw_only=True)
class WindowCost:
    """What a window takes."""

    tokens: int
    """Of a whole window."""
    flops: int
    """Operations of its forward and backward pass."""
    peak_tflops: float | None = None
    """Of one device, in 10^12 operations a second, where it is known."""


class Meter:
    """Collects figures between two logged steps, and waits for the device only at those.

    Args:
        engine: Of the run.
        cost: Of one of its windows.
    """

    def __init__(self, engine: Engine, cost: WindowCost) -> None:
        self._engine = engine
        self._cost = cost
        self._waited = 0.0
        self._good = 0
        self._total = torch.zeros((), device=engine.world.device)
        self._records = 0
        self._since = time.perf_counter()

    def step(self, micro_losses: Tensor, records: int, *, good: bool) -> None:
        """Note a finished step.

        Args:
            micro_losses: Of this rank, shape (micro-batches,).
            records: Windows of the step, over all ranks.
            good: Whether the weights were moved.
        """
        self._records += records
        if good:
            self._good += 1
            self._total += micro_losses.mean()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for the loader."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def figures(self, step: int, losses: Losses, values: dict[str, float]) -> dict[str, Any]:
        """Return the figures of a logged step, as means over ranks where nothing else is said. All ranks must call it.

        `loss` is the mean of the good steps since the last logged one. What is not finite, in a step that was
        skipped, is left out.

        Args:
            step: Finished steps.
            losses: Of the step's last micro-batch, on this rank.
            values: What the schedules say.
        """
        world = self._engine.world
        total = self._total / self._good if self._good else torch.full_like(self._total, math.nan)
        last = {name: value for name, value in losses.items() if name != "loss"}
        means = torch.stack([value.detach().float() for value in (total, *last.values())]).cpu()
        # The device is done by now: this is the time that the steps took.
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        own_R2 = torch.zeros(world.size, 2)
        own_R2[world.rank] = torch.tensor([min(self._waited / elapsed, 1.0), peak_memory_gb(world.device)])
        # One collective for both: the mean of what only one rank has said, times the ranks, is what it said.
        mean = world.mean(torch.cat([means, own_R2.flatten()]))
        named = settled(dict(zip(("loss", *last), mean[: len(means)].tolist(), strict=True)))
        wait, memory = (mean[len(means) :].view(world.size, 2) * world.size).amax(dim=0).tolist()
        norm = self._engine.gradient_norm()
        if norm is not None:
            named["gradient_norm"] = norm
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        rate = self._records / elapsed
        speed = {"records_per_s": rate, "tokens_per_s": rate * self._cost.tokens}
        speed["tflops"] = rate / world.size * self._cost.flops / 1e12
        if self._cost.peak_tflops:
            speed["mfu"] = speed["tflops"] / self._cost.peak_tflops
        self._good = 0
        self._total.zero_()
        self.pause()
        return {"step": step, **finite, **values, **speed, "loader_wait": wait, "memory_gb": memory}

    def pause(self) -> None:
        """Begin the rates anew after something that is not training."""
        self._records, self._waited, self._since = 0, 0.0, time.perf_counter()


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that this process ever had in use, in 10^9 bytes: on a GPU, of what torch allocated."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # In kB, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
