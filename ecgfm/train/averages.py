"""Moving averages of weights, in float32, however DeepSpeed holds the weights.

A target encoder inside an engine of bfloat16 weights would be rounded at each step and go astray: at a momentum of
0.9995 most of its moves are smaller than half a digit. So the average is always kept and moved in float32, from
float32 weights, and wherever ZeRO has put the pieces of those: each rank moves its own, and no weight is gathered.

- Float32 weights, ZeRO 0 to 2: the target's weights are whole on each rank, and nothing is to be done after the move.
- Float32 weights, ZeRO 3: the target is cut as the source is. What ZeRO keeps whole on each rank, the small weights,
  is gathered after the move, in one collective.
- Masters beside 16 bits, ZeRO 1 and 2: the average is cut as the masters are, beside a target of 16 bits that is
  gathered after the move, in one collective for each of AdamW's groups.
- Masters beside 16 bits, ZeRO 3: the average is cut as the masters are, beside the target's pieces of 16 bits; as for
  float32 the small weights are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ecgfm.objectives.base import Objective, lerp_


class Pair(NamedTuple):
    """A weight that follows another."""

    name: str
    """The follower's, in the objective."""
    target: Any
    source: Any


class Averages:
    """Of weights that are float32 and whole on each rank; the base of the others.

    Args:
        pairs: What follows what.
    """

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def move_(self, momentum: float) -> None:
        """Move the averages towards their sources. All ranks must call it."""
        lerp_([pair.target for pair in self.pairs], [pair.source for pair in self.pairs], momentum)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and value of the averages that are kept beside the weights. All ranks must go through it."""
        return iter(())

    def set_(self, name: str, value: Tensor) -> None:
        """Set an average that is kept beside the weights; those that are weights are set as such."""


class SplitAverages(Averages):
    """Of ZeRO 3: each rank has a piece of each weight.

    Args:
        pairs: What follows what.
        masters: This rank's piece of each source in float32, which DeepSpeed steps, where the weights are of 16 bits.
    """

    def __init__(self, pairs: list[Pair], masters: list[Tensor] | None) -> None:
        super().__init__(pairs)
        self.masters = masters
        self.kept = [torch.zeros_like(master) for master in masters or ()]

    def move_(self, momentum: float) -> None:
        """Move the averages towards their sources. All ranks must call it."""
        pieces = [pair.target.ds_tensor.data for pair in self.pairs]
        if self.masters is None:
            lerp_(pieces, [pair.source.ds_tensor.data for pair in self.pairs], momentum)
        else:
            lerp_(self.kept, self.masters, momentum, copies=pieces)
        gather_lasting([pair.target for pair in self.pairs])

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and value of the averages that are kept beside the weights. All ranks must go through it."""
        for pair, kept in zip(self.pairs, self.kept, strict=False):  # none are kept beside float32 weights
            yield pair.name, join(kept.to(pair.target.device))[: pair.target.ds_numel].view(pair.target.ds_shape)

    def set_(self, name: str, value: Tensor) -> None:
        """Set an average that is kept beside the weights."""
        for pair, kept in zip(self.pairs, self.kept, strict=False):
            if pair.name == name:
                kept.copy_(piece_of(pair.target, value))


