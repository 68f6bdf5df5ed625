"""The figures of a logged step: losses as means over steps and ranks, rates, norms."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from ecgfm.objectives.base import Losses
from ecgfm.train.engine import Engine


class Meter:
    """Collects figures between two logged steps, and waits for the device only at those.

    Args:
        engine: Of the run.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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

    def figures(self, step: int, losses: Losses, values: dict[str, float]) -> dict[str, Any]:
        """Return the figures of a logged step, as means over ranks. All ranks must call it.

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
        mean = world.mean(torch.stack([value.detach().float() for value in (total, *last.values())]))
        named = dict(zip(("loss", *last), mean.tolist(), strict=True))
        norm = self._engine.gradient_norm()
        if norm is not None:
            named["gradient_norm"] = norm
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        now = time.perf_counter()
        rate = self._records / max(now - self._since, 1e-9)
        self._good, self._records, self._since = 0, 0, now
        self._total.zero_()
        return {"step": step, **finite, **values, "records_per_s": rate}

    def pause(self) -> None:
        """Begin the rate anew after something that is not training."""
        self._records, self._since = 0, time.perf_counter()
