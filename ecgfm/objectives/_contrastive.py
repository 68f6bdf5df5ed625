"""What contrastive objectives share: the loss over pairs, and the figures of a step.

Shapes: B windows of this rank, V views, N candidates of all ranks, D width, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.nn.collapse import alignment, dimension_std, feature_figures
from ecgfm.nn.heads import exact
from ecgfm.objectives.base import Losses


def unit(values_BD: Tensor) -> Tensor:
    """Return float32 rows of length 1."""
    return torch.nn.functional.normalize(values_BD.float(), dim=-1)


def info_nce(
    query_BD: Tensor, candidate_ND: Tensor, positive_B: Tensor, temperature: float, self_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of finding each query's positive, and the share that finds it first.

    Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4, with cosines over a temperature. In float32.

    Args:
        query_BD: Of length 1.
        candidate_ND: Of length 1.
        positive_B: Which candidate belongs to each query.
        temperature: What cosines are divided by.
        self_B: Which candidate each query is itself, and is not compared with.
    """
    with exact(query_BD.device):
        logits_BN = query_BD @ candidate_ND.T / temperature
        if self_B is not None:
            logits_BN = logits_BN.scatter(1, self_B[:, None], -torch.inf)
        loss = torch.nn.functional.cross_entropy(logits_BN, positive_B)
    return loss, (logits_BN.argmax(dim=1) == positive_B).float().mean()


def both_ways(query_BVE: Tensor, candidate_NVE: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return `info_nce` of finding each window's other view, as a mean over both directions.

    A first view is compared with second ones alone, and the other way round.

    Args:
        query_BVE: Two views of this rank's windows, of length 1.
        candidate_NVE: Two views of all ranks' windows, of length 1.
        first: Place of this rank's first window among those.
        temperature: What cosines are divided by.
    """
    own_B = first + torch.arange(len(query_BVE), device=query_BVE.device)
    found = [info_nce(query_BVE[:, one], candidate_NVE[:, 1 - one], own_B, temperature) for one in (0, 1)]
    return (found[0][0] + found[1][0]) / 2, (found[0][1] + found[1][1]) / 2


@torch.no_grad()
def figures(features_BVD: Tensor, embedding_BVE: Tensor) -> Losses:
    """Return figures of nn/collapse.py: of the first view's features, and of how near two views of a window are.

    Args:
        features_BVD: What an encoder's pool gives.
        embedding_BVE: What the loss compares.
    """
    return {
        **feature_figures(features_BVD[:, 0]),
        "alignment": alignment(embedding_BVE[:, 0], embedding_BVE[:, 1]),
        "embedding_std": dimension_std(unit(embedding_BVE[:, 0])).mean(),
    }
