"""Views of windows: what objectives that compare two of them share.

Shapes: B windows, V views, L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ecgfm.data.augment.base import Augment, Augmenter, View
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel, view_panels
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective


class TwoViews(Objective):
    """Compares two augmented views of each window with others by cosines."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of the views and of their comparison."""

        augment: Augment
        """What makes the views."""
        temperature: float
        """What cosines are divided by."""

        def __post_init__(self) -> None:
            if not 0.0 < self.temperature < float("inf"):
                raise ConfigError(f"--objective.temperature must be above 0, got {self.temperature}")

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse windows that the transforms cannot change; every encoder will do."""
        assert isinstance(config, TwoViews.Config)
        config.augment.check(encoder.num_leads, window_samples, rate_hz)

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.augmenter = Augmenter(config.augment)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Augment each window twice."""
        views = [self.augmenter(batch.signal_BLT, view_of(batch, draws, number)) for number in (0, 1)]
        return replace(batch, views_BVLT=torch.stack(views, dim=1))

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and its views, with what was done to each."""
        views_BVLT = self.views(batch, draws).views_BVLT
        assert views_BVLT is not None
        notes_V = [self.augmenter.names(view_of(batch, draws, number)) for number in (0, 1)]
        return (Panel(title="window", signal_BLT=batch.signal_BLT), *view_panels(views_BVLT, notes_V=notes_V))

    def published(self) -> Encoder:
        """Return the trained encoder without its heads."""
        return self.encoder


def view_of(batch: Batch, draws: Draws, number: int) -> View:
    """Return what an augmentation may know of a view of a batch that `prepare` has been through."""
    assert batch.rate_hz is not None and batch.mean_mv_BL is not None and batch.std_mv_BL is not None
    return View(
        draws=draws, rate_hz=batch.rate_hz, mean_mv_BL=batch.mean_mv_BL, std_mv_BL=batch.std_mv_BL, number=number
    )
