"""Masked prediction of target-encoder tokens (JEPA) for 12-lead ECG.

Assran et al. 2023, https://arxiv.org/abs/2301.08243, as Weimann and Conrad 2024,
https://arxiv.org/abs/2410.13867, apply it to ECG: masks are blocks of time shared by all leads, the loss
is the mean absolute error, and the target's tokens get no further layer norm (I-JEPA: layer norm, smooth
L1).

With an encoder that has tokens of each lead it is that of Kim 2024, https://arxiv.org/abs/2410.08559, as his code has
it: the same times are hidden in all leads, the encoder sees the rest of all leads together, and the predictor works on
each lead by itself, with positions in time alone. His targets are layer-normed and his error is smooth L1
(`norm_target`, `loss`). Ours draws the hidden times for each window; his are one draw a batch.

Shapes: B windows, L leads, T samples, S steps, N tokens, K kept tokens, M hidden tokens, R = B * L rows of a lead, D
width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.masks import hide_blocks, hide_random, split_tokens
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.errors import ConfigError
from ecgfm.kernels.masked_error import masked_error, wanted
from ecgfm.nn.collapse import alignment, dimension_std, effective_rank, feature_figures
from ecgfm.nn.predictor import Predictor
from ecgfm.nn.tokens import by_lead, token_samples
from ecgfm.objectives._checks import check_counts, check_drops_tokens, check_pool_is_mean, check_shares
from ecgfm.objectives.base import Losses, Objective, Progress
from ecgfm.schedules import linear


class JEPA(Objective):
    """Predict the target encoder's hidden tokens from the visible ones."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of the JEPA objective."""

        mask_ratio: tuple[float, float] = (0.75, 0.85)
        """Bounds of the share of tokens hidden from the context encoder; one draw a batch."""
        min_block: int = 10
        """Tokens of the shortest hidden block: 10 of 50 ms are 500 ms."""
        mask: Literal["blocks", "random"] = "blocks"
        """What is hidden: blocks of time, or single tokens anywhere (random), for which --objective.min-block says
        nothing."""
        mask_leads: Literal["together", "apart"] = "together"
        """Where each lead has tokens of its own: hide the same times in all leads, or draw them for each lead (apart),
        where the other leads show what is hidden in one: six limb leads are sums of two."""
        masks_per_window: int = 1
        """Masks that are drawn for each window. The target encodes it once for all of them; the context encoder and the
        predictor see each, and the loss is the mean. The papers have one; I-JEPA for images has four."""
        norm_target: bool = False
        """Whether the target's tokens get a further layer norm, without weights."""
        loss: Literal["l1", "smooth-l1"] = "l1"
        """Mean absolute error, or its smooth form that is quadratic below 1."""
        momentum: tuple[float, float] = (0.998, 0.9995)
        """Of the target encoder's moving average, at the schedule's start and end."""
        predictor_width: int | None = None
        """Features of the predictor's tokens; half the encoder's by default."""
        predictor_depth: int | None = None
        """Blocks of the predictor; as many as the encoder's by default."""
        predictor_heads: int | None = None
        """Attention heads of the predictor; as many as the encoder's by default."""

        def __post_init__(self) -> None:
            low, high = self.mask_ratio
            if not 0.0 < low <= high < 1.0:
                raise ConfigError(f"--objective.mask-ratio needs 0 < low <= high < 1, got {low} {high}")
            check_shares(self, "momentum")
            check_counts(self, "min_block", "masks_per_window", "predictor_width", "predictor_depth", "predictor_heads")

    config: Config
    takes_counts: ClassVar[bool] = True

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse an encoder that cannot drop tokens, and windows that the masks or patches do not fill."""
        assert isinstance(config, JEPA.Config)
        check_drops_tokens("jepa", encoder)
        check_pool_is_mean("jepa", encoder)
        check_window(encoder, window_samples)
        if config.mask_leads == "apart" and not encoder.leads_apart:
            raise ConfigError(
                f"--objective.mask-leads apart needs an encoder with tokens of each lead, and "
                f"{parts.kind_of(type(encoder))} has none; use vit_leadtime, or leave it out"
            )
        tokens = window_samples // encoder.patch_samples
        fewest, most = (tokens - kept_tokens(share, tokens) for share in config.mask_ratio)
        if config.mask == "random" and not 1 <= fewest <= most < tokens:
            raise ConfigError(
                f"of {tokens} tokens --objective.mask-ratio {config.mask_ratio} hides {fewest} to {most}; it must hide "
                "and leave at least one: use longer windows or another share"
            )
        if config.mask == "blocks" and fewest < config.min_block:
            raise ConfigError(
                f"windows of {tokens} tokens hide {fewest} at the least, fewer than --objective.min-block "
                f"{config.min_block}; use longer windows or a shorter block"
            )
        width, _, heads = _predictor_shape(config, encoder)
        if width % heads or width % 2:
            raise ConfigError(f"the predictor's width {width} must be even and a multiple of its {heads} heads")

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        settings = encoder.config
        self.patch_samples = settings.patch_samples
        self.num_leads = settings.num_leads if settings.leads_apart else 1
        self.predictor = Predictor(settings.width, *_predictor_shape(config, settings))
        self.target = copy.deepcopy(encoder).requires_grad_(False)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Draw the masks: one share a batch, places for each row; of several masks a window's are side by side."""
        tokens = batch.signal_BLT.shape[2] // self.patch_samples
        low, high = self.config.mask_ratio
        hidden = tokens - kept_tokens(high - (high - low) * draws.shared("mask ratio"), tokens)
        rows, groups = len(batch.signal_BLT), self.num_leads if self.config.mask_leads == "apart" else 1
        each = groups * self.config.masks_per_window
        if self.config.mask == "blocks":
            hidden_BN = hide_blocks(draws, rows, tokens, hidden, self.config.min_block, each)
        else:
            hidden_BN = hide_random(draws, rows, tokens, hidden, each)
        hidden_BN = hidden_BN.reshape(-1, groups * tokens)
        # The same times in every lead, where leads have tokens of their own and the masks are not.
        hidden_BN = hidden_BN.repeat(1, self.num_leads // groups)
        keep_BK, hide_BM = split_tokens(hidden_BN, hidden * self.num_leads)
        return replace(batch, keep_BK=keep_BK, hide_BM=hide_BM)

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and which of its tokens the encoder does not see, by the first mask."""
        hide_BM = self.views(batch, draws).hide_BM
        assert hide_BM is not None
        first_BM = hide_BM[:: self.config.masks_per_window]
        hidden_BLT = token_samples(first_BM, self.patch_samples, batch.signal_BLT.shape[2], leads=self.num_leads)
        regions = {"hidden from the encoder": hidden_BLT}
        return (Panel(title="window", signal_BLT=batch.signal_BLT, regions=regions, masks=True),)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Error of the guesses, the mean over the hidden tokens and their features.

        Args:
            batch: Normalised `signal_BLT`, or its `counts`; `keep_BK` and `hide_BM`, token indices, with
                `masks_per_window` rows for each window.
            at: Where the run stands.

        Returns:
            `loss`, a scalar. At measured steps also the figures of nn/collapse.py. Of the target's tokens
            `target_std`, the mean over their dimensions, `target_std_least`, the least of them, and
            `effective_rank`; of its pooled features `feature_std`, `feature_rank` and `uniformity`: all of these
            go to 0 (the ranks to 1) when the encoder collapses. `alignment` is that of a guess with its target.
        """
        assert batch.keep_BK is not None and batch.hide_BM is not None
        with torch.no_grad():
            target_BND = self.target(batch.signal)
        norm, smooth, masks = self.config.norm_target, self.config.loss == "smooth-l1", self.config.masks_per_window
        total: Tensor | None = None
        for number in range(masks):
            keep_BK, hide_BM = batch.keep_BK[number::masks], batch.hide_BM[number::masks]
            guess_BMD = self._guess(self.encoder(batch.signal, keep_BK), keep_BK, hide_BM)
            error = masked_error(guess_BMD, target_BND, hide_BM, smooth=smooth, norm=norm)
            total = error if total is None else total + error
        assert total is not None
        losses = {"loss": total / masks if masks > 1 else total}
        if at.measure:  # of the last mask
            losses |= self._figures(target_BND, wanted(target_BND, hide_BM, norm=norm), guess_BMD)
        return losses

    def _guess(self, context_BKD: Tensor, keep_BK: Tensor, hide_BM: Tensor) -> Tensor:
        """Return guess_BMD, of each lead by itself where leads have tokens of their own."""
        steps = (keep_BK.shape[1] + hide_BM.shape[1]) // self.num_leads
        keep_RK, hide_RM = (by_lead(index, self.num_leads, steps) for index in (keep_BK, hide_BM))
        guess: Tensor = self.predictor(context_BKD.reshape(*keep_RK.shape, -1), keep_RK, hide_RM)
        return guess.reshape(*hide_BM.shape, -1)

    @torch.no_grad()
    def _figures(self, target_BND: Tensor, wanted_BMD: Tensor, guess_BMD: Tensor) -> Losses:
        std_D = dimension_std(wanted_BMD.flatten(0, 1))
        return {
            "target_std": std_D.mean(),
            "target_std_least": std_D.min(),
            "effective_rank": effective_rank(target_BND.flatten(0, 1)),
            **feature_figures(self.target.pool(target_BND)),
            # The paper's pairs are two views of a record; ours are a target's token and its guess from the others.
            "alignment": alignment(guess_BMD.flatten(0, 1), wanted_BMD.flatten(0, 1)),
        }

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the target, which follows the encoder."""
        return ((self.target, self.encoder),)

    def momentum(self, at: Progress) -> float:
        """Return the momentum of a step, on the line from the first to the last."""
        return linear(at.step, at.schedule_steps, *self.config.momentum)

    def published(self) -> Encoder:
        """Return the target encoder, whose features are the better ones (section 4 of both papers)."""
        return self.target


def kept_tokens(hidden_share: float, tokens: int) -> int:
    """Return ceil((1 - hidden_share) * tokens), the ceiling of what is meant: 1 - 0.7 is a little above 0.3."""
    return math.ceil(round((1.0 - hidden_share) * tokens, 6))


def _predictor_shape(config: JEPA.Config, encoder: Encoder.Config) -> tuple[int, int, int]:
    """Return the predictor's width, depth and heads."""
    depth = config.predictor_depth or getattr(encoder, "depth", None)
    heads = config.predictor_heads or getattr(encoder, "num_heads", None)
    if depth is None or heads is None:
        raise ConfigError("this encoder has no depth and heads to copy; give --objective.predictor-depth and -heads")
    return config.predictor_width or encoder.width // 2, depth, heads
