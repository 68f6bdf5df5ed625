"""Moving averages of many weights in one launch, with a rounded copy where the weights are of 16 bits.

In bytes a weight: read average and source 4 + 4, write the average 4, as torch._foreach_lerp_ does in a few launches;
the copy is 2 more here and 4 + 2 in a pass of its own: 14 against 18. Nothing is launched for each weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ecgfm.kernels.dispatch import triton_runs


def reference(
    targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float, copies: Sequence[Tensor] | None = None
) -> None:
    """Do what `move_` does, in plain torch."""
    torch._foreach_lerp_(list(targets), list(sources), weight)
    if copies is not None:
        torch._foreach_copy_(list(copies), list(targets), non_blocking=True)


@torch.no_grad()
def move_(
    targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float, copies: Sequence[Tensor] | None = None
) -> None:
    """Move each target towards its source: target + weight * (source - target).

    Args:
        targets: float32.
        sources: float32, of the same shapes.
        weight: From 0 to 0.5.
        copies: Where the moved targets are written too, in these tensors' type; one for each target.
    """
    if not targets:
        return
    everything = [*targets, *sources, *(copies or ())]
    if triton_runs(*everything) and all(each.is_contiguous() for each in everything):
        from ecgfm.kernels._ema_triton import launch_

        launch_(targets, sources, weight, copies)
    else:
        reference(targets, sources, weight, copies)
