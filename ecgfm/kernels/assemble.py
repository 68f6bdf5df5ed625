"""The tokens that go into a transformer: those that stand before, tokens with their positions, and mask tokens.

An encoder has registers before its tokens; a predictor has mask tokens after them, each with the position of what is to
be guessed. In bytes a feature of a predictor under autocast, where what goes out is float32, and K of N tokens are
seen:

    torch       gather positions 4 + 4, add them 2 + 4 + 4 (the seen) or 4 + 4 (the asked), join 4 + 4   22 or more
    here        read a token 2 (the seen alone), write 4; positions lie in the cache                       4 to 6

Backward the gradient of the tokens is a piece of what comes in, in the tokens' type: 4 + 2, here as there. Shapes: B
windows, E tokens before, N positions, K seen tokens, M mask tokens, J = E + K + M, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ecgfm.kernels.dispatch import triton_runs


def reference(
    tokens_BKD: Tensor,
    position_ND: Tensor,
    keep_BK: Tensor | None,
    before_ED: Tensor | None,
    mask_D: Tensor | None,
    hide_BM: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Do what `assemble` does, in plain torch."""
    rows = len(tokens_BKD)
    parts = [] if before_ED is None else [before_ED.expand(rows, -1, -1).to(dtype)]
    parts.append((tokens_BKD + (position_ND if keep_BK is None else at(position_ND, keep_BK))).to(dtype))
    if hide_BM is not None:
        assert mask_D is not None
        parts.append((mask_D + at(position_ND, hide_BM)).to(dtype))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def at(position_ND: Tensor, index_BK: Tensor) -> Tensor:
    """Return position_BKD. An embedding's gradient sums over windows at once, and knows no tensor of (B, N, D)."""
    return functional.embedding(index_BK, position_ND)


def assemble(
    tokens_BKD: Tensor,
    position_ND: Tensor,
    keep_BK: Tensor | None = None,
    *,
    before_ED: Tensor | None = None,
    mask_D: Tensor | None = None,
    hide_BM: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """Return tokens_BJD: what stands before, each token plus its position, the mask token plus each hidden position.

    Sums are in float32 and rounded once, but for those of two tensors of 16 bits on a CPU. All but the indices may
    have gradients.

    Args:
        tokens_BKD: The seen tokens.
        position_ND: Positions.
        keep_BK: Which positions the tokens have; the first K in order by default. Not checked on a GPU.
        before_ED: Tokens without a position, the same in each window.
        mask_D: The mask token, where there is `hide_BM`.
        hide_BM: Positions at which a mask token stands.
        dtype: Of what comes out.
    """
    if triton_runs(tokens_BKD, position_ND, keep_BK, before_ED, mask_D, hide_BM):
        from ecgfm.kernels._assemble_triton import assemble_op

        out: Tensor = assemble_op(tokens_BKD, position_ND, keep_BK, before_ED, mask_D, hide_BM, dtype)
        return out
    return reference(tokens_BKD, position_ND, keep_BK, before_ED, mask_D, hide_BM, dtype)
