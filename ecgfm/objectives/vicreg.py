"""VICReg: two views agree, no dimension dies, and no two dimensions say the same.

Bardes et al. 2022, https://arxiv.org/abs/2105.04906.

Paper says: an expander of three layers of 8192 with batch norm and ReLU between them; 25 times the mean squared
distance of two views, 25 times the hinge of each dimension's standard deviation below 1 (equation 1, epsilon 1e-4), 1
times the squared covariances of all pairs of dimensions over their number (equation 3), the latter two summed over the
views. Equation 5 sums the squared distance over dimensions, algorithm 1 takes its mean.
Code says: the mean, as algorithm 1; half of the hinge's sum over the two views; layers in the expander's middle have
biases; the statistics are of all devices' rows.
Ours: algorithm 1, on two crops of each window (see _crops.py); statistics of all ranks' micro-batch; a default width
of 2048, the paper's 8192 (2.7 points better on ImageNet) being 134 million weights.

Shapes: B windows of this rank, N windows of all ranks, V views, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ecgfm.data.batch import Batch
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.heads import exact
from ecgfm.nn.projector import projector
from ecgfm.objectives._checks import check_widths
from ecgfm.objectives._crops import Cropped
from ecgfm.objectives.base import Losses, Progress

EPSILON = 1e-4
"""Added to a variance before its root."""


class VICReg(Cropped):
    """Variance, invariance and covariance of two views' embeddings."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Cropped.Config):
        """Settings of VICReg."""

        expander: tuple[int, ...] = (2048, 2048, 2048)
        """Widths of the expander's layers; the paper's are 8192."""
        invariance: float = 25.0
        """Weight of the views' distance (lambda)."""
        variance: float = 25.0
        """Weight of the hinge on standard deviations (mu)."""
        covariance: float = 1.0
        """Weight of the covariances (nu)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.expander, "expander")
            for name in ("invariance", "variance", "covariance"):
                if not 0.0 <= getattr(self, name) < float("inf"):
                    raise ConfigError(f"--objective.{name} must be 0 or more, got {getattr(self, name)}")

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.expander = projector(encoder.config.width, config.expander, norm="batch", last_bias=False)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Weighted sum of the three terms; of this rank's windows alone in evaluation.

        Args:
            batch: `views_BVLT`.
            at: Where the run stands.

        Returns:
            `loss` and its parts, `invariance`, `variance` and `covariance`, without their weights. At measured steps
            also the figures of nn/collapse.py.
        """
        assert batch.views_BVLT is not None
        tokens, features = zip(*(self.encoder.encode(view_BLT) for view_BLT in batch.views_BVLT.unbind(1)), strict=True)
        one_BE, other_BE = (self.expander(features_BD).float() for features_BD in features)
        invariance = (one_BE - other_BE).square().mean()
        spreads = [spread(gather_rows(rows_BE)[0] if self.training else rows_BE) for rows_BE in (one_BE, other_BE)]
        variance, covariance = (sum(terms[1:], start=terms[0]) for terms in zip(*spreads, strict=True))
        config = self.config
        losses = {
            "loss": config.invariance * invariance + config.variance * variance + config.covariance * covariance,
            "invariance": invariance.detach(),
            "variance": variance.detach(),
            "covariance": covariance.detach(),
        }
        if at.measure:
            losses |= self.figures(tokens[0], features[0], features[1])
        return losses

    def published(self) -> Encoder:
        """Return the encoder without the expander (section 4)."""
        return self.encoder


def spread(rows_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hinge of the standard deviations, a mean, and the squared covariances over the dimensions' number."""
    count, width = rows_NE.shape
    with exact(rows_NE.device):
        centred_NE = rows_NE - rows_NE.mean(dim=0)
        covariance_EE = centred_NE.T @ centred_NE / max(count - 1, 1)
    variance_E = covariance_EE.diagonal()
    hinge = (1.0 - (variance_E + EPSILON).sqrt()).relu().mean()
    return hinge, (covariance_EE.square().sum() - variance_E.square().sum()) / width
