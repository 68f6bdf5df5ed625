"""Take and place tokens by index, and cut a signal as tokens do.

Where each lead has tokens of its own, they are one lead's after another's: token n is step n % S of lead n // S.

Shapes: B windows, L leads, T samples, S steps, N tokens, K kept tokens, P samples of a patch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Return tokens_BKD, the tokens at `index_BK`."""
    return tokens_BND.gather(1, index_BK[:, :, None].expand(-1, -1, tokens_BND.shape[2]))


def patches(signal_BLT: Tensor, patch_samples: int, *, leads_apart: bool) -> Tensor:
    """Return patches_BNP: one lead's samples for each token, or those of all leads, lead after lead."""
    patches_BLSP = signal_BLT.reshape(*signal_BLT.shape[:2], -1, patch_samples)
    return patches_BLSP.flatten(1, 2) if leads_apart else patches_BLSP.transpose(1, 2).flatten(2)


def unpatch(patches_BNP: Tensor, num_leads: int, *, leads_apart: bool) -> Tensor:
    """Return signal_BLT, of which `patches` makes these."""
    if leads_apart:
        return patches_BNP.reshape(len(patches_BNP), num_leads, -1)
    return patches_BNP.reshape(*patches_BNP.shape[:2], num_leads, -1).transpose(1, 2).flatten(2)


def token_samples(index_BK: Tensor, patch_samples: int, samples: int, *, leads: int) -> Tensor:
    """Return inside_BLT, bool: which samples belong to some tokens, of each lead, or of all leads together.

    Args:
        index_BK: Tokens.
        patch_samples: Of one token.
        samples: T.
        leads: Those that have tokens of their own; 1 where a token is of all leads.
    """
    inside_BN = torch.zeros(len(index_BK), leads * (samples // patch_samples), dtype=torch.bool, device=index_BK.device)
    inside_BN.scatter_(1, index_BK, True)
    return inside_BN.view(len(index_BK), leads, -1).repeat_interleave(patch_samples, dim=2)


def by_lead(index_BK: Tensor, num_leads: int, steps: int) -> Tensor:
    """Return steps_RK of L rows R = B * L for each window, K being those of one lead.

    Args:
        index_BK: Tokens, ascending, as many of each lead.
        num_leads: L.
        steps: Of a lead.
    """
    return index_BK.reshape(len(index_BK) * num_leads, -1) % steps
