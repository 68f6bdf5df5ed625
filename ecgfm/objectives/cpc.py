"""Contrastive predictive coding (CPC) for 12-lead ECG.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748: from the context of the steps up to now, guess a later
step's latent by a linear map, and tell it from other latents (InfoNCE). As Mehari and Strodthoff 2022
(https://doi.org/10.1016/j.compbiomed.2021.105114) apply it to ECG, and Al-Masud and Strodthoff 2026
(https://arxiv.org/abs/2605.12241) after them.

Paper says: 12 steps ahead (2026: 14), 128 negatives, an LSTM for context (2026: S4).
Code says: only the last of these steps is guessed, where van den Oord guesses each, with a map of its own; negatives
come from the same window in the reported runs, with repetition, evenly from all steps but the right one; scalar
products without scale; gradients flow into the negatives; the loss is the sum over steps and the mean over windows.
Ours: the same, but the mean over steps too, which AdamW does not notice; `--objective.ahead 1 2 3` guesses more steps.
Negatives from the same window need no other rank: two ranks with half the rows each do what one does.

The encoder that is published is stem and context together; the linear maps are not part of it.

Shapes: B windows, N steps, S guessed steps, K negatives, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel
from ecgfm.encoders._contextual import Contextual
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import alignment, dimension_std, effective_rank, feature_figures
from ecgfm.nn.heads import exact
from ecgfm.nn.tokens import token_samples
from ecgfm.objectives._checks import check_counts
from ecgfm.objectives.base import Losses, Objective, Progress


class CPC(Objective):
    """Tell a later step's latent from other steps' by the context so far."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Settings of the CPC objective."""

        ahead: tuple[int, ...] = (12,)
        """How many steps ahead is guessed: 12 of 10 ms are 120 ms. Several have a linear map each."""
        negatives: int = 128
        """Steps of the same window that a guessed one is told from, drawn with repetition."""

        def __post_init__(self) -> None:
            if not self.ahead or min(self.ahead) < 1 or len(set(self.ahead)) < len(self.ahead):
                raise ConfigError(f"--objective.ahead needs different numbers of at least 1, got {self.ahead}")
            check_counts(self, "negatives")

    config: Config
    encoder: Contextual

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse an encoder without a causal context, and windows too short to guess anything in."""
        assert isinstance(config, CPC.Config)
        if not isinstance(encoder, Contextual.Config):
            raise ConfigError(
                "the objective cpc needs an encoder with a stem and a context over its steps, and "
                f"{parts.kind_of(type(encoder))} is not made so; use s4 with --encoder.causal, or lstm"
            )
        if encoder.sees_later():
            raise ConfigError(
                "the objective cpc guesses later steps, which this encoder sees already; give --encoder.causal"
            )
        steps, furthest = window_samples // encoder.patch_samples, max(config.ahead)
        if steps <= furthest:
            raise ConfigError(
                f"windows of {steps} steps have none that is {furthest} ahead of another; use longer windows "
                "(--data.window-s) or a smaller --objective.ahead"
            )

    def __init__(self, config: Config, encoder: Contextual) -> None:
        super().__init__(config, encoder)
        width = encoder.config.width
        self.guesses = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in config.ahead)

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Draw the numbers that choose the negatives of each guessed step."""
        steps = batch.signal_BLT.shape[2] // self.encoder.config.patch_samples
        guessed = steps - min(self.config.ahead)
        return replace(batch, uniform_BR=draws.many("negatives", guessed * self.config.negatives))

    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return the window and one of its guesses, from half of it: context, guessed steps, and the others drawn."""
        uniform_BR, first = self.views(batch, draws).uniform_BR, min(self.config.ahead)
        assert uniform_BR is not None and batch.rate_hz is not None
        rows, _, samples = batch.signal_BLT.shape
        patch = self.encoder.config.patch_samples
        steps = samples // patch
        last = (steps - max(self.config.ahead)) // 2
        other_BSK = other_steps(uniform_BR.view(rows, -1, self.config.negatives), first=first)
        step_BK = {
            "context": torch.arange(last + 1).expand(rows, -1),
            "guessed step": torch.tensor([last + ahead for ahead in self.config.ahead]).expand(rows, -1),
            # The first of S stands for step `first`, and so this one for step `last + first`.
            "steps it is told from": other_BSK[:, last],
        }
        regions = {name: token_samples(index_BK, patch, samples, leads=1) for name, index_BK in step_BK.items()}
        half_second = round(0.5 * batch.rate_hz)
        around = slice(max((last + 1) * patch - half_second, 0), (last + max(self.config.ahead)) * patch + half_second)
        return (
            Panel(title="window", signal_BLT=batch.signal_BLT, regions=regions),
            Panel(
                title="around the guess",
                signal_BLT=batch.signal_BLT[:, :, around],
                start_B=torch.full((rows,), around.start),
                regions={name: inside_BLT[:, :, around] for name, inside_BLT in regions.items()},
                alone=True,
            ),
        )

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """InfoNCE of later steps, the mean over windows, steps and what is guessed ahead.

        Args:
            batch: Normalised `signal_BLT`, and `uniform_BR`, which choose the negatives.
            at: Where the run stands.

        Returns:
            `loss`, a scalar, log(1 + negatives) where nothing is told apart, and `accuracy`, the share of guesses that
            are nearest to the right step. At measured steps also the figures of nn/collapse.py: of the latents
            `target_std`, the mean over their dimensions, and `target_std_least`; of the context's steps
            `effective_rank`; of its pooled features `feature_std`, `feature_rank` and `uniformity`. `alignment` is
            that of a guess with the right step.
        """
        assert batch.uniform_BR is not None
        latents_BND = self.encoder.latents(batch.signal_BLT)
        context_BND = self.encoder.context(latents_BND)
        negatives_BSK = other_steps(
            batch.uniform_BR.view(len(latents_BND), -1, self.config.negatives), first=min(self.config.ahead)
        )
        wanted_BND = latents_BND.float()
        losses, hits = [], []
        for ahead, guess in zip(self.config.ahead, self.guesses, strict=True):
            assert isinstance(guess, nn.Linear)
            guess_BSD = guess(context_BND[:, :-ahead].to(guess.weight.dtype)).float()
            steps_BSN = _products(guess_BSD, wanted_BND)
            # Of all steps of the window those that are drawn, which a product with each vector drawn would give.
            right_BS = steps_BSN.diagonal(ahead, dim1=1, dim2=2)
            wrong_BSK = steps_BSN.gather(2, negatives_BSK[:, ahead - min(self.config.ahead) :])
            losses.append((torch.cat([right_BS[..., None], wrong_BSK], dim=2).logsumexp(dim=2) - right_BS).mean())
            hits.append((right_BS > wrong_BSK.amax(dim=2)).float().mean())
        found = {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(hits).mean().detach()}
        if at.measure:
            # Of the last map, whose guess is there still.
            found |= self._figures(wanted_BND, context_BND, guess_BSD, wanted_BND[:, ahead:])
        return found

    @torch.no_grad()
    def _figures(self, latents_BND: Tensor, context_BND: Tensor, guess_BSD: Tensor, right_BSD: Tensor) -> Losses:
        std_D = dimension_std(latents_BND.flatten(0, 1))
        return {
            "target_std": std_D.mean(),
            "target_std_least": std_D.min(),
            "effective_rank": effective_rank(context_BND.flatten(0, 1)),
            **feature_figures(self.encoder.pool(context_BND)),
            "alignment": alignment(guess_BSD.flatten(0, 1), right_BSD.flatten(0, 1)),
        }

    def published(self) -> Encoder:
        """Return stem and context."""
        return self.encoder


def other_steps(uniform_BSK: Tensor, first: int) -> Tensor:
    """Return other_BSK, int64: steps of the window, even chances for all but the step that a number stands for.

    Args:
        uniform_BSK: Numbers in [0, 1), multiples of 2**-24: so no product below rounds up to the whole.
        first: Step that the first of S stands for; the last stands for the window's last step.
    """
    guessed = uniform_BSK.shape[1]
    steps = first + guessed
    other_BSK = (uniform_BSK * (steps - 1)).long()
    step_S1 = torch.arange(first, steps, device=uniform_BSK.device)[:, None]
    return other_BSK + (other_BSK >= step_S1)


def _products(guess_BSD: Tensor, latents_BND: Tensor) -> Tensor:
    """Return product_BSN in float32: over 512 features bfloat16 would err by more than the steps differ."""
    with exact(guess_BSD.device):
        return torch.bmm(guess_BSD, latents_BND.transpose(1, 2))
