"""LeJEPA: views agree, and their embeddings are made to follow an isotropic Gaussian (SIGReg).

Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544. No teacher, no moving average, no stop of gradients.

Paper says: (1 - lambda) times the distance of all views' embeddings to the mean of the window's global ones, plus
lambda times the mean over views of SIGReg: on random directions, all ranks' the same and new in each step, the test of
Epps and Pulley, N times the integral over t of |empirical - Gaussian characteristic function|^2 with a Gaussian
weight; trapezoids on 17 points in -5..5; lambda 0.05, 2 global and 8 local views, 1024 directions, batches of 128 and
more. The definition of the test has the weight exp(-t^2), the listing exp(-t^2 / 2); the prediction term sums squares
over dimensions, the listing takes their mean.
Code says (the authors' minimal example): lambda 0.02, a projector of 2048, 2048 and 16 with batch norm, 256
directions, 17 points in 0..3.
Ours: the listing, on crops of time (see _crops.py); 64 dimensions; N is the micro-batch of all ranks. The integrand is
even, and 0 at t = 0, so that the points above 0 do. Directions depend on the step alone, and those of a validation on
nothing.

Shapes: B windows of this rank, V views, S directions, P points, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.gather import gather_rows, num_ranks
from ecgfm.nn.heads import exact
from ecgfm.nn.projector import projector
from ecgfm.objectives._checks import check_widths
from ecgfm.objectives._crops import NUM_LONG, MultiCropped, by_window
from ecgfm.objectives.base import Losses, Progress


class LeJEPA(MultiCropped):
    """Predict the mean of the long views, under a test for a Gaussian."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiCropped.Config):
        """Settings of LeJEPA."""

        projector: tuple[int, ...] = (2048, 2048, 64)
        """Widths of the projector's layers; the last is that of the embedding."""
        gaussian: float = 0.05
        """Weight of SIGReg (lambda); the prediction's is 1 minus it."""
        num_directions: int = 1024
        """Random directions of a step along which the embeddings are tested."""
        num_points: int = 17
        """Points of the integral between minus and plus `reach`; odd."""
        reach: float = 5.0
        """Where the integral ends."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_widths(self.projector)
            if not 0.0 <= self.gaussian <= 1.0:
                raise ConfigError(f"--objective.gaussian must be 0 to 1, got {self.gaussian}")
            if self.num_directions < 1 or self.num_points < 3 or self.num_points % 2 == 0:
                raise ConfigError(
                    f"--objective.num-directions {self.num_directions} must be at least 1 and --objective.num-points "
                    f"{self.num_points} odd and at least 3"
                )
            if not 0.0 < self.reach < float("inf"):
                raise ConfigError(f"--objective.reach must be above 0, got {self.reach}")

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.projector = projector(encoder.config.width, config.projector, norm="batch")

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Weighted sum of the prediction and of SIGReg; of this rank's windows alone in evaluation.

        Args:
            batch: `views_BVLT`, and `short_BSLT` where there are short views.
            at: Where the run stands.

        Returns:
            `loss` and its parts, `prediction` and `gaussian`, without their weights. At measured steps also the figures
            of nn/collapse.py.
        """
        assert batch.views_BVLT is not None
        tokens, features = self.encoder.encode(batch.views_BVLT.flatten(0, 1))
        embedding_BVE = by_window(self.projector(features).float(), NUM_LONG)
        center_B1E = embedding_BVE.mean(dim=1, keepdim=True)
        if batch.short_BSLT is not None:
            short_BSLT = batch.short_BSLT
            short = self.projector(self.encoder.encode(short_BSLT.flatten(0, 1))[1]).float()
            embedding_BVE = torch.cat([embedding_BVE, by_window(short, short_BSLT.shape[1])], dim=1)
        prediction = (embedding_BVE - center_B1E).square().mean()
        gaussian = self._sigreg(embedding_BVE, at.step if self.training else 0)
        share = self.config.gaussian
        losses = {
            "loss": (1.0 - share) * prediction + share * gaussian,
            "prediction": prediction.detach(),
            "gaussian": gaussian.detach(),
        }
        if at.measure:
            first, second = by_window(features, NUM_LONG).unbind(1)
            losses |= self.figures(by_window(tokens, NUM_LONG)[:, 0], first, second)
        return losses

    def _sigreg(self, embedding_BVE: Tensor, step: int) -> Tensor:
        """Return the statistic, a mean over views and directions. In training all ranks must call it."""
        config, device = self.config, embedding_BVE.device
        count = config.num_directions
        draws = Draws(seed=0, step=step, rows=(0, count), all_rows=count, device=device)
        direction_SE = normalize(draws.normal("directions", embedding_BVE.shape[2]), dim=1)
        spacing = 2.0 * config.reach / (config.num_points - 1)
        point_P = spacing * torch.arange(1, config.num_points // 2 + 1, device=device)
        wanted_P = (-0.5 * point_P.square()).exp()
        # Trapezoids: half at the end. Each point stands for the one below 0 too.
        weight_P = 2.0 * spacing * wanted_P * torch.where(point_P < config.reach - 0.5 * spacing, 1.0, 0.5)
        with exact(device):
            phase_BVSP = (embedding_BVE @ direction_SE.T)[..., None] * point_P
            # The means of all ranks are the mean of theirs: what is gathered does not grow with the batch.
            real_VSP = _over_ranks(phase_BVSP.cos().mean(dim=0), gather=self.training)
            imaginary_VSP = _over_ranks(phase_BVSP.sin().mean(dim=0), gather=self.training)
            apart_VSP = (real_VSP - wanted_P).square() + imaginary_VSP.square()
            windows = len(embedding_BVE) * (num_ranks() if self.training else 1)
            return windows * (apart_VSP * weight_P).sum(dim=2).mean()

    def published(self) -> Encoder:
        """Return the encoder without the projector."""
        return self.encoder


def _over_ranks(mean: Tensor, *, gather: bool) -> Tensor:
    """Return the mean over ranks of a mean over as many rows on each."""
    return gather_rows(mean[None])[0].mean(dim=0) if gather else mean