class FlatAverages(Averages):
    """Of 16-bit weights under ZeRO 1 and 2, which lays the weights of a group in one row and cuts it evenly.

    The targets of a group's sources get a row like it, of which each rank moves its piece.

    Args:
        pairs: What follows what.
        optimizer: DeepSpeed's. Each of its groups holds sources alone, or none; see `split_groups_`.
    """

    def __init__(self, pairs: list[Pair], optimizer: Any) -> None:
        super().__init__(pairs)
        self.kept: list[Tensor] = []
        self.masters: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.places: dict[str, tuple[int, int, Pair]] = {}
        by_source = {id(pair.source): pair for pair in pairs}
        groups = zip(
            optimizer.bit16_groups, optimizer.bit16_groups_flat, optimizer.single_partition_of_fp32_groups, strict=True
        )
        for weights, flat, master in groups:
            if id(weights[0]) not in by_source:
                continue
            row = torch.zeros_like(flat)
            for weight in weights:
                pair = by_source.pop(id(weight))
                offset = (weight.data_ptr() - flat.data_ptr()) // flat.element_size()
                place = row[offset : offset + weight.numel()].view(weight.shape)
                pair.target.data = place.copy_(pair.target.data)
                self.places[pair.name] = (len(self.rows), offset, pair)
            self.rows.append(row)
            self.masters.append(master.detach())
            self.kept.append(torch.zeros_like(master.detach()))
        assert not by_source, "a moving average follows weights that are trained"

    def move_(self, momentum: float) -> None:
        """Move the averages towards their sources. All ranks must call it."""
        pieces = [row[_first(kept) :][: len(kept)] for row, kept in zip(self.rows, self.kept, strict=True)]
        lerp_(self.kept, self.masters, momentum, copies=pieces)
        for row, own in zip(self.rows, pieces, strict=True):
            dist.all_gather_into_tensor(row, own)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and value of the averages that are kept beside the weights. All ranks must go through it."""
        rows = [join(kept.to(row.device)) for row, kept in zip(self.rows, self.kept, strict=True)]
        for name, (number, offset, pair) in self.places.items():
            yield name, rows[number][offset : offset + pair.target.numel()].view(pair.target.shape)

    def set_(self, name: str, value: Tensor) -> None:
        """Set an average that is kept beside the weights."""
        if name in self.places:
            number, offset, _ = self.places[name]
            kept = self.kept[number]
            first = max(offset, _first(kept))
            last = min(offset + value.numel(), _first(kept) + len(kept))
            if first < last:
                kept[first - _first(kept) : last - _first(kept)] = value.flatten()[first - offset : last - offset]


def build_averages(objective: Objective, optimizer: Any, *, stage: int, masters: bool) -> Averages:
    """Return the averages of an objective in DeepSpeed's hands.

    Args:
        objective: It says what follows what.
        optimizer: DeepSpeed's.
        stage: Of ZeRO.
        masters: Whether the weights are of 16 bits, beside float32 masters.
    """
    found = pairs(objective)
    if stage == 3:
        # The place of a source in the masters stays where it is, also in the memory of the host.
        where = optimizer._get_fp32_opt_state_partition
        pieces = [where(pair.source, release_swap_buffers=False)[0].detach() for pair in found]
        return SplitAverages(found, pieces if masters else None)
    return FlatAverages(found, optimizer) if masters else Averages(found)


def pairs(objective: Objective) -> list[Pair]:
    """Return each weight that follows another."""
    names = {id(weight): name for name, weight in objective.named_parameters()}
    return [
        Pair(names[id(target)], target, source)
        for followers, followed in objective.averages()
        for target, source in zip(followers.parameters(), followed.parameters(), strict=True)
    ]


def split_groups_(optimizer: torch.optim.Optimizer, objective: Objective) -> None:
    """Put the weights that an average follows into groups of their own, so that ZeRO lays them in rows of their own."""
    followed = {id(pair.source) for pair in pairs(objective)}
    optimizer.param_groups[:] = [
        {**group, "params": part}
        for group in optimizer.param_groups
        for wanted in (True, False)
        if (part := [weight for weight in group["params"] if (id(weight) in followed) is wanted])
    ]


def piece_of(weight: Any, value: Tensor) -> Tensor:
    """Return this rank's piece of a whole value of a weight that ZeRO 3 has cut; the last pieces end in zeros."""
    length = weight.ds_tensor.numel()
    padded = nn.functional.pad(value.flatten(), (0, length * dist.get_world_size() - value.numel()))
    return padded[length * dist.get_rank() :][:length]


def gather_lasting(weights: list[Any]) -> None:
    """Bring what ZeRO 3 keeps whole on each rank up to its pieces, which changed. All ranks must call it."""
    lasting = [weight for weight in weights if weight.ds_persist]
    if lasting:
        lasting[0].partition(lasting)
        lasting[0].all_gather(lasting)


def join(piece: Tensor) -> Tensor:
    """Return the pieces of all ranks, one after another. All ranks must call it."""
    whole = piece.new_empty(len(piece) * dist.get_world_size())
    dist.all_gather_into_tensor(whole, piece.contiguous())
    return whole


def _first(kept: Tensor) -> int:
    """Return where this rank's piece of a row begins."""
    return len(kept) * dist.get_rank()
