"""MoCo v1 and v2: a window's view finds the other one among a long queue of earlier windows' keys.

Paper says (He et al. 2020, https://arxiv.org/abs/1911.05722; Chen et al. 2020, https://arxiv.org/abs/2003.04297): a key
encoder that follows the query encoder with momentum 0.999, a queue of 65,536 keys, cosines over a temperature of
0.07 (v2: 0.2), cross-entropy (equation 1); v2 adds a head of two layers and stronger views. Their code shuffles rows
between GPUs before the key encoder, whose batch norm would otherwise tell which key is whose, and begins with a queue
of random directions.
Paper says (Nakamoto et al. 2021, for ECG): MoCo v1/v2, five transforms of which several are picked at random; neither
momentum, queue, temperature nor magnitudes.
Ours: those usual values, and a head of two layers without norms, of the width that their encoder's last layer has; two
picked of the five transforms. Rows are not shuffled: batch norm is over the rows of all ranks (`--encoder.norm batch`),
as large a batch as can be had; with few windows a micro-batch `--encoder.norm group` keeps rows apart altogether. The
queue moves once per OPTIMIZER step, by the keys of all ranks and micro-batches in the order of the step's windows; a
dropped step leaves it.

Shapes: B windows, M micro-batches, K keys, L leads, T samples, D features, E embedding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.baseline_shift import BaselineShift
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.augment.gaussian_smoothing import GaussianSmoothing
from ecgfm.data.augment.random_erasing import RandomErasing
from ecgfm.data.augment.resizing import Resizing
from ecgfm.data.batch import Batch
from ecgfm.encoders.base import Encoder
from ecgfm.nn.gather import gather_rows
from ecgfm.nn.heads import exact
from ecgfm.nn.projector import HeadNorm, projector
from ecgfm.objectives._checks import check_counts, check_shares, check_widths
from ecgfm.objectives._contrastive import figures, unit
from ecgfm.objectives._views import TwoViews
from ecgfm.objectives.base import Losses, Progress

FIVE = (GaussianNoise.Config(), GaussianSmoothing.Config(), RandomErasing.Config(), Resizing.Config())
FIVE_TRANSFORMS = Augment(transforms=(*FIVE, BaselineShift.Config()), pick=2)
"""Of Nakamoto et al. 2021."""


class MoCo(TwoViews):
    """Find the key of the same window among those of a queue."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TwoViews.Config):
        """Settings of MoCo v1 and v2."""

        augment: Augment = FIVE_TRANSFORMS
        """What makes the views."""
        queue: int = 65_536
        """Keys that each query is compared with; at least the windows of a step."""
        momentum: float = 0.999
        """Of the key encoder's moving average."""
        temperature: float = 0.07
        """What cosines are divided by."""
        projector: tuple[int, ...] = (128, 128)
        """Features out of each layer of the head; one layer, or none, is v1."""
        projector_norm: HeadNorm = "none"
        """After each hidden layer of the head."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.projector, empty=True)
            check_counts(self, "queue")
            check_shares(self, "momentum")

    config: Config
    queue_KE: Tensor
    """float32 rows of length 1, the same on every rank."""
    place: Tensor
    """int64: where the next key goes."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.projector = projector(encoder.config.width, config.projector, norm=config.projector_norm)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        embedding = config.projector[-1] if config.projector else encoder.config.width
        self.register_buffer("queue_KE", unit(torch.randn(config.queue, embedding)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._step = -1
        self._keys: list[Tensor] = []

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Cross-entropy of finding a window's key beside those of the queue, a mean over this rank's windows.

        Args:
            batch: Normalised `views_BVLT`: one for the query and one for the key.
            at: Where the run stands.

        Returns:
            `loss`, and `found_first`, the share of queries that are nearest to their own key. At measured steps also
            the figures of `_contrastive.figures`.
        """
        assert batch.views_BVLT is not None
        query_view_BLT, key_view_BLT = batch.views_BVLT.unbind(dim=1)
        with torch.no_grad():
            key_BE = unit(self.key_projector(self.key_encoder.encode(key_view_BLT)[1]))
        _, features_BD = self.encoder.encode(query_view_BLT)
        query_BE = unit(self.projector(features_BD))
        with exact(query_BE.device):
            own_B1 = (query_BE * key_BE).sum(dim=1, keepdim=True)
            logits_BK = torch.cat([own_B1, query_BE @ self.queue_KE.T], dim=1) / self.config.temperature
            label_B = torch.zeros(len(query_BE), dtype=torch.int64, device=query_BE.device)
            loss = torch.nn.functional.cross_entropy(logits_BK, label_B)
        losses = {"loss": loss, "found_first": (logits_BK.argmax(dim=1) == label_B).float().mean()}
        if at.measure:
            losses |= figures(features_BD[:, None], torch.stack([query_BE, key_BE], dim=1))
        if self.training and torch.is_grad_enabled():
            self._collect(key_BE, at.step)
        return losses

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a guard on the step would compile each one
    def _collect(self, key_BE: Tensor, step: int) -> None:
        """Keep the keys of a micro-batch for the step's end; those of a step that was dropped go."""
        if step != self._step:
            self._step, self._keys = step, []
        self._keys.append(key_BE.detach())

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the key encoder and its head, which follow the query's."""
        if not self.config.projector:
            return ((self.key_encoder, self.encoder),)
        return ((self.key_encoder, self.encoder), (self.key_projector, self.projector))

    def momentum(self, at: Progress) -> float:
        """Return the momentum, the same at every step."""
        return self.config.momentum

    @torch.no_grad()
    def after_step(self, at: Progress) -> dict[str, float]:
        """Put the step's keys in the place of the oldest of the queue. All ranks must call it."""
        assert self._keys and self._step == at.step, "a step without keys"
        keys_MBE, self._keys = torch.stack(self._keys), []
        gathered, _ = gather_rows(keys_MBE)
        # Ranks come first there, and micro-batches first in the step's order of windows.
        step_NE = gathered.view(-1, *keys_MBE.shape).transpose(0, 1).reshape(-1, keys_MBE.shape[2])
        newest_NE = step_NE[-len(self.queue_KE) :]
        index_N = self.place + torch.arange(len(newest_NE), device=newest_NE.device)
        self.queue_KE[index_N % len(self.queue_KE)] = newest_NE
        self.place.add_(len(newest_NE)).remainder_(len(self.queue_KE))
        return {}
