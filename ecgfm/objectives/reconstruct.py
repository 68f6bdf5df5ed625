"""Reconstruct segments that were set to zero, with a U-ResNet.

Gedon et al. 2021, "First steps towards self-supervised pretraining of the 12-lead ECG", Computing in Cardiology.
Paper says: set several segments of a chosen length to zero in all channels, predict what was there by a residual
encoder and decoder with U-Net skips, publish the encoder. Not said: how long and how many they are, and whether the
error counts elsewhere too. Ours: segments of 250 ms that hide a quarter of the window, do not overlap and are drawn for
each window; the squared error counts inside of them (`error`), where alone something is predicted.

The zero is that of the normalised signal, each lead's mean.

Paper says: the mean squared error of each database, 1,197 on CODE where it was trained, 1,803 on CODE's test, 17,403 on
CPSC and 22,011 on PTB-XL; neither its unit nor whether it is that of the segments or of everything. Ours: both, of each
database by itself, in square millivolt, of which each is 1,000,000 square microvolt.

Shapes: B windows, L leads, T samples, G leads that are masked apart (or 1), C segments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.masks import inside_segments, segment_starts
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import effective_rank, feature_figures
from ecgfm.nn.u_decoder import UDecoder
from ecgfm.objectives._by_database import by_database
from ecgfm.objectives.base import Losses, Objective, Progress


class Reconstruct(Objective):
    """Say what stood where the signal is zero."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of masked-segment reconstruction."""

        segment_s: float = 0.25
        """Length of a segment in seconds."""
        mask_share: float = 0.25
        """Share of the window that the segments hide, to the nearest whole segment."""
        mask_leads: Literal["together", "apart"] = "together"
        """Set the same segments of all leads to zero, or others in each lead, where the other leads show what is hidden
        in one."""
        error: Literal["masked", "all"] = "masked"
        """Where the squared error counts: inside of the segments, or everywhere."""

        def __post_init__(self) -> None:
            if not 0 < self.segment_s < math.inf or not 0 < self.mask_share < 1:
                raise ConfigError(
                    f"--objective.segment-s {self.segment_s} must be above 0 and --objective.mask-share "
                    f"{self.mask_share} between 0 and 1"
                )

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse an encoder without maps for a decoder, and windows that the segments or steps do not fill."""
        assert isinstance(config, Reconstruct.Config)
        if not isinstance(encoder, UResNet.Config):
            raise ConfigError(
                "the objective reconstruct needs the maps that a U-ResNet's decoder joins, and "
                f"{parts.kind_of(type(encoder))} gives none; use u_resnet"
            )
        check_window(encoder, window_samples)
        segment, count = _segments(config, window_samples, rate_hz)
        if segment < 1 or count < 1 or segment * count >= window_samples:
            raise ConfigError(
                f"{count} segments of {segment} samples (--objective.segment-s {config.segment_s:g}, "
                f"--objective.mask-share {config.mask_share:g}) do not hide a part of windows of {window_samples}; use "
                "longer windows or shorter segments"
            )

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        assert isinstance(encoder, UResNet)
        settings = encoder.config
        self.decoder = UDecoder(
            (*settings.widths, settings.width),
            settings.strides,
            settings.num_leads,
            kernel=settings.kernel,
            norm=settings.norm,
        )

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Draw where the segments begin: `hide_BM` has their first samples, of one lead after another's if apart."""
        rows, leads, samples = batch.signal_BLT.shape
        segment, count = self._shape(batch)
        groups = leads if self.config.mask_leads == "apart" else 1
        return replace(batch, hide_BM=segment_starts(draws, rows, samples, segment, count, groups).flatten(1))

    @torch.no_grad()
    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window, its segments, and what is guessed where the error counts."""
        _, hidden_BGT, guess_BLT = self._reconstruct(self.views(batch, draws))
        if self.config.error == "masked":
            guess_BLT = guess_BLT.masked_fill(~hidden_BGT, torch.nan)
        regions = {"set to zero": hidden_BGT}
        return (Panel(title="window", signal_BLT=batch.signal_BLT, regions=regions, masks=True, guess_BLT=guess_BLT),)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Mean squared error of the reconstruction, in standard deviations.

        Args:
            batch: Normalised `signal_BLT` with its rate and normalisation; `hide_BM`, first samples of segments.
            at: Where the run stands.

        Returns:
            `loss`, a scalar. At measured steps, and always in evaluation mode, also `mse_masked` and `mse_all`, inside
            of the segments and everywhere, in squares of standard deviations; both again in square millivolt, of all
            windows (`mse_masked_mv2`, `mse_all_mv2`) and of each database (`mse_masked_mv2.ptb-xl`; see
            _by_database.py). At measured steps also of the encoder's steps `effective_rank`, of its pooled features
            `feature_std`, `feature_rank` and `uniformity`; see nn/collapse.py.
        """
        levels, hidden_BGT, guess_BLT = self._reconstruct(batch)
        error_BLT = guess_BLT - batch.signal_BLT
        counts_BLT = hidden_BGT.expand_as(error_BLT)
        loss = _mean(error_BLT, counts_BLT) if self.config.error == "masked" else error_BLT.square().mean()
        losses = {"loss": loss}
        if at.measure or not self.training:
            losses |= self._errors(error_BLT.detach(), counts_BLT, batch)
        if at.measure:
            tokens_BND = levels[-1].detach().transpose(1, 2)
            losses["effective_rank"] = effective_rank(tokens_BND.flatten(0, 1))
            losses |= feature_figures(self.encoder.pool(tokens_BND))
        return losses

    def _reconstruct(self, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the encoder's maps, hidden_BGT, which samples it did not see, and guess_BLT."""
        assert batch.hide_BM is not None and isinstance(self.encoder, UResNet)
        segment, count = self._shape(batch)
        start_BGC = batch.hide_BM.reshape(len(batch.hide_BM), -1, count)
        hidden_BGT = inside_segments(start_BGC, segment, batch.signal_BLT.shape[2])
        # A float32 signal for weights of 16 bits; autocast's weights are float32.
        dtype = next(self.encoder.parameters()).dtype
        levels = self.encoder.levels(batch.signal_BLT.masked_fill(hidden_BGT, 0.0).to(dtype))
        return levels, hidden_BGT, self.decoder(levels).float()

    @torch.no_grad()
    def _errors(self, error_BLT: Tensor, hidden_BLT: Tensor, batch: Batch) -> Losses:
        figures = {"mse_masked": _mean(error_BLT, hidden_BLT), "mse_all": error_BLT.square().mean()}
        if batch.std_mv_BL is not None:
            square_mv2_BLT = (error_BLT * batch.std_mv_BL[:, :, None]).square()
            inside_BLT = square_mv2_BLT.masked_fill(~hidden_BLT, 0.0)
            of_windows = {
                "mse_masked_mv2": inside_BLT.sum(dim=(1, 2)) / hidden_BLT.sum(dim=(1, 2)),
                "mse_all_mv2": square_mv2_BLT.mean(dim=(1, 2)),
            }
            for name, value_B in of_windows.items():
                figures |= {name: value_B.mean(), **by_database(name, value_B, batch)}
        return figures

    def _shape(self, batch: Batch) -> tuple[int, int]:
        """Return the samples of a segment and how many there are."""
        assert batch.rate_hz is not None, "the batch has not been prepared"
        return _segments(self.config, batch.signal_BLT.shape[2], batch.rate_hz)

    def published(self) -> Encoder:
        """Return the encoder, without its decoder."""
        return self.encoder


def _mean(error_BLT: Tensor, counts_BLT: Tensor) -> Tensor:
    """Return the mean square where it counts; as much counts in every window, so that means of windows agree."""
    return error_BLT.square().masked_fill(~counts_BLT, 0.0).sum() / counts_BLT.sum()


def _segments(config: Reconstruct.Config, samples: int, rate_hz: float) -> tuple[int, int]:
    segment = round(config.segment_s * rate_hz)
    return segment, round(config.mask_share * samples / max(segment, 1))
