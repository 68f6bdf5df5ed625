"""Norms of convolutional encoders, and what a batch is when several ranks train.

Batch norm (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167) normalises each channel over the batch and over
time, and keeps running averages of mean and variance, buffers that the published encoder then uses. Every rank has a
piece of the batch only, and DeepSpeed averages gradients and never buffers, so it must be said which batch is meant:

- `batch` (default): the micro-batch of all ranks. Two ranks then do what one does with twice the rows, and all of them
  hold the same running averages. A collective for each norm, forward and backward, which all ranks must reach.
- `rank-batch`: each rank's own rows. No collective; the running averages differ from rank to rank, checkpoints hold
  those of rank 0, and all ranks go on from these. Training does not read them: a run still resumes to the same weights.
- `group` (Wu and He 2018, https://arxiv.org/abs/1803.08494): each record by itself, the same in training and after.

Either batch norm sees micro-batches: another `--engine.accumulation` is another normalisation. A batch that is not
finite leaves the running averages as they were, since a step whose gradient is not finite is dropped too. Whoever
follows an encoder by a moving average of its weights copies the buffers beside it. A block whose forward is done
again in backward (activation checkpointing) moves its running averages the first time only.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

Norm = Literal["batch", "rank-batch", "group"]
"""Over what a channel is normalised."""
GROUPS = 32
"""Most groups of a group norm (section 3.2)."""


def channel_norm(kind: Norm, width: int) -> nn.Module:
    """Return a norm over tensors of shape (batch, `width`, ...), of weight 1 and bias 0."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(GROUPS, width), width)
    return BatchNorm(width, over_ranks=kind == "batch")


@contextlib.contextmanager
def averages_held(module: nn.Module) -> Iterator[None]:
    """Leave the running averages of a module's batch norms as they are found, while these normalise by the batch."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        # Also where the forward is cut short, as soon as backward has what it needs.
        for buffer, old in before:
            buffer.data.copy_(old)


class BatchNorm(nn.SyncBatchNorm):
    """Batch norm over the rows of all ranks or of this one, with whatever axes after the channels.

    torch's, whose synchronised form runs on a GPU only; on a CPU several ranks do it here. The running averages stay
    float32 when weights are cast to 16 bits.
    """

    def __init__(self, width: int, *, over_ranks: bool) -> None:
        super().__init__(width)
        self.over_ranks = over_ranks

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape and type. With `over_ranks`, all ranks must call it when they train."""
        if not self.training:
            return self._of_this_rank(values)
        averages = (self.get_buffer("running_mean"), self.get_buffer("running_var"))
        before = [average.clone() for average in averages]
        alone = not (self.over_ranks and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if alone or values.device.type == "meta":  # operations are counted, and other ranks are not asked
            normal = self._of_this_rank(values)
        elif values.device.type == "cpu":
            normal = self._of_all_ranks(values)
        else:
            normal = super().forward(values)
        for average, old in zip(averages, before, strict=True):
            # torch's backward keeps the averages, which it reads in evaluation only: a plain change would alarm it.
            average.data.copy_(torch.where(average.isfinite(), average, old))
        return normal

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        averages = {name: self.get_buffer(name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, average in averages.items():
            moved = self.get_buffer(name)
            if torch.finfo(moved.dtype).bits < torch.finfo(average.dtype).bits:
                # To another device, but to no smaller type: of eight bits an average would soon stand still.
                setattr(self, name, average.to(moved.device))
        return self

    def _of_this_rank(self, values: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if self.training:
            self.get_buffer("num_batches_tracked").add_(1)
        # Float32, as the averages are: of 16 bits beside those, torch takes the values but not the weights.
        weight, bias = self.weight.float(), self.bias.float()
        return nn.functional.batch_norm(values, mean, var, weight, bias, self.training, self.momentum or 0.0, self.eps)

    def _of_all_ranks(self, values: Tensor) -> Tensor:
        """Normalise in float32 over the rows of all ranks, however many each has."""
        values_BCT = values.float().reshape(*values.shape[:2], -1)
        count = torch.tensor([float(values_BCT.shape[0] * values_BCT.shape[2])])
        dist.all_reduce(count)
        mean: Tensor = _Sum.apply(values_BCT.sum((0, 2))) / count
        centred_BCT = values_BCT - mean[:, None]
        variance: Tensor = _Sum.apply(centred_BCT.square().sum((0, 2))) / count
        normal_BCT = centred_BCT * (self.weight / (variance + self.eps).sqrt())[:, None] + self.bias[:, None]
        with torch.no_grad():
            # The unbiased estimate is what torch keeps.
            for name, new in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
                self.get_buffer(name).lerp_(new, self.momentum or 0.0)
            self.get_buffer("num_batches_tracked").add_(1)
        return normal_BCT.reshape(values.shape).to(values.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of theirs. All ranks must call it, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
