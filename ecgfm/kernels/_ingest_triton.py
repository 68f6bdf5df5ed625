"""The kernel of `ingest`: one value an element, in the order of the patches that are written.

Reads of a patch of all leads are L runs of P counts, one in each lead; writes are in order.
"""

# Triton has no types, and its kernels none of Python's.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK = 1024
"""Values of a program."""


@triton.jit
def _ingest(
    counts,
    offset,
    factor,
    shift,
    index,
    out,
    clip,
    stride_b,
    stride_l,
    stride_t,
    scale_b,
    scale_l,
    index_b,
    index_k,
    num_values,
    steps,
    V: tl.constexpr,
    P: tl.constexpr,
    APART: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_values
    number, value = place // V, place % V
    if HAS_INDEX:
        token = tl.load(index + window * index_b + number * index_k, mask=inside, other=0).to(tl.int32)
    else:
        token = number
    if APART:
        lead, sample = token // steps, token % steps * P + value
    else:
        lead, sample = value // P, token * P + value % P
    # The factors of a window are a few numbers, which the first level of cache holds.
    scale = window * scale_b + lead * scale_l
    count = tl.load(counts + window * stride_b + lead * stride_l + sample * stride_t, mask=inside, other=0)
    scaled = count.to(tl.float32)
    if HAS_OFFSET:
        scaled -= tl.load(offset + scale, mask=inside, other=0.0)
    scaled *= tl.load(factor + scale, mask=inside, other=0.0)
    if HAS_SHIFT:
        scaled += tl.load(shift + scale, mask=inside, other=0.0)
    clipped = tl.minimum(tl.maximum(scaled, -clip), clip)
    tl.store(out + window * num_values + place, clipped.to(out.dtype.element_ty), mask=inside)


@triton_op("ecgfm::ingest", mutates_args=())
def ingest(
    counts_BLT: Tensor,
    offset_BL: Tensor | None,
    factor_BL: Tensor,
    shift_BL: Tensor | None,
    clip: float,
    patch_samples: int,
    index_BK: Tensor | None,
    leads_apart: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return patches_BKV; see `ecgfm.kernels.ingest.patches`."""
    rows, leads, samples = counts_BLT.shape
    steps = samples // patch_samples
    size = patch_samples if leads_apart else leads * patch_samples
    taken = (leads * steps if leads_apart else steps) if index_BK is None else index_BK.shape[1]
    out_BKV = counts_BLT.new_empty((rows, taken, size), dtype=dtype)
    if out_BKV.numel() == 0:
        return out_BKV
    # One layout for the three of them.
    factor_BL = factor_BL.contiguous()
    offset_BL, shift_BL = (None if each is None else each.contiguous() for each in (offset_BL, shift_BL))
    wrap_triton(_ingest)[(rows, -(-(taken * size) // BLOCK))](
        counts_BLT,
        factor_BL if offset_BL is None else offset_BL,
        factor_BL,
        factor_BL if shift_BL is None else shift_BL,
        counts_BLT if index_BK is None else index_BK,
        out_BKV,
        clip,
        *counts_BLT.stride(),
        *factor_BL.stride(),
        *((0, 0) if index_BK is None else index_BK.stride()),
        taken * size,
        steps,
        V=size,
        P=patch_samples,
        APART=leads_apart,
        HAS_OFFSET=offset_BL is not None,
        HAS_SHIFT=shift_BL is not None,
        HAS_INDEX=index_BK is not None,
        BLOCK=BLOCK,
    )
    return out_BKV
