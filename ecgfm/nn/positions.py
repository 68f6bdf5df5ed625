"""Fixed sine and cosine positions of tokens in time: to be added to tokens, or to turn queries and keys by.

Shapes: B windows, N tokens, S steps, D width, E features of a head, F = 2 E.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_PERIOD = 10_000.0


def sincos_positions(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return positions_ND: sines in the first half, cosines in the second.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5, in the order of MAE's code.
    """
    assert width % 2 == 0, width
    frequency = LARGEST_PERIOD ** -(torch.arange(width // 2, dtype=torch.float64, device=device) / (width / 2))
    angle = torch.arange(tokens, dtype=torch.float64, device=device)[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class HeldPositions:
    """Positions that are made once for each length and device. No part of a module: they are derived, and in no state.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._held_ND = torch.empty(0, width, device="cpu")

    def __call__(self, tokens: int, device: torch.device) -> Tensor:
        """Return positions_ND, float32."""
        if torch.compiler.is_dynamo_compiling():
            # Part of the graph: what is held changes with the first call, and torch.compile would begin again.
            return sincos_positions(tokens, self.width, device)
        if len(self._held_ND) < tokens or self._held_ND.device != device:
            self._held_ND = sincos_positions(tokens, self.width).to(device)
        return self._held_ND[:tokens]


def rotary_turns(position_SE: Tensor, step_BN: Tensor) -> Tensor:
    """Return turn_B1NF, by which rotary attention turns: the sine of each feature's angle, then the cosines.

    Features i and i + E / 2 share an angle, of the step times 10000^(-2 i / E). A token at step 0 is not turned.

    Args:
        position_SE: `sincos_positions` of as many features as a head has: the sines and cosines of those angles.
        step_BN: Of each token.
    """
    sine_BNH, cosine_BNH = position_SE[step_BN].chunk(2, dim=-1)
    return torch.cat([sine_BNH, sine_BNH, cosine_BNH, cosine_BNH], dim=-1)[:, None]
