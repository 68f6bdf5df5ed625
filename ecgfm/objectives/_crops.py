"""What objectives that compare parts of the same window share: how the parts are cut, and the figures of a collapse.

Each part is a piece of time at a random place of its window, augmented by draws of its own. Methods for pictures cut
boxes of random size and scale them to one size; here a piece keeps its time axis, since intervals are what an ECG is
read by, and its length is the same for all rows, so that no shape depends on a draw. Mehari and Strodthoff 2022
(https://arxiv.org/abs/2103.12676) make views of an ECG by random crops and by setting a piece to zero; the defaults
here add noise and baseline wander.

Shapes: B windows, V long views, S short views, L leads, T samples, N tokens, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augment, Augmenter
from ecgfm.data.augment.baseline_wander import BaselineWander
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.augment.random_erasing import RandomErasing
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel, view_panels
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import alignment, dimension_std, effective_rank, feature_figures
from ecgfm.objectives._views import view_of
from ecgfm.objectives.base import Losses, Objective

NUM_LONG = 2
DISTURBED = Augment(
    transforms=(BaselineWander.Config(p=0.5), GaussianNoise.Config(), RandomErasing.Config(p=0.5, fill="zero"))
)
"""What is done to a view by default."""


class Cropped(Objective):
    """Compares two long views of each window."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of the two views."""

        long_share: float = 0.5
        """Length of each of the two long views as a share of the window, rounded down to whole steps of the encoder."""
        augment: Augment = DISTURBED
        """What is done to each view, with draws of its own."""

        def __post_init__(self) -> None:
            _check_share("long-share", self.long_share)

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse views that are shorter than a step of the encoder, and augmentations that do not fit them."""
        assert isinstance(config, Cropped.Config)
        samples = crop_samples("long-share", config.long_share, encoder, window_samples)
        config.augment.check(encoder.num_leads, samples, rate_hz)

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.augmenter = Augmenter(config.augment)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Cut and augment the long views."""
        return replace(batch, views_BVLT=self.cut(batch, draws, "long", self.config.long_share, NUM_LONG, first=0))

    def cut(self, batch: Batch, draws: Draws, name: str, share: float, count: int, *, first: int) -> Tensor:
        """Return views_BVLT: pieces of each window, augmented.

        Args:
            batch: Normalised.
            draws: Of the step.
            name: What the pieces are called; those of another name lie elsewhere.
            share: Length over that of the window.
            count: How many of each window, V.
            first: Number of the first among the views of a window: each number is augmented by other draws.
        """
        samples = crop_samples(f"{name}-share", share, self.encoder.config, batch.signal_BLT.shape[2])
        start_BV = _starts(batch, draws, name, samples, count)
        pieces = []
        for number in range(count):
            index_BT = start_BV[:, number, None] + torch.arange(samples, device=start_BV.device)
            piece_BLT = batch.signal_BLT.gather(2, index_BT[:, None].expand(-1, batch.signal_BLT.shape[1], -1))
            pieces.append(self.augmenter(piece_BLT, view_of(batch, draws, first + number)))
        return torch.stack(pieces, dim=1)

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and its views, each at its place and with what was done to it."""
        seen = self.views(batch, draws)
        panels, number = [Panel(title="window", signal_BLT=batch.signal_BLT)], 0
        for name, views in (("long", seen.views_BVLT), ("short", seen.short_BSLT)):
            if views is None:
                continue
            count, samples = views.shape[1], views.shape[3]
            panels += view_panels(
                views,
                title=f"{name} view",
                notes_V=[self.augmenter.names(view_of(batch, draws, number + view)) for view in range(count)],
                start_BV=_starts(batch, draws, name, samples, count),
            )
            number += count
        return tuple(panels)

    @torch.no_grad()
    def figures(self, tokens_BND: Tensor, first_BD: Tensor, second_BD: Tensor) -> Losses:
        """Return the figures of nn/collapse.py, of an encoder's tokens and of its pooled features.

        Args:
            tokens_BND: Of one view.
            first_BD: Features of the same view.
            second_BD: Features of another view, of which `alignment` tells the distance.
        """
        return {
            "target_std": dimension_std(tokens_BND.flatten(0, 1)).mean(),
            "effective_rank": effective_rank(tokens_BND.flatten(0, 1)),
            **feature_figures(first_BD),
            "alignment": alignment(first_BD, second_BD),
        }


class MultiCropped(Cropped):
    """Compares two long and several short views of each window (Caron et al. 2020, https://arxiv.org/abs/2006.09882)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Cropped.Config):
        """Settings of the long and short views."""

        long_share: float = 0.75
        """Length of each of the two long views as a share of the window, rounded down to whole steps of the encoder."""
        num_short: int = 8
        """Short views of each window; 0 for none."""
        short_share: float = 0.2
        """Length of each short view as a share of the window, rounded down to whole steps of the encoder."""

        def __post_init__(self) -> None:
            super().__post_init__()
            _check_share("short-share", self.short_share)
            if self.num_short < 0:
                raise ConfigError(f"--objective.num-short must be 0 or more, got {self.num_short}")

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse views that are shorter than a step of the encoder, and augmentations that do not fit them."""
        assert isinstance(config, MultiCropped.Config)
        super().check(config, encoder, window_samples, rate_hz)
        if config.num_short:
            samples = crop_samples("short-share", config.short_share, encoder, window_samples)
            config.augment.check(encoder.num_leads, samples, rate_hz)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Cut and augment the long and the short views."""
        batch, config = super().views(batch, draws), self.config
        if not config.num_short:
            return batch
        short_BSLT = self.cut(batch, draws, "short", config.short_share, config.num_short, first=NUM_LONG)
        return replace(batch, short_BSLT=short_BSLT)


def crop_samples(name: str, share: float, encoder: Encoder.Config, window_samples: int) -> int:
    """Return the length of a crop: the share of the window, in whole steps of the encoder.

    Raises:
        ConfigError: It is shorter than a step.
    """
    # 0.29 of 100 is a little less than 29 in floating point.
    samples = math.floor(round(share * window_samples / encoder.patch_samples, 6)) * encoder.patch_samples
    if not samples:
        raise ConfigError(
            f"--objective.{name} {share:g} of windows of {window_samples} samples is less than one step of the "
            f"encoder, {encoder.patch_samples} samples; raise it or --data.window-s"
        )
    return samples


def _starts(batch: Batch, draws: Draws, name: str, samples: int, count: int) -> Tensor:
    """Return start_BV, the first sample of each crop of a length."""
    return (draws.rows(f"{name} crops", count) * (batch.signal_BLT.shape[2] - samples + 1)).long()


def by_window(values: Tensor, views: int) -> Tensor:
    """Return values of shape (B * V, ...), the views of a window one after another, as (B, V, ...)."""
    return values.reshape(-1, views, *values.shape[1:])


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"--objective.{name} must be above 0 and at most 1, got {share}")
