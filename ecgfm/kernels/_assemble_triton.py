"""The kernel of `assemble`: one feature an element, in the order in which they are written."""

# Triton has no types, and its kernels none of Python's.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK = 1024
"""Features of a program."""


@triton.jit
def _assemble(
    tokens,
    position,
    keep,
    before,
    mask_token,
    hide,
    out,
    tokens_b,
    tokens_k,
    tokens_d,
    position_n,
    position_d,
    keep_b,
    keep_k,
    before_e,
    before_d,
    hide_b,
    hide_m,
    mask_d,
    num_before,
    num_seen,
    num_features,
    D: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_HIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_features
    row, feature = place // D, place % D
    seen_row = row - num_before
    hidden_row = seen_row - num_seen
    is_seen = inside & (seen_row >= 0) & (hidden_row < 0)
    if HAS_KEEP:
        index = tl.load(keep + window * keep_b + seen_row * keep_k, mask=is_seen, other=0)
    else:
        index = seen_row.to(tl.int64)
    value = tl.load(tokens + window * tokens_b + seen_row * tokens_k + feature * tokens_d, mask=is_seen, other=0.0)
    total = value.to(tl.float32)
    has_position = is_seen
    if HAS_HIDE:
        is_hidden = inside & (hidden_row >= 0)
        hidden_index = tl.load(hide + window * hide_b + hidden_row * hide_m, mask=is_hidden, other=0)
        index = tl.where(is_hidden, hidden_index, index)
        total += tl.load(mask_token + feature * mask_d, mask=is_hidden, other=0.0).to(tl.float32)
        has_position = has_position | is_hidden
    if HAS_BEFORE:
        is_before = inside & (seen_row < 0)
        total += tl.load(before + row * before_e + feature * before_d, mask=is_before, other=0.0).to(tl.float32)
    placed = tl.load(position + index * position_n + feature * position_d, mask=has_position, other=0.0)
    total += placed.to(tl.float32)
    tl.store(out + window * num_features + place, total.to(out.dtype.element_ty), mask=inside)


@triton_op("ecgfm::assemble", mutates_args=())
def assemble_op(
    tokens_BKD: Tensor,
    position_ND: Tensor,
    keep_BK: Tensor | None,
    before_ED: Tensor | None,
    mask_D: Tensor | None,
    hide_BM: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return tokens_BJD; see `ecgfm.kernels.assemble.assemble`."""
    rows, seen, width = tokens_BKD.shape
    before = 0 if before_ED is None else len(before_ED)
    hidden = 0 if hide_BM is None else hide_BM.shape[1]
    out_BJD = tokens_BKD.new_empty((rows, before + seen + hidden, width), dtype=dtype)
    if out_BJD.numel() == 0:
        return out_BJD
    features = (before + seen + hidden) * width
    wrap_triton(_assemble)[(rows, -(-features // BLOCK))](
        tokens_BKD,
        position_ND,
        tokens_BKD if keep_BK is None else keep_BK,
        tokens_BKD if before_ED is None else before_ED,
        tokens_BKD if mask_D is None else mask_D,
        tokens_BKD if hide_BM is None else hide_BM,
        out_BJD,
        *tokens_BKD.stride(),
        *position_ND.stride(),
        *((0, 0) if keep_BK is None else keep_BK.stride()),
        *((0, 0) if before_ED is None else before_ED.stride()),
        *((0, 0) if hide_BM is None else hide_BM.stride()),
        0 if mask_D is None else mask_D.stride(0),
        before,
        seen,
        features,
        D=width,
        HAS_BEFORE=before > 0,
        HAS_KEEP=keep_BK is not None,
        HAS_HIDE=hidden > 0,
        BLOCK=BLOCK,
    )
    return out_BJD


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens_BKD, position_ND, keep_BK, before_ED, mask_D, hide_BM, _ = inputs
    ctx.save_for_backward(keep_BK, hide_BM)
    ctx.seen = tokens_BKD.shape[1]
    ctx.before = 0 if before_ED is None else len(before_ED)
    ctx.positions = len(position_ND)
    ctx.dtypes = [None if each is None else each.dtype for each in (tokens_BKD, position_ND, before_ED, mask_D)]


def _backward(ctx: Any, grad_BJD: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients: pieces and sums of what comes in, which torch does in one pass each."""
    keep_BK, hide_BM = ctx.saved_tensors
    tokens_type, position_type, before_type, mask_type = ctx.dtypes
    tokens, position, _, before, mask, _, _ = ctx.needs_input_grad
    last = ctx.before + ctx.seen
    # What has no mask tokens has none in the middle either.
    seen_BKD, hidden_BMD = grad_BJD[:, ctx.before : last], grad_BJD[:, last:]
    grads: list[Tensor | None] = [seen_BKD.to(tokens_type) if tokens else None]
    position_ND = None
    if position:
        position_ND = grad_BJD.new_zeros((ctx.positions, grad_BJD.shape[2]), dtype=torch.float32)
        if keep_BK is None:
            position_ND[: ctx.seen] += seen_BKD.sum(0, dtype=torch.float32)
        else:
            position_ND.index_add_(0, keep_BK.flatten(), seen_BKD.flatten(0, 1).float())
        if hide_BM is not None:
            position_ND.index_add_(0, hide_BM.flatten(), hidden_BMD.flatten(0, 1).float())
        position_ND = position_ND.to(position_type)
    before_ED = grad_BJD[:, : ctx.before].sum(0, dtype=torch.float32).to(before_type) if before else None
    mask_D = hidden_BMD.sum((0, 1), dtype=torch.float32).to(mask_type) if mask else None
    return (*grads, position_ND, None, before_ED, mask_D, None, None)


assemble_op.register_autograd(_backward, setup_context=_remember)
