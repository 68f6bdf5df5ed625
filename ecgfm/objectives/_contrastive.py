"""What contrastive objectives share: views, the loss over pairs, and the figures of a step.

Shapes: B windows of this rank, V views, L leads, T samples, N candidates of all ranks, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmenter, View
from ecgfm.data.batch import Batch, Draws
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import alignment, dimension_std, effective_rank, uniformity
from ecgfm.nn.heads import exact
from ecgfm.objectives.base import Losses


def view_of(batch: Batch, draws: Draws, number: int) -> View:
    """Return what an augmentation may know of a view of a batch that `prepare` has been through."""
    assert batch.rate_hz is not None and batch.mean_mv_BL is not None and batch.std_mv_BL is not None
    return View(
        draws=draws, rate_hz=batch.rate_hz, mean_mv_BL=batch.mean_mv_BL, std_mv_BL=batch.std_mv_BL, number=number
    )


def two_views(batch: Batch, draws: Draws, augmenter: Augmenter, *, augment_both: bool = True) -> Tensor:
    """Return views_BVLT: each window augmented twice, or once beside the window itself."""
    first = augmenter(batch.signal_BLT, view_of(batch, draws, 0))
    second = augmenter(batch.signal_BLT, view_of(batch, draws, 1)) if augment_both else batch.signal_BLT
    return torch.stack([first, second], dim=1)


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


@torch.no_grad()
def figures(features_BVD: Tensor, embedding_BVE: Tensor) -> Losses:
    """Return figures of nn/collapse.py: of the first view's features, and of how near two views of a window are.

    Args:
        features_BVD: What an encoder's pool gives.
        embedding_BVE: What the loss compares.
    """
    features_BD = features_BVD[:, 0]
    return {
        "feature_std": dimension_std(features_BD).mean(),
        "feature_rank": effective_rank(features_BD),
        "uniformity": uniformity(features_BD),
        "alignment": alignment(embedding_BVE[:, 0], embedding_BVE[:, 1]),
        "embedding_std": dimension_std(unit(embedding_BVE[:, 0])).mean(),
    }


def check_head(widths: tuple[int, ...], name: str = "projector") -> None:
    """Refuse widths of a head below 1.

    Raises:
        ConfigError: With the option and its value.
    """
    if any(width < 1 for width in widths):
        raise ConfigError(f"--objective.{name.replace('_', '-')} needs widths of at least 1, got {widths}")


def check_temperature(value: float) -> None:
    """Refuse a temperature that is not above 0.

    Raises:
        ConfigError: With its value.
    """
    if not 0.0 < value < float("inf"):
        raise ConfigError(f"--objective.temperature must be above 0, got {value}")
