"""The kernel of `ema`: a table says where each program's piece lies, so that one launch has all weights."""

# Triton has no types, and its kernels none of Python's.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Weights that a program moves at once."""
PIECE = 16
"""Times that it does so."""


@triton.jit
def _move(
    table,
    weight,
    COPY: tl.constexpr,
    COPY_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    entry = table + tl.program_id(0).to(tl.int64) * 4
    target = tl.load(entry).to(tl.pointer_type(tl.float32))
    source = tl.load(entry + 1).to(tl.pointer_type(tl.float32))
    length = tl.load(entry + 3)
    for turn in range(PIECE):
        place = turn * BLOCK + tl.arange(0, BLOCK)
        inside = place < length
        before = tl.load(target + place, mask=inside)
        after = before + weight * (tl.load(source + place, mask=inside) - before)
        tl.store(target + place, after, mask=inside)
        if COPY:
            copy = tl.load(entry + 2).to(tl.pointer_type(COPY_TYPE))
            tl.store(copy + place, after.to(COPY_TYPE), mask=inside)


Row = tuple[int, int, int, int]
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@lru_cache(maxsize=16)
def _table(rows: tuple[Row, ...], copy_size: int, device: torch.device) -> Tensor:
    """Return target, source, copy and length of each program's piece. Addresses alone say what is in it."""
    step = BLOCK * PIECE
    pieces = [
        (target + 4 * first, source + 4 * first, copy + copy_size * first, min(step, length - first))
        for target, source, copy, length in rows
        for first in range(0, length, step)
    ]
    return torch.tensor(pieces, dtype=torch.int64).view(-1, 4).to(device)


def launch_(
    targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float, copies: Sequence[Tensor] | None
) -> None:
    """Move the targets; see `ecgfm.kernels.ema.move_`. All tensors are contiguous, and on one device."""
    others = targets if copies is None else copies
    dtype, device = others[0].dtype, targets[0].device
    for target, source, other in zip(targets, sources, others, strict=True):
        assert target.dtype == source.dtype == torch.float32 and other.dtype == dtype, "float32, and copies of one type"
        assert target.shape == source.shape and target.numel() == other.numel(), (target.shape, source.shape)
        assert target.device == source.device == other.device == device, "one device"
    rows = tuple(
        (target.data_ptr(), source.data_ptr(), other.data_ptr(), target.numel())
        for target, source, other in zip(targets, sources, others, strict=True)
    )
    table = _table(rows, others[0].element_size(), device)
    if len(table):
        _move[(len(table),)](table, weight, COPY=copies is not None, COPY_TYPE=TYPES[dtype], BLOCK=BLOCK, PIECE=PIECE)
