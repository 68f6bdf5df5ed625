"""CMSC of CLOCS: adjacent segments of a recording find each other; with random lead masking if wanted.

Paper says (Kiyasseh et al. 2021, https://arxiv.org/abs/2005.13249): contrastive multi-segment coding takes two adjacent
segments of a patient as positives and segments of other patients as negatives, with cosines over a temperature of 0.1,
in both directions (equations 1 to 4); segments of 5 s at 500 Hz, Adam at 1e-4, batches of 256. Two segments of one
batch that are of one patient count as positives too.
Paper says (Oh et al. 2022, https://arxiv.org/abs/2203.06889): random lead masking before the encoder, each lead hidden
with a chance of .5, beside CMSC, for an encoder that bears any set of leads.
Ours: both together, and CMSC alone with an empty `Augment()`; the two halves of a window; the mean of both directions
where the paper adds; a batch does not say who its patients are, and another window of a patient is a negative like any
other (rare in a large database); the embedding is one linear layer to 128, as theirs is the network's last layer, and
is not published.

Shapes: B windows, V segments (2), T samples, D features, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ecgfm.data.augment.base import Augment, Augmenter
from ecgfm.data.augment.lead_mask import LeadMask
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.projector import HeadNorm, projector
from ecgfm.objectives._contrastive import check_head, check_temperature, figures, info_nce, unit, view_of
from ecgfm.objectives.base import Losses, Objective, Progress

MASKED_LEADS = Augment(transforms=(LeadMask.Config(),))
"""Of Oh et al. 2022."""


class CMSC(Objective):
    """Find the second half of a window by its first among those of a batch, and the other way round."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of CMSC."""

        augment: Augment = MASKED_LEADS
        """What changes each segment by itself: random lead masking."""
        temperature: float = 0.1
        """What cosines are divided by."""
        projector: tuple[int, ...] = (128,)
        """Features out of each layer of the head; none compares the encoder's features themselves."""
        projector_norm: HeadNorm = "none"
        """After each hidden layer of the head."""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)
            check_head(self.projector)

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse windows whose halves the encoder's steps do not fill; every encoder will do."""
        assert isinstance(config, CMSC.Config)
        if window_samples % (2 * encoder.patch_samples):
            step = 2 * encoder.patch_samples
            fitting = window_samples - window_samples % step or step
            raise ConfigError(
                f"cmsc cuts windows of {window_samples} samples into halves, which the encoder's steps of "
                f"{encoder.patch_samples} samples do not fill; use --data.window-s {fitting / rate_hz:g}"
            )
        config.augment.check(encoder.num_leads, window_samples // 2, rate_hz)

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.augmenter = Augmenter(config.augment)
        self.projector = projector(encoder.config.width, config.projector, norm=config.projector_norm)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Cut windows into halves, and change each by itself."""
        halves = batch.signal_BLT.chunk(2, dim=2)
        views = [self.augmenter(half, view_of(batch, draws, number)) for number, half in enumerate(halves)]
        return replace(batch, views_BVLT=torch.stack(views, dim=1))

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Cross-entropy of finding the other half, a mean over this rank's windows and both directions.

        A half is compared with the other halves of all ranks' windows, and not with halves on its own side. In
        evaluation mode it is with those of this rank alone, so that any number of ranks validates alike.

        Args:
            batch: Normalised `views_BVLT`.
            at: Where the run stands.

        Returns:
            `loss`, and `found_first`, the share of halves that are nearest to their other half. At measured steps also
            the figures of `_contrastive.figures`.
        """
        assert batch.views_BVLT is not None
        rows, views = batch.views_BVLT.shape[:2]
        features_MD = self.encoder.pool(self.encoder(batch.views_BVLT.flatten(0, 1)))
        embedding_BVE = unit(self.projector(features_MD)).view(rows, views, -1)
        candidate_NVE, first = gather_rows(embedding_BVE) if self.training else (embedding_BVE, 0)
        own_B = first + torch.arange(rows, device=embedding_BVE.device)
        found = [
            info_nce(embedding_BVE[:, one], candidate_NVE[:, 1 - one], own_B, self.config.temperature) for one in (0, 1)
        ]
        losses = {"loss": (found[0][0] + found[1][0]) / 2, "found_first": (found[0][1] + found[1][1]) / 2}
        if at.measure:
            losses |= figures(features_MD.view(rows, views, -1), embedding_BVE)
        return losses

    def published(self) -> Encoder:
        """Return the encoder without its head."""
        return self.encoder
