"""MoCo v3: views find each other's momentum keys within the batch; no queue, and a predictor.

Paper says (Chen, Xie and He 2021, https://arxiv.org/abs/2104.02057, algorithm 1): both views are query and key by
turns, keys come from the moving average of encoder and projector, a predictor follows the queries, and the loss is
2 tau times the cross-entropy over the keys of the whole batch, added up for both directions; tau 0.2, momentum 0.99 to
1 along a cosine; large batches (4096).
Code says: for ViT a projector of three layers and a predictor of two, 4096 wide, to 256; for ResNet a projector of
two; batch norm after every layer, without scale and shift after the last one (after a ResNet's predictor none); no
biases.
Ours: the heads for ViT with every encoder (`--objective.projector` sets others); batch norm of the heads is over the
rows of all ranks, as theirs is. The patch embedding is trained: they freeze it to calm large ViTs.

Shapes: B windows, V views, N windows of all ranks, D features, E embedding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ecgfm.data.augment.base import Augment
from ecgfm.data.batch import Batch
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.projector import HeadNorm, projector
from ecgfm.objectives._checks import check_shares, check_widths
from ecgfm.objectives._contrastive import both_ways, figures, unit
from ecgfm.objectives._views import TwoViews
from ecgfm.objectives.base import Losses, Progress
from ecgfm.objectives.moco import FIVE_TRANSFORMS
from ecgfm.schedules import cosine


class MoCoV3(TwoViews):
    """Predict the key of a window's other view among the keys of a batch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TwoViews.Config):
        """Settings of MoCo v3."""

        augment: Augment = FIVE_TRANSFORMS
        """What makes the views."""
        momentum: tuple[float, float] = (0.99, 1.0)
        """Of the key encoder's moving average, at the schedule's start and end, along a cosine."""
        temperature: float = 0.2
        """What cosines are divided by."""
        projector: tuple[int, ...] = (4096, 4096, 256)
        """Features out of each layer of the projector."""
        predictor: tuple[int, ...] = (4096, 256)
        """Features out of each layer of the predictor; the last must be the projector's."""
        head_norm: HeadNorm = "batch"
        """After each layer of both heads."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.projector, empty=True)
            check_widths(self.predictor, "predictor", empty=True)
            check_shares(self, "momentum")
            if not self.projector or self.predictor[-1:] != self.projector[-1:]:
                raise ConfigError(
                    f"--objective.predictor {self.predictor} must end in as many features as --objective.projector "
                    f"{self.projector}, and neither can be empty"
                )

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.projector = projector(
            encoder.config.width, config.projector, norm=config.head_norm, last_norm=config.head_norm
        )
        self.predictor = projector(
            config.projector[-1], config.predictor, norm=config.head_norm, last_norm=config.head_norm
        )
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Algorithm 1, a mean over this rank's windows, each compared with the keys of all ranks.

        In evaluation mode the keys are those of this rank alone, so that any number of ranks validates alike.

        Args:
            batch: Normalised `views_BVLT`.
            at: Where the run stands.

        Returns:
            `loss`, and `found_first`, the share of queries that are nearest to their own key. At measured steps also
            the figures of `_contrastive.figures`.
        """
        assert batch.views_BVLT is not None
        views = batch.views_BVLT.unbind(dim=1)
        with torch.no_grad():
            keys = [unit(self.key_projector(self.key_encoder.encode(view_BLT)[1])) for view_BLT in views]
        features = [self.encoder.encode(view_BLT)[1] for view_BLT in views]
        queries = [unit(self.predictor(self.projector(features_BD))) for features_BD in features]
        candidate_NVE, first = torch.stack(keys, dim=1), 0
        if self.training:
            candidate_NVE, first = gather_rows(candidate_NVE)
        tau = self.config.temperature
        mean, found_first = both_ways(torch.stack(queries, dim=1), candidate_NVE, first, tau)
        losses = {"loss": 4 * tau * mean, "found_first": found_first}
        if at.measure:
            losses |= figures(torch.stack(features, dim=1), torch.stack([queries[0], keys[1]], dim=1))
        return losses

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the key encoder and its head, which follow the query's; the predictor has none."""
        return ((self.key_encoder, self.encoder), (self.key_projector, self.projector))

    def momentum(self, at: Progress) -> float:
        """Return the momentum of a step, on half a cosine from the first to the last."""
        return cosine(at.step, at.schedule_steps, *self.config.momentum)
