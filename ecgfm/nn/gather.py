"""The rows of all ranks, with gradients: what a loss compares a batch with when several ranks train.

A rank's loss is the mean over its own rows, each compared with everybody's. Engines average gradients over ranks; with
the backward pass below, that average is the gradient of one rank with all rows.

Shapes: B rows of this rank, R ranks, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Return how many ranks train together; 1 where nobody has begun any."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(values_BD: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all ranks in their order, and the place of this rank's first row. All ranks must call it.

    The gradient of a row is the sum of what all ranks find for it; where one needs gradients, all must. Without other
    ranks nothing is done. A validation, in which each rank has windows of its own making, must not call it.

    Args:
        values_BD: Of this rank, (B, ...). All ranks have as many.
    """
    if num_ranks() == 1:
        return values_BD, 0
    first = dist.get_rank() * len(values_BD)
    if values_BD.device.type == "meta":  # operations are counted, and other ranks are not asked
        return torch.cat([values_BD] * num_ranks()), first
    rows: Tensor = _Gather.apply(values_BD)
    return rows, first


class _Gather(torch.autograd.Function):
    """The rows of all ranks. All ranks must call it, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values_BD: Tensor) -> Tensor:
        ctx.rows = len(values_BD)
        gathered = values_BD.new_empty(num_ranks() * len(values_BD), *values_BD.shape[1:])
        dist.all_gather_into_tensor(gathered, values_BD.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]
