"""Take and place tokens by index.

Shapes: B windows, N tokens, K kept tokens, D width.
"""

from __future__ import annotations

from torch import Tensor


def take(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Return tokens_BKD, the tokens at `index_BK`."""
    return tokens_BND.gather(1, index_BK[:, :, None].expand(-1, -1, tokens_BND.shape[2]))
