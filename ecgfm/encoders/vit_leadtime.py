"""Vision transformer over leads and time: one token for each lead and patch.

Na et al. 2024 (ST-MEM), https://arxiv.org/abs/2402.09450, and Kim 2024 (ECG-JEPA), https://arxiv.org/abs/2410.08559.
ST-MEM's code: 12 leads at 250 Hz, patches of 75 samples with a layer norm before and after their linear map, fixed
sine-cosine positions in time, a learned embedding for each lead, and a separator at both ends of each lead's tokens.
Kim's code: 8 leads at 250 Hz, patches of 50 samples, a linear map without norms, fixed sine-cosine or rotary positions
over lead and time, and attention only to tokens of the same lead or of the same time (cross-pattern attention).
Ours: a linear map without norms or bias and the blocks of `vit`; fixed positions in time and a learned embedding for
each lead, as ST-MEM; cross-pattern attention as an option, rotary positions in time as another; and one separator for
each lead as a third, since both of theirs enter as the same vector. A token of a lead that is not there is left out:
any leads can be encoded.

Shapes: B windows, L leads, T samples, S steps, N = L * S tokens, K kept tokens, P samples of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ecgfm.encoders._transformer import Transformer
from ecgfm.encoders.base import check_signal
from ecgfm.errors import SignalError
from ecgfm.kernels.ingest import Counts, patches, product_dtype
from ecgfm.nn.blocks import INIT_STD

NO_STEP = -1
"""The step of a separator, and step and lead of a register."""


class LeadTimeViT(Transformer):
    """Patches of each lead, separators or registers beside them, pre-norm blocks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config):
        """Settings of the vision transformer over leads and time; the defaults are ViT-S."""

        leads_apart: ClassVar[bool] = True
        patch_samples: int = 100
        """Samples of one token of one lead: 100 at 500 Hz are 200 ms, 50 at 250 Hz too."""
        num_registers: int = 0
        """Tokens without a lead or position that take part in attention and are not given out."""
        separators: bool = False
        """Add a token for each lead, without a position, that takes part in attention and is not given out."""
        attention: Literal["all", "cross"] = "all"
        """What a token attends to: all tokens, or those of its own lead and those of its own time (cross)."""

    config: Config

    def __init__(self, config: Config) -> None:
        patch = nn.Linear(config.patch_samples, config.width, bias=False)
        # Tokens as large as their signal, which ST-MEM's layer norm makes of them too. At 0.02 the one lead of a patch
        # is faint beside the positions (0.7), and all windows look alike.
        super().__init__(config, patch, patch_std=config.patch_samples**-0.5)
        self.lead = nn.Parameter(torch.empty(config.num_leads, config.width))
        self.separator = nn.Parameter(torch.empty(1, 1, config.width)) if config.separators else None
        for weight in (self.lead, self.separator):
            if weight is not None:
                nn.init.trunc_normal_(weight, std=INIT_STD)

    def forward(
        self,
        signal_BLT: Tensor | Counts,
        keep_BK: Tensor | None = None,
        leads: Sequence[int] | None = None,
        *,
        registers: bool = False,
    ) -> Tensor:
        """Return tokens_BND, one lead's after another's, or tokens_BKD of the kept ones only.

        Args:
            signal_BLT: Normalised signal, or counts and how they become one. T must be a multiple of `patch_samples`,
                of any length.
            keep_BK: Indices of the tokens to encode; the others take no part.
            leads: Which of the encoder's leads the signal's are, counted from 0; all of them by default.
            registers: Whether the registers are given out too, before the tokens.

        Raises:
            SignalError: Other leads than that, or a length that patches do not fill.
        """
        lead_LD: Tensor = self.lead
        if leads is None:
            check_signal(self.config, signal_BLT)
        else:
            if len(set(leads)) != len(leads) or not all(0 <= lead < self.config.num_leads for lead in leads):
                raise SignalError(f"leads must be different numbers from 0 to {self.config.num_leads - 1}, got {leads}")
            check_signal(replace(self.config, num_leads=len(leads)), signal_BLT)
            lead_LD = lead_LD[list(leads)]
        size, weight = self.config.patch_samples, self.patch.weight
        tokens_BKD = self.patch(patches(signal_BLT, size, keep_BK, leads_apart=True, dtype=product_dtype(weight)))
        steps, device = signal_BLT.shape[2] // size, signal_BLT.device
        place_LSD = lead_LD[:, None].expand(-1, steps, -1)
        if self.config.positions == "sincos":
            place_LSD = lead_LD[:, None] + self._positions(steps, device).to(weight.dtype)
        index_BK = torch.arange(len(lead_LD) * steps, device=device)[None] if keep_BK is None else keep_BK
        return self._attend(
            tokens_BKD,
            index_BK % steps,
            steps,
            position_ND=place_LSD.flatten(0, 1),
            keep_BK=keep_BK,
            beside=[] if self.separator is None else [self.separator + lead_LD],
            sees_B1NN=self._sees(index_BK, steps, len(lead_LD)) if self.config.attention == "cross" else None,
            registers=registers,
        )

    def _sees(self, index_BK: Tensor, steps: int, leads: int) -> Tensor:
        """Return sees_B1NN of registers, separators and tokens: those of one lead or one step see each other.

        A register sees and is seen by all. Separators have no step, and see each other and their lead.
        """
        rows, registers = len(index_BK), self.config.num_registers
        lead = [torch.full((registers,), NO_STEP, device=index_BK.device)]
        if self.separator is not None:
            lead.append(torch.arange(leads, device=index_BK.device))
        beside_R = torch.cat(lead)
        lead_BN = torch.cat([beside_R.expand(rows, -1), index_BK // steps], dim=1)
        step_BN = torch.cat([torch.full_like(beside_R, NO_STEP).expand(rows, -1), index_BK % steps], dim=1)
        register_BN = lead_BN == NO_STEP
        sees_BNN = (lead_BN[:, :, None] == lead_BN[:, None]) | (step_BN[:, :, None] == step_BN[:, None])
        return (sees_BNN | register_BN[:, :, None] | register_BN[:, None])[:, None]


XS = LeadTimeViT.Config(width=192, depth=8, num_heads=4)
"""3.56 M parameters."""
ST_MEM = LeadTimeViT.Config(width=768, depth=12, num_heads=12, patch_samples=75, separators=True)
"""The encoder of Na et al. (85.02 M parameters) for shards of 250 Hz and windows of 9 s."""
KIM = LeadTimeViT.Config(width=768, depth=12, num_heads=16, patch_samples=50, attention="cross")
"""The encoder of Kim (85.00 M parameters) for shards of 250 Hz, on 12 leads instead of 8."""
