"""CMSC of CLOCS: adjacent segments of a recording find each other; with random lead masking if wanted.

Paper says (Kiyasseh et al. 2021, https://arxiv.org/abs/2005.13249): contrastive multi-segment coding takes two adjacent
segments of a patient as positives and segments of other patients as negatives, with cosines over a temperature of 0.1,
in both directions (equations 1 to 4); segments of 5 s at 500 Hz, Adam at 1e-4, batches of 256. Windows of one batch
that are of one patient, by chance, count as positives too, in a term of its own for each direction (equation 3): the
mean over all such pairs, which is added.
Code says: a last layer of 32 to 320 features is what is compared and used, without a head; the softmax is over the
whole batch, other positives of a query among the candidates; the terms' mean, where the paper adds; of a pair of
windows the first one alone asks for the other, where in the paper both do.
Paper says (Oh et al. 2022, https://arxiv.org/abs/2203.06889): random lead masking before the encoder, each lead hidden
with a chance of .5, beside CMSC, for an encoder that bears any set of leads.
Ours: both together, and CMSC alone with an empty `Augment()`; the two halves of a window; half of the paper's sum; the
embedding is one linear layer to 128, as theirs is the network's last layer, and is not published. By default another
window of a patient is a negative like any other; `--objective.positives patient` has equation 3, over the windows of
all ranks. Windows of a patient meet in a batch by chance alone, as in the paper and its code: nothing draws them
together, and where patients have one recording each it changes nothing (`same_patient` tells). A record of which the
database names no patient has one of its own.

Shapes: B windows, V segments (2), T samples, D features, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.lead_mask import LeadMask
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.heads import exact
from ecgfm.nn.projector import HeadNorm, projector
from ecgfm.objectives._checks import check_widths
from ecgfm.objectives._contrastive import both_ways, figures, unit
from ecgfm.objectives._views import TwoViews, view_of
from ecgfm.objectives.base import Losses, Objective, Progress

MASKED_LEADS = Augment(transforms=(LeadMask.Config(),))
"""Of Oh et al. 2022."""


class CMSC(TwoViews):
    """Find the second half of a window by its first among those of a batch, and the other way round."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TwoViews.Config):
        """Settings of CMSC."""

        augment: Augment = MASKED_LEADS
        """What changes each segment by itself: random lead masking."""
        temperature: float = 0.1
        """What cosines are divided by."""
        projector: tuple[int, ...] = (128,)
        """Features out of each layer of the head; none compares the encoder's features themselves."""
        projector_norm: HeadNorm = "none"
        """After each hidden layer of the head."""
        positives: Literal["recording", "patient"] = "recording"
        """What a half is to find: the other half of its window, or those of its patient's other windows in the batch
        too."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.projector, empty=True)

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
        self.projector = projector(encoder.config.width, config.projector, norm=config.projector_norm)

    @classmethod
    def asks_patients(cls, config: Objective.Config) -> bool:
        """Tell whether windows of one patient are positives."""
        assert isinstance(config, CMSC.Config)
        return config.positives == "patient"

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Cut windows into halves, and change each by itself."""
        halves = batch.signal_BLT.chunk(2, dim=2)
        views = [self.augmenter(half, view_of(batch, draws, number)) for number, half in enumerate(halves)]
        return replace(batch, views_BVLT=torch.stack(views, dim=1))

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and its halves, each at its place."""
        window, first, second = super().picture(batch, draws)
        start_B = torch.full((len(batch.signal_BLT),), batch.signal_BLT.shape[2] // 2)
        return window, replace(first, title="first half"), replace(second, title="second half", start_B=start_B)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Cross-entropy of finding the other half, a mean over this rank's windows and both directions.

        A half is compared with the other halves of all ranks' windows, and not with halves on its own side. In
        evaluation mode it is with those of this rank alone, so that any number of ranks validates alike.

        Args:
            batch: Normalised `views_BVLT`; `patient_B` where windows of one patient are positives.
            at: Where the run stands.

        Returns:
            `loss`, and `found_first`, the share of halves that are nearest to their other half. With patients also
            `same_patient`, the share of windows that have another one of their patient among those they are compared
            with. At measured steps also the figures of `_contrastive.figures`.
        """
        assert batch.views_BVLT is not None
        rows, views = batch.views_BVLT.shape[:2]
        _, features_MD = self.encoder.encode(batch.views_BVLT.flatten(0, 1))
        embedding_BVE = unit(self.projector(features_MD)).view(rows, views, -1)
        candidate_NVE, first = gather_rows(embedding_BVE) if self.training else (embedding_BVE, 0)
        loss, found_first = both_ways(embedding_BVE, candidate_NVE, first, self.config.temperature)
        losses = {"loss": loss, "found_first": found_first}
        if batch.patient_B is not None:
            patient_N, _ = gather_rows(batch.patient_B) if self.training else (batch.patient_B, 0)
            others, losses["same_patient"] = same_patient(
                embedding_BVE, candidate_NVE, first, batch.patient_B, patient_N, self.config.temperature
            )
            losses["loss"] = loss + others
        if at.measure:
            losses |= figures(features_MD.view(rows, views, -1), embedding_BVE)
        return losses


def same_patient(
    query_BVE: Tensor, candidate_NVE: Tensor, first: int, patient_B: Tensor, patient_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return equation 3 of CLOCS as a mean over both directions, and the share of windows that it is about.

    The mean over all pairs (i, j) of different windows of one patient, in all ranks' windows, of the cross-entropy of
    finding half 2 of j by half 1 of i; 0 without such a pair. The mean over ranks of what each returns is that over
    all windows, however unevenly the ranks hold the pairs.

    Args:
        query_BVE: Both halves of this rank's windows, of length 1.
        candidate_NVE: Both halves of all ranks' windows, of length 1.
        first: Place of this rank's first window among those.
        patient_B: Whose this rank's windows are.
        patient_N: Whose all windows are.
        temperature: What cosines are divided by.
    """
    rows, windows = len(query_BVE), len(candidate_NVE)
    pair_BN = patient_B[:, None] == patient_N
    pair_BN &= torch.arange(first, first + rows, device=pair_BN.device)[:, None] != torch.arange(
        windows, device=pair_BN.device
    )
    pairs = (patient_N[:, None] == patient_N).sum() - windows
    with exact(query_BVE.device):
        logits_VBN = query_BVE.transpose(0, 1) @ candidate_NVE.flip(1).permute(1, 2, 0) / temperature
        lost_VBN = -logits_VBN.log_softmax(dim=2).masked_fill(~pair_BN, 0.0)
    ranks = windows // rows
    return ranks * lost_VBN.sum() / (2 * pairs.clamp(min=1)), pair_BN.any(dim=1).float().mean()
