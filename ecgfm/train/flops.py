"""How much a step computes.

The operations are counted once, by torch's own counter, in a forward and backward pass of the objective on the meta
device: nothing is computed. These are the *model's*: what activation checkpointing computes a second time is not among
them (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B). Only products of matrices, convolutions and
attention are counted; a multiplication and an addition are two operations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ecgfm.data.batch import Batch, Draws
from ecgfm.objectives.base import Objective, Progress

ROWS = 2
"""Windows of the batch that is counted: batch norm needs more than one value."""
STEPS = 33
"""Steps whose masks are drawn to find a usual one."""


def window_flops(objective: Objective, *, num_leads: int, window_samples: int, rate_hz: float) -> int:
    """Return the operations of a window's forward and backward pass.

    Where masks hide a random share of the tokens, it is that of the median among some steps.

    Args:
        objective: On the meta device, of its own: it gets gradients.
        num_leads: Of the signal.
        window_samples: T.
        rate_hz: Samples a second.
    """
    views = usual_views(objective, num_leads=num_leads, window_samples=window_samples, rate_hz=rate_hz)
    on_meta: dict[str, Any] = {name: value.to("meta") for name, value in batch_tensors(views).items()}
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(objective(replace(views, **on_meta), Progress(step=0, schedule_steps=1))["loss"])
    return int(counter.get_total_flops()) // ROWS


def usual_views(objective: Objective, *, num_leads: int, window_samples: int, rate_hz: float) -> Batch:
    """Return what the objective sees of `ROWS` windows of zeros, with masks of the size that is the median of `STEPS`.

    Args:
        objective: On the meta device.
        num_leads: Of the signal.
        window_samples: T.
        rate_hz: Samples a second.
    """
    labels = objective.labels(objective.config)
    batch = Batch(
        signal_BLT=torch.zeros(ROWS, num_leads, window_samples),
        microvolt_per_count_B=torch.ones(ROWS),
        database_B=torch.zeros(ROWS, dtype=torch.int64),
        rate_hz=rate_hz,
        mean_mv_BL=torch.zeros(ROWS, num_leads),
        std_mv_BL=torch.ones(ROWS, num_leads),
        labels_BC=torch.zeros(ROWS, len(labels)) if labels else None,
        patient_B=torch.arange(ROWS) if objective.asks_patients(objective.config) else None,
    )
    drawn = [
        objective.views(batch, Draws(seed=0, step=step, rows=(0, ROWS), all_rows=ROWS, device=torch.device("cpu")))
        for step in range(STEPS)
    ]
    return sorted(drawn, key=lambda views: [tuple(value.shape) for value in batch_tensors(views).values()])[STEPS // 2]


def batch_tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Return the tensors of a batch by name."""
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
