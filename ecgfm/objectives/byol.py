"""BYOL: guess what a moving average of the encoder makes of another view, without negatives.

Grill et al. 2020, https://arxiv.org/abs/2006.07733.

Paper says: projector and predictor of one hidden layer of 4096 with batch norm and ReLU, 256 out; squared distance of
the predictor's and the target projector's vectors, both at length 1 (equation 2), in both directions, summed; target
momentum 0.996 -> 1 by a cosine; the online encoder is what is kept.
Code says: batch norm over all devices; each view goes through the networks by itself.
Ours: the same, on two crops of each window (see _crops.py), which is what Mehari and Strodthoff 2022
(https://arxiv.org/abs/2103.12676) do for the ECG; a linear layer before a batch norm has no bias, which would be
taken off again.

Shapes: B windows, V views, D width, E embedding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ecgfm.data.batch import Batch
from ecgfm.encoders.base import Encoder
from ecgfm.nn.projector import projector
from ecgfm.objectives._checks import check_counts, check_shares
from ecgfm.objectives._crops import Cropped
from ecgfm.objectives.base import Losses, Progress
from ecgfm.schedules import cosine


class BYOL(Cropped):
    """Predict the target's projection of one view from the other."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Cropped.Config):
        """Settings of BYOL."""

        hidden: int = 4096
        """Width of the hidden layer of projector and predictor."""
        projection: int = 256
        """Width of what they give out, E."""
        momentum: tuple[float, float] = (0.996, 1.0)
        """Of the target's moving average, at the schedule's start and end."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts(self, "hidden", "projection")
            check_shares(self, "momentum")

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        widths = (config.hidden, config.projection)
        # The predictor begins with a linear layer and a batch norm, which would take a bias off again.
        self.projector = projector(encoder.config.width, widths, norm="batch", last_bias=False)
        self.predictor = projector(config.projection, widths, norm="batch")
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Sum of both views' squared distances to what the target makes of the other one, between 0 and 8.

        Args:
            batch: `views_BVLT`.
            at: Where the run stands.

        Returns:
            `loss`, a scalar; at measured steps also the figures of nn/collapse.py, of the encoder.
        """
        assert batch.views_BVLT is not None
        tokens, features, guesses, wanted = [], [], [], []
        for view_BLT in batch.views_BVLT.unbind(1):
            tokens_BND, features_BD = self.encoder.encode(view_BLT)
            tokens.append(tokens_BND)
            features.append(features_BD)
            guesses.append(normalize(self.predictor(self.projector(features[-1])).float(), dim=1))
            with torch.no_grad():
                _, target_BD = self.target.encode(view_BLT)
                wanted.append(normalize(self.target_projector(target_BD).float(), dim=1))
        losses = {"loss": squared_distance(guesses[0], wanted[1]) + squared_distance(guesses[1], wanted[0])}
        if at.measure:
            losses |= self.figures(tokens[0], features[0], features[1])
        return losses

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the target's encoder and projector, which follow the online ones."""
        return ((self.target, self.encoder), (self.target_projector, self.projector))

    def momentum(self, at: Progress) -> float:
        """Return the momentum of a step, on half a cosine from the first to the last."""
        return cosine(at.step, at.schedule_steps, *self.config.momentum)

    def published(self) -> Encoder:
        """Return the online encoder (section 3.1)."""
        return self.encoder


def squared_distance(one_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Return the mean over rows of the squared distance."""
    return (one_BE - other_BE).square().sum(dim=1).mean()
