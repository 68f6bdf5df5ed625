"""SimCLR: two augmented views of a window find each other among the views of all others.

Paper says (Chen et al. 2020, https://arxiv.org/abs/2002.05709): views t(x) and t'(x), z = W2 ReLU(W1 h) of 128
dimensions, cosines over a temperature of 0.1, cross-entropy over the 2N - 1 other views of the whole batch (NT-Xent,
equation 1). Its code puts batch norm after each layer of the head.
Paper says (Bo et al. 2022, https://arxiv.org/abs/2211.07889, for ECG): temperature 0.1, a head of two layers to 128.
Its code: widths 512, 2048, 128, and one of the two views is left as it is.
Ours: both views augmented (`--objective.augmented one` is that code's way), the head of Bo's widths and of
the first paper's formula, without norms; the batch is all ranks' micro-batch, so that accumulation has fewer negatives.
Which transforms make the views is ours to say: 3KG, the best of the fixed ones in Bo's table.

Shapes: B windows, V views, D features, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.three_kg import ThreeKG
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.projector import HeadNorm, projector
from ecgfm.objectives._checks import check_widths
from ecgfm.objectives._contrastive import figures, info_nce, unit
from ecgfm.objectives._views import TwoViews, view_of
from ecgfm.objectives.base import Losses, Progress

TURNED = Augment(transforms=(ThreeKG.Config(),))
"""The best of the fixed augmentations of Bo et al. 2022."""


class SimCLR(TwoViews):
    """Find the other view of a window among all views of a batch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TwoViews.Config):
        """Settings of SimCLR."""

        augment: Augment = TURNED
        """What makes the views."""
        augmented: Literal["both", "one"] = "both"
        """Whether both views are augmented, or one of them is the window itself."""
        temperature: float = 0.1
        """What cosines are divided by."""
        projector: tuple[int, ...] = (2048, 128)
        """Features out of each layer of the head; none compares the encoder's features themselves."""
        projector_norm: HeadNorm = "none"
        """After each hidden layer of the head."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.projector, empty=True)

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.projector = projector(encoder.config.width, config.projector, norm=config.projector_norm)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Make the two views, of which one may be the window itself."""
        if self.config.augmented == "both":
            return super().views(batch, draws)
        first_BLT = self.augmenter(batch.signal_BLT, view_of(batch, draws, 0))
        return replace(batch, views_BVLT=torch.stack([first_BLT, batch.signal_BLT], dim=1))

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and its views, with what was done to each."""
        window, first, second = super().picture(batch, draws)
        if self.config.augmented == "one":
            second = replace(second, notes=("unchanged",) * len(second.notes))
        return window, first, second

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """NT-Xent: a mean over this rank's views, each compared with those of all ranks.

        In evaluation mode the views of this rank alone are compared, so that any number of ranks validates alike.

        Args:
            batch: Normalised `views_BVLT`.
            at: Where the run stands.

        Returns:
            `loss`, and `found_first`, the share of views that are nearest to their other view. At measured steps also
            the figures of `_contrastive.figures`.
        """
        assert batch.views_BVLT is not None
        rows, views = batch.views_BVLT.shape[:2]
        _, features_MD = self.encoder.encode(batch.views_BVLT.flatten(0, 1))
        embedding_ME = unit(self.projector(features_MD))
        loss, found_first = nt_xent(embedding_ME, self.config.temperature, gather=self.training)
        losses = {"loss": loss, "found_first": found_first}
        if at.measure:
            losses |= figures(features_MD.view(rows, views, -1), embedding_ME.view(rows, views, -1))
        return losses


def nt_xent(embedding_ME: Tensor, temperature: float, *, gather: bool = True) -> tuple[Tensor, Tensor]:
    """Return equation 1, a mean over M rows of length 1, and the share of rows that are nearest to their partner.

    Args:
        embedding_ME: Two views of each window, one after the other.
        temperature: What cosines are divided by.
        gather: Compare with the rows of all ranks, which must all call it.
    """
    candidate_NE, first = gather_rows(embedding_ME) if gather else (embedding_ME, 0)
    own_M = torch.arange(len(embedding_ME), device=embedding_ME.device)
    # The partner of an even row is the next one, of an odd row the one before.
    return info_nce(embedding_ME, candidate_NE, first + (own_M ^ 1), temperature, self_B=first + own_M)
