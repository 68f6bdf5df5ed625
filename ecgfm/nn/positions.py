"""Fixed sine and cosine positions of tokens in time.

Shapes: N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_PERIOD = 10_000.0


def sincos_positions(tokens: int, width: int) -> Tensor:
    """Return positions_ND: sines in the first half, cosines in the second.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5, in the order of MAE's code.
    """
    assert width % 2 == 0, width
    frequency = LARGEST_PERIOD ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()
