"""The kernels of `masked_error`: some hidden tokens a program, and of each of them all features at once."""

# Triton has no types, and its kernels none of Python's.
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ecgfm.kernels.masked_error import NORM_EPS

FEATURES = 2048
"""Of a program, over all its tokens."""


@triton.jit
def _difference(
    guess,
    target,
    hide,
    guess_b,
    guess_m,
    guess_d,
    target_b,
    target_n,
    target_d,
    hide_b,
    hide_m,
    num_rows,
    num_hidden,
    eps,
    NORM: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return guess - target, 0 outside, and where it is inside."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    feature = tl.arange(0, BLOCK)
    window, place = row // num_hidden, row % num_hidden
    inside = (row < num_rows)[:, None] & (feature < D)[None, :]
    token = tl.load(hide + window * hide_b + place * hide_m, mask=row < num_rows, other=0)
    at_target = (window * target_b + token * target_n)[:, None] + (feature * target_d)[None, :]
    at_guess = (window * guess_b + place * guess_m)[:, None] + (feature * guess_d)[None, :]
    value = tl.load(target + at_target, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        centred = tl.where(inside, value - (tl.sum(value, axis=1) / D)[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / D
        value = centred * (1.0 / tl.sqrt(variance + eps))[:, None]
    return tl.load(guess + at_guess, mask=inside, other=0.0).to(tl.float32) - value, inside


@triton.jit
def _forward(
    guess,
    target,
    hide,
    out,
    guess_b,
    guess_m,
    guess_d,
    target_b,
    target_n,
    target_d,
    hide_b,
    hide_m,
    num_rows,
    num_hidden,
    eps,
    SMOOTH: tl.constexpr,
    NORM: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    difference, _ = _difference(
        guess,
        target,
        hide,
        guess_b,
        guess_m,
        guess_d,
        target_b,
        target_n,
        target_d,
        hide_b,
        hide_m,
        num_rows,
        num_hidden,
        eps,
        NORM,
        D,
        ROWS,
        BLOCK,
    )
    size = tl.abs(difference)
    if SMOOTH:
        size = tl.where(size < 1.0, 0.5 * size * size, size - 0.5)
    tl.store(out + tl.program_id(0), tl.sum(size))


@triton.jit
def _backward_kernel(
    guess,
    target,
    hide,
    out,
    scale,
    guess_b,
    guess_m,
    guess_d,
    target_b,
    target_n,
    target_d,
    hide_b,
    hide_m,
    num_rows,
    num_hidden,
    eps,
    SMOOTH: tl.constexpr,
    NORM: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    difference, inside = _difference(
        guess,
        target,
        hide,
        guess_b,
        guess_m,
        guess_d,
        target_b,
        target_n,
        target_d,
        hide_b,
        hide_m,
        num_rows,
        num_hidden,
        eps,
        NORM,
        D,
        ROWS,
        BLOCK,
    )
    # As torch: a guess that is right has no gradient, and one that is no number has none that is.
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
    slope = tl.where(tl.abs(difference) < 1.0, difference, sign) if SMOOTH else sign
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * D + tl.arange(0, BLOCK)[None, :]
    tl.store(out + at, (slope * tl.load(scale)).to(out.dtype.element_ty), mask=inside)


def _shape(guess_BMD: Tensor) -> tuple[int, int, int, int]:
    """Return B * M, D, its next power of two, and the tokens of a program."""
    rows, width = guess_BMD.shape[0] * guess_BMD.shape[1], guess_BMD.shape[2]
    block = triton.next_power_of_2(width)
    return rows, width, block, max(1, FEATURES // block)


@triton_op("ecgfm::masked_error", mutates_args=())
def masked_error_op(guess_BMD: Tensor, target_BND: Tensor, hide_BM: Tensor, smooth: bool, norm: bool) -> Tensor:
    """Return the mean error; see `ecgfm.kernels.masked_error.masked_error`."""
    num_rows, width, block, rows = _shape(guess_BMD)
    if guess_BMD.numel() == 0:
        return guess_BMD.new_full((), torch.nan, dtype=torch.float32)  # as torch's mean of nothing
    programs = -(-num_rows // rows)
    sums = guess_BMD.new_empty(programs, dtype=torch.float32)
    wrap_triton(_forward)[(programs,)](
        guess_BMD,
        target_BND,
        hide_BM,
        sums,
        *guess_BMD.stride(),
        *target_BND.stride(),
        *hide_BM.stride(),
        num_rows,
        hide_BM.shape[1],
        NORM_EPS,
        SMOOTH=smooth,
        NORM=norm,
        D=width,
        ROWS=rows,
        BLOCK=block,
    )
    return sums.sum() / guess_BMD.numel()


@triton_op("ecgfm::masked_error_backward", mutates_args=())
def _gradient(grad: Tensor, guess_BMD: Tensor, target_BND: Tensor, hide_BM: Tensor, smooth: bool, norm: bool) -> Tensor:
    """Return the gradient of the guess."""
    num_rows, width, block, rows = _shape(guess_BMD)
    out_BMD = guess_BMD.new_empty(guess_BMD.shape)
    if guess_BMD.numel() == 0:
        return out_BMD
    # In memory and not a number: it is on the device, for which nobody shall wait.
    scale = (grad.float() / guess_BMD.numel()).reshape(1)
    wrap_triton(_backward_kernel)[(-(-num_rows // rows),)](
        guess_BMD,
        target_BND,
        hide_BM,
        out_BMD,
        scale,
        *guess_BMD.stride(),
        *target_BND.stride(),
        *hide_BM.stride(),
        num_rows,
        hide_BM.shape[1],
        NORM_EPS,
        SMOOTH=smooth,
        NORM=norm,
        D=width,
        ROWS=rows,
        BLOCK=block,
    )
    return out_BMD


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    guess_BMD, target_BND, hide_BM, smooth, norm = inputs
    ctx.save_for_backward(guess_BMD, target_BND, hide_BM)
    ctx.smooth, ctx.norm = smooth, norm


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    guess_grad = _gradient(grad, *ctx.saved_tensors, ctx.smooth, ctx.norm) if ctx.needs_input_grad[0] else None
    return guess_grad, None, None, None, None


masked_error_op.register_autograd(_backward, setup_context=_remember)
