"""Blocks one after another, which may forget what is within each and compute it again for the backward pass.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. Gradients are the same to the last bit, and the running averages of
a batch norm move once: see `norms.averages_held`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecgfm.nn.norms import BatchNorm, averages_held

Contexts = tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]


class Blocks(nn.Sequential):
    """Blocks, each of which takes what the one before gave, and all of them the same other inputs."""

    recomputed: bool = False
    """Whether they are computed again. What lies between two blocks is kept."""

    def forward(self, values: Tensor, *others: Tensor | None) -> Tensor:
        """Return what the last block gives.

        Args:
            values: What goes into the first.
            others: What each block takes besides.
        """
        for block in self:
            values = self._run(block, values, *others)
        return values

    def each(self, values: Tensor, *others: Tensor | None) -> Iterator[Tensor]:
        """Yield what each block gives."""
        for block in self:
            values = self._run(block, values, *others)
            yield values

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if not (self.recomputed and torch.is_grad_enabled()):
            out: Tensor = block(*inputs)
        elif any(isinstance(part, BatchNorm) for part in block.modules()):
            out = _again_with_averages_held(block, *inputs)
        else:
            out = checkpoint(block, *inputs, use_reentrant=False)
        return out


# torch.compile knows no contexts around the second time: such a block is left as it is.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _again_with_averages_held(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    def contexts() -> Contexts:
        return contextlib.nullcontext(), averages_held(block)

    out: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return out
