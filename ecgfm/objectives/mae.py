"""Masked autoencoder: reconstruct the samples of hidden patches (MAE, as MTAE, MLAE and ST-MEM on ECG).

He et al. 2022, https://arxiv.org/abs/2111.06377, as Na et al. 2024 (ST-MEM), https://arxiv.org/abs/2402.09450, have it.
Paper says: the encoder sees the patches that are left, a small decoder reconstructs the others, and the error counts
there alone; ST-MEM has patches of each lead and a decoder that all leads share and that sees one lead at a time; MTAE
has patches of all leads, MLAE whole leads. Code says: 75 % hidden, floor(0.25 n) kept; 4 decoder blocks of width 256
with 4 heads; each patch's target minus its mean and over its standard deviation (of n - 1, with 1e-6 on the variance);
error squared. Ours: the same, but the encoder's separators and class token do not go to the decoder, and linear layers
have no bias, as in the encoder.

    encoder             hide      decode
    vit                 patches   apart      MTAE: blocks of time of all leads together
    vit_leadtime        patches   apart      ST-MEM: as many patches of each lead, others in each
    vit_leadtime        times     either     the same times in all leads
    vit_leadtime        leads     together   MLAE; theirs has one patch a lead: a patch as long as the window

Shapes: B windows, L leads, T samples, S steps, N tokens, K kept tokens, M hidden tokens, R = B * L rows of a lead, D
width, P values of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.masks import hide_random, split_tokens
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.errors import ConfigError
from ecgfm.kernels import ingest
from ecgfm.kernels.ingest import Counts
from ecgfm.nn.collapse import effective_rank, feature_figures
from ecgfm.nn.predictor import Predictor
from ecgfm.nn.tokens import by_lead, take, token_samples, unpatch
from ecgfm.objectives._checks import check_counts, check_drops_tokens, check_pool_is_mean
from ecgfm.objectives.base import Losses, Objective, Progress

TARGET_EPS = 1e-6


class MAE(Objective):
    """Reconstruct the hidden patches from the visible ones."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of the masked autoencoder; the defaults are ST-MEM's."""

        mask_ratio: float = 0.75
        """Share of the patches hidden from the encoder."""
        hide: Literal["patches", "times", "leads"] = "patches"
        """What is hidden: patches at random, as many of each lead; the same times in all leads; or whole leads. An
        encoder whose patches are of all leads has patches alone."""
        decode: Literal["apart", "together"] = "apart"
        """Whether the decoder sees each lead by itself or all of them. Of a lead that is hidden as a whole nothing is
        left to see: --objective.hide leads needs together."""
        norm_target: bool = True
        """Subtract each patch's mean and divide by its standard deviation before comparing."""
        decoder_width: int = 256
        """Features of the decoder's tokens."""
        decoder_depth: int = 4
        """Blocks of the decoder."""
        decoder_heads: int = 4
        """Attention heads of the decoder."""

        def __post_init__(self) -> None:
            if not 0.0 < self.mask_ratio < 1.0:
                raise ConfigError(f"--objective.mask-ratio must be between 0 and 1, got {self.mask_ratio}")
            check_counts(self, "decoder_width", "decoder_depth", "decoder_heads")
            if self.decoder_width % self.decoder_heads or self.decoder_width % 2:
                raise ConfigError(
                    f"--objective.decoder-width {self.decoder_width} must be even and a multiple of "
                    f"--objective.decoder-heads {self.decoder_heads}"
                )
            if self.hide == "leads" and self.decode == "apart":
                raise ConfigError(
                    "--objective.hide leads leaves the decoder nothing of a hidden lead to see: give "
                    "--objective.decode together"
                )

    config: Config
    takes_counts: ClassVar[bool] = True

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse an encoder that cannot drop tokens, and windows that the masks or patches do not fill."""
        assert isinstance(config, MAE.Config)
        check_drops_tokens("mae", encoder)
        check_pool_is_mean("mae", encoder)
        check_window(encoder, window_samples)
        if not encoder.leads_apart and (config.hide != "patches" or config.decode != "apart"):
            raise ConfigError(
                f"--objective.hide {config.hide} with --objective.decode {config.decode} needs an encoder with tokens "
                f"of each lead, and {parts.kind_of(type(encoder))} has none; use vit_leadtime, or patches and apart"
            )
        if config.norm_target and (values := _patch_values(encoder)) < 2:
            raise ConfigError(f"a patch of {values} value has no deviation: give --objective.no-norm-target")
        what, of = _places(config, encoder, window_samples)
        if not 1 <= _hidden(config.mask_ratio, of) < of:
            raise ConfigError(
                f"--objective.mask-ratio {config.mask_ratio} of {of} {what} hides {_hidden(config.mask_ratio, of)}; it "
                "must hide and leave at least one: use longer windows or another share"
            )

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        settings = encoder.config
        # The leads that the decoder takes apart, and those that it tells apart.
        together = settings.leads_apart and config.decode == "together"
        self.num_leads = settings.num_leads if settings.leads_apart and not together else 1
        self.decoder = Predictor(
            settings.width,
            config.decoder_width,
            config.decoder_depth,
            config.decoder_heads,
            out_width=_patch_values(settings),
            num_leads=settings.num_leads if together else 1,
        )

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Draw the masks: as many hidden in each row, other ones in each."""
        rows, _, samples = batch.signal_BLT.shape
        settings = self.encoder.config
        steps = samples // settings.patch_samples
        leads = settings.num_leads if settings.leads_apart else 1
        _, of = _places(self.config, settings, samples)
        hidden = _hidden(self.config.mask_ratio, of)
        if self.config.hide == "patches":
            hidden_BN = hide_random(draws, rows, steps, hidden, leads)
        elif self.config.hide == "times":
            hidden_BN = hide_random(draws, rows, steps, hidden).repeat(1, leads)
        else:
            hidden_BN = hide_random(draws, rows, leads, hidden).repeat_interleave(steps, dim=1)
        keep_BK, hide_BM = split_tokens(hidden_BN, hidden * (steps * leads // of))
        return replace(batch, keep_BK=keep_BK, hide_BM=hide_BM)

    @torch.no_grad()
    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window, its hidden patches and what is guessed there.

        Where targets are normalised the guess has no mean and size of its own: it gets those of the patch, as in the
        figures of He et al.
        """
        seen, settings = self.views(batch, draws), self.encoder.config
        assert seen.hide_BM is not None
        _, guess_BMP = self._reconstruct(seen)
        patches_BNP = self._patches(batch.signal_BLT)
        if self.config.norm_target:
            var_BM1, mean_BM1 = torch.var_mean(take(patches_BNP, seen.hide_BM), dim=2, keepdim=True)
            guess_BMP = guess_BMP * (var_BM1 + TARGET_EPS).sqrt() + mean_BM1
        index_BMP = seen.hide_BM[:, :, None].expand(guess_BMP.shape)
        guess_BNP = torch.full_like(patches_BNP, torch.nan).scatter(1, index_BMP, guess_BMP)
        panel = Panel(
            title="window",
            signal_BLT=batch.signal_BLT,
            regions={
                "hidden from the encoder": token_samples(
                    seen.hide_BM,
                    settings.patch_samples,
                    batch.signal_BLT.shape[2],
                    leads=settings.num_leads if settings.leads_apart else 1,
                )
            },
            masks=True,
            notes=("guessed with each patch's own mean and size",) * len(guess_BMP) if self.config.norm_target else (),
            guess_BLT=unpatch(guess_BNP, settings.num_leads, leads_apart=settings.leads_apart),
        )
        return (panel,)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Mean squared error over the samples of the hidden patches.

        Args:
            batch: Normalised `signal_BLT`, or its `counts`; `keep_BK` and `hide_BM`, token indices.
            at: Where the run stands.

        Returns:
            `loss`, a scalar: 1 for a guess of 0 where targets are normalised. At measured steps also `effective_rank`
            of the visible tokens, and of their pooled features `feature_std`, `feature_rank` and `uniformity`; see
            nn/collapse.py. Without `norm_target` also `mse_mv2`, the error in square millivolt.
        """
        assert batch.hide_BM is not None
        context_BKD, guess_BMP = self._reconstruct(batch)
        wanted_BMP = self._patches(batch.signal, batch.hide_BM)
        if self.config.norm_target:
            var_BM1, mean_BM1 = torch.var_mean(wanted_BMP, dim=2, keepdim=True)
            wanted_BMP = (wanted_BMP - mean_BM1) * (var_BM1 + TARGET_EPS).rsqrt()
        losses = {"loss": functional.mse_loss(guess_BMP, wanted_BMP)}
        if at.measure:
            losses |= self._figures(context_BKD, guess_BMP, wanted_BMP, batch)
        return losses

    def _reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return context_BKD, the visible tokens, and guess_BMP, the hidden patches."""
        assert batch.keep_BK is not None and batch.hide_BM is not None
        context_BKD = self.encoder(batch.signal, batch.keep_BK)
        steps = (batch.keep_BK.shape[1] + batch.hide_BM.shape[1]) // self.num_leads
        keep_RK, hide_RM = (by_lead(index, self.num_leads, steps) for index in (batch.keep_BK, batch.hide_BM))
        guess_RMP = self.decoder(context_BKD.reshape(*keep_RK.shape, -1), keep_RK, hide_RM)
        return context_BKD, guess_RMP.reshape(*batch.hide_BM.shape, -1).float()

    def _patches(self, signal: Tensor | Counts, index_BK: Tensor | None = None) -> Tensor:
        settings = self.encoder.config
        size, apart = settings.patch_samples, settings.leads_apart
        return ingest.patches(signal, size, index_BK, leads_apart=apart, dtype=torch.float32)

    @torch.no_grad()
    def _figures(self, context_BKD: Tensor, guess_BMP: Tensor, wanted_BMP: Tensor, batch: Batch) -> Losses:
        figures = {
            "effective_rank": effective_rank(context_BKD.flatten(0, 1)),
            **feature_figures(self.encoder.pool(context_BKD)),
        }
        if not self.config.norm_target and batch.std_mv_BL is not None:
            assert batch.hide_BM is not None
            std_BNP = self._patches(batch.std_mv_BL[:, :, None].expand(batch.signal_BLT.shape))
            figures["mse_mv2"] = ((guess_BMP - wanted_BMP) * take(std_BNP, batch.hide_BM)).square().mean()
        return figures

    def published(self) -> Encoder:
        """Return the encoder."""
        return self.encoder


def _places(config: MAE.Config, encoder: Encoder.Config, window_samples: int) -> tuple[str, int]:
    """Return what is hidden or not as a whole, and of how many the share is taken."""
    if config.hide == "leads":
        return "leads", encoder.num_leads
    return ("patches of a lead" if encoder.leads_apart else "patches"), window_samples // encoder.patch_samples


def _hidden(share: float, of: int) -> int:
    """Return of - floor((1 - share) * of), the floor of what is meant: 1 - 0.7 is a little above 0.3."""
    return of - math.floor(round((1.0 - share) * of, 6))


def _patch_values(encoder: Encoder.Config) -> int:
    return encoder.patch_samples * (1 if encoder.leads_apart else encoder.num_leads)
