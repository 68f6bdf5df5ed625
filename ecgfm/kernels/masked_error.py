"""The mean error of guesses against the target's tokens at the same places, which are taken by index on the way.

In bytes a feature of a guess of bfloat16 against a target of float32 (autocast's layer norm gives that):

    torch       gather 4 + 4, cast the guess 2 + 4, subtract 8 + 4, absolute 4 + 4, sum 4                     38
                backward: sign 4 + 4, times the gradient 4 + 4, cast 4 + 2                                    22
    here        read both 2 + 4; backward read both again 2 + 4, write 2                                   6 + 8

and neither the gathered target nor the difference is kept between the two: 8 bytes a feature of memory. The layer norm
of the target, where there is one, costs torch 4 + 4 and the kernel nothing. Shapes: B windows, N tokens, M hidden
tokens, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ecgfm.kernels.dispatch import triton_runs

NORM_EPS = 1e-5
"""Of the target's layer norm, torch's own."""


def wanted(target_BND: Tensor, hide_BM: Tensor, *, norm: bool) -> Tensor:
    """Return wanted_BMD, float32: the hidden tokens, layer-normed without weights if `norm`."""
    index_BMD = hide_BM[:, :, None].expand(-1, -1, target_BND.shape[2])
    wanted_BMD = target_BND.detach().gather(1, index_BMD).float()
    return functional.layer_norm(wanted_BMD, wanted_BMD.shape[2:], eps=NORM_EPS) if norm else wanted_BMD


def reference(guess_BMD: Tensor, target_BND: Tensor, hide_BM: Tensor, *, smooth: bool, norm: bool) -> Tensor:
    """Do what `masked_error` does, in plain torch."""
    distance = functional.smooth_l1_loss if smooth else functional.l1_loss
    return distance(guess_BMD.float(), wanted(target_BND, hide_BM, norm=norm))


def masked_error(
    guess_BMD: Tensor, target_BND: Tensor, hide_BM: Tensor, *, smooth: bool = False, norm: bool = False
) -> Tensor:
    """Return the mean over all features of the hidden tokens, a float32 scalar. The guess alone has a gradient.

    Args:
        guess_BMD: Of any type of floats.
        target_BND: Of any type of floats, of any type of its own.
        hide_BM: Tokens of the target that the guesses are for. Not checked on a GPU.
        smooth: Half the square instead, where the difference is below 1, and half less beyond (smooth L1).
        norm: Layer-norm the target's tokens, without weights.
    """
    if triton_runs(guess_BMD, target_BND, hide_BM):
        from ecgfm.kernels._masked_error_triton import masked_error_op

        loss: Tensor = masked_error_op(guess_BMD, target_BND.detach(), hide_BM, smooth, norm)
        return loss
    return reference(guess_BMD, target_BND, hide_BM, smooth=smooth, norm=norm)
