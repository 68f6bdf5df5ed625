"""How much a step computes, and what of a device's peak that is.

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

PEAK_TFLOPS = {
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "A800": 312.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H800": 989.4,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX A6000": 154.8,
    "MI300X": 1307.4,
}
"""Peak of dense bfloat16 products with float32 sums, in 10^12 operations a second, from the makers' data sheets: half
of what a sheet gives "with sparsity"."""


def peak_tflops(device_name: str) -> float | None:
    """Return the peak of a device that is known by name, such as "NVIDIA H100 80GB HBM3"; None for a slice of one."""
    words = device_name.upper().replace("-", " ").split()
    if "MIG" in words:
        return None
    # The longest name that fits: an "H100 PCIe" is slower than an "H100".
    for name in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if set(name.upper().split()) <= set(words):
            return PEAK_TFLOPS[name]
    return None


def window_flops(objective: Objective, *, num_leads: int, window_samples: int, rate_hz: float) -> int:
    """Return the operations of a window's forward and backward pass.

    Where masks hide a random share of the tokens, it is that of the median among some steps.

    Args:
        objective: On the meta device, of its own: it gets gradients.
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
    usual = sorted(drawn, key=lambda views: [tuple(value.shape) for value in _tensors(views).values()])[STEPS // 2]
    on_meta: dict[str, Any] = {name: value.to("meta") for name, value in _tensors(usual).items()}
    views = replace(usual, **on_meta)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(objective(views, Progress(step=0, schedule_steps=1))["loss"])
    return int(counter.get_total_flops()) // ROWS


def _tensors(views: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(views).items() if isinstance(value, torch.Tensor)}
