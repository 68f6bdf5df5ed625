"""A narrow transformer that says what stands at hidden tokens, from the visible ones and from positions.

The predictor of Assran et al. 2023 (https://arxiv.org/abs/2301.08243, section 3) and the decoder of He et al. 2022
(https://arxiv.org/abs/2111.06377, section 3) are this one thing with another width of what comes out.

Shapes: B windows, L leads, S steps, N tokens, K kept tokens, M hidden tokens, D encoder width, P predictor width, O
width of what comes out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ecgfm.kernels.assemble import assemble
from ecgfm.nn.blocks import INIT_STD, blocks, norm
from ecgfm.nn.positions import HeldPositions


class Predictor(nn.Module):
    """Guesses hidden tokens.

    Args:
        encoder_width: Features of the visible tokens.
        width: Its own.
        depth: Blocks.
        num_heads: Attention heads; must divide the width.
        out_width: Features of a guess; the encoder's by default.
        num_leads: Leads whose tokens come one lead's after another's, each with an embedding; 1 has none.
    """

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        num_heads: int,
        *,
        out_width: int | None = None,
        num_leads: int = 1,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = blocks(width, depth, num_heads, mlp_ratio=4.0)
        self.norm = norm(width)
        self.project = nn.Linear(width, out_width or encoder_width, bias=False)
        for weight in (self.embed.weight, self.project.weight, self.mask_token):
            nn.init.trunc_normal_(weight, std=INIT_STD)
        self.lead = nn.Parameter(torch.empty(num_leads, width)) if num_leads > 1 else None
        if self.lead is not None:
            nn.init.trunc_normal_(self.lead, std=INIT_STD)
        self._positions = HeldPositions(width)

    def forward(self, context_BKD: Tensor, keep_BK: Tensor, hide_BM: Tensor) -> Tensor:
        """Return guess_BMO for the tokens at `hide_BM`."""
        tokens = keep_BK.shape[1] + hide_BM.shape[1]
        leads = 1 if self.lead is None else len(self.lead)
        position_NP = self._positions(tokens // leads, context_BKD.device)
        if self.lead is not None:
            position_NP = (self.lead[:, None] + position_NP).flatten(0, 1)
        tokens_BNP = assemble(
            self.embed(context_BKD),
            position_NP,
            keep_BK,
            mask_D=self.mask_token.flatten(),
            hide_BM=hide_BM,
            # The weights' type: the positions are float32, and weights of 16 bits take no other.
            dtype=self.mask_token.dtype,
        )
        mixed_BNP = self.norm(self.blocks(tokens_BNP))
        guess: Tensor = self.project(mixed_BNP[:, keep_BK.shape[1] :])
        return guess
