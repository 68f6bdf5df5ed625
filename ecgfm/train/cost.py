"""Operations of a window, part by part: by a formula for masked prediction with transformers, counted for the rest.

A transformer's are known from its settings: 2 x tokens x weights of a linear layer, and 2 x 2 x tokens^2 x width of
attention (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1, with attention). The backward pass takes
twice the forward, the gradient of the input and that of the weight; the signal needs none. So `jepa` and `mae` on `vit`
and `vit_leadtime` are told by formulas, which the tests hold against torch's counter. For the other objectives and
encoders a formula would be their code once more: they are counted, see flops.py.

Like there, these are the model's operations: activation checkpointing, and the scores that fused attention computes
again, come on top.

Shapes: S steps, L leads, N tokens, K kept tokens, M hidden tokens, R registers, D width, P samples of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ecgfm import parts
from ecgfm.encoders._transformer import Transformer
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.objectives.base import Objective, Progress
from ecgfm.objectives.jepa import JEPA, kept_tokens
from ecgfm.objectives.mae import MAE
from ecgfm.train.flops import ROWS, batch_tensors, usual_views

DRAWS = 1000
"""Shares of hidden tokens over which the mean is taken."""


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Of one part of the model, for one window."""

    part: str
    """encoder, target, predictor, decoder, or what else the objective has."""
    kind: str
    """What it computes: patches, linear layers, attention; all of it where it was counted."""
    forward: float
    """Operations."""
    backward: float = 0.0
    """Operations; none where nothing is trained. Those that were counted have them in `forward`."""

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def by_formula(objective: Objective.Config, encoder: Encoder.Config, window_samples: int) -> tuple[Operations, ...]:
    """Return the operations of a window, the mean over the masks; empty where there is no formula.

    Args:
        objective: Settings, of a pair that fits.
        encoder: Settings.
        window_samples: T.
    """
    if not isinstance(encoder, Transformer.Config):
        return ()
    if isinstance(objective, JEPA.Config):
        low, high = objective.mask_ratio
        shares = [low + (high - low) * (draw + 0.5) / DRAWS for draw in range(DRAWS)]
        steps = window_samples // encoder.patch_samples
        counts = [kept_tokens(share, steps) for share in shares]
        each = [(_jepa(objective, encoder, window_samples, kept), counts.count(kept)) for kept in sorted(set(counts))]
        return tuple(
            replace(
                rows[0],
                forward=sum(row.forward * times for row, (_, times) in zip(rows, each, strict=True)) / DRAWS,
                backward=sum(row.backward * times for row, (_, times) in zip(rows, each, strict=True)) / DRAWS,
            )
            for rows in zip(*(operations for operations, _ in each), strict=True)
        )
    return _mae(objective, encoder, window_samples) if isinstance(objective, MAE.Config) else ()


def counted(objective: Objective, *, num_leads: int, window_samples: int, rate_hz: float) -> tuple[Operations, ...]:
    """Return the operations of a window by the objective's own modules, as torch's counter finds them.

    Args:
        objective: On the meta device, of its own: it gets gradients.
        num_leads: Of the signal.
        window_samples: T.
        rate_hz: Samples a second.
    """
    views = usual_views(objective, num_leads=num_leads, window_samples=window_samples, rate_hz=rate_hz)
    on_meta: dict[str, Any] = {name: value.to("meta") for name, value in batch_tensors(views).items()}
    with FlopCounterMode(display=False, depth=2) as counter:
        torch.autograd.backward(objective(replace(views, **on_meta), Progress(step=0, schedule_steps=1))["loss"])
    found = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    own = f"{type(objective).__name__}."
    rows = {name.removeprefix(own): found.get(own + name, 0) / ROWS for name, _ in objective.named_children()}
    rows["the rest"] = counter.get_total_flops() / ROWS - sum(rows.values())
    # What a module does outside of its forward is found in the rest.
    return tuple(Operations(part=name, kind="all", forward=total) for name, total in rows.items() if total > 0)


def _jepa(
    objective: JEPA.Config, encoder: Transformer.Config, window_samples: int, kept: int
) -> tuple[Operations, ...]:
    leads = encoder.num_leads if encoder.leads_apart else 1
    tokens, seen = window_samples // encoder.patch_samples * leads, kept * leads
    width, depth = objective.predictor_width or encoder.width // 2, objective.predictor_depth or encoder.depth
    masked = (
        *_encoder("encoder", encoder, seen, trained=True),
        *_predictor("predictor", encoder.width, width, depth, encoder.width, tokens, seen, rows=leads),
    )
    masks = objective.masks_per_window
    return (
        *_encoder("target", encoder, tokens, trained=False),
        *(replace(row, forward=masks * row.forward, backward=masks * row.backward) for row in masked),
    )


def _mae(objective: MAE.Config, encoder: Transformer.Config, window_samples: int) -> tuple[Operations, ...]:
    leads = encoder.num_leads if encoder.leads_apart else 1
    steps = window_samples // encoder.patch_samples
    tokens = steps * leads
    of = leads if objective.hide == "leads" else steps
    seen = math.floor(round((1.0 - objective.mask_ratio) * of, 6)) * tokens // of
    values = encoder.patch_samples * (1 if encoder.leads_apart else encoder.num_leads)
    return (
        *_encoder("encoder", encoder, seen, trained=True),
        *_predictor(
            "decoder",
            encoder.width,
            objective.decoder_width,
            objective.decoder_depth,
            values,
            tokens,
            seen,
            rows=leads if objective.decode == "apart" else 1,
        ),
    )


def _encoder(part: str, encoder: Transformer.Config, tokens: int, *, trained: bool) -> tuple[Operations, ...]:
    """Return the operations on `tokens` of a window; what it does not see is not embedded."""
    beside = encoder.num_registers
    if isinstance(encoder, LeadTimeViT.Config) and encoder.separators:
        beside += encoder.num_leads
    values = encoder.patch_samples * (1 if encoder.leads_apart else encoder.num_leads)
    embed = 2 * tokens * values * encoder.width
    linear, attention = _blocks(tokens + beside, encoder.width, encoder.depth, encoder.mlp_ratio)
    return (
        Operations(part=part, kind="patches", forward=embed, backward=embed * trained),
        Operations(part=part, kind="linear layers", forward=linear, backward=2 * linear * trained),
        Operations(part=part, kind="attention", forward=attention, backward=2 * attention * trained),
    )


def _predictor(
    part: str, encoder_width: int, width: int, depth: int, out_width: int, tokens: int, seen: int, *, rows: int
) -> tuple[Operations, ...]:
    """Return the operations on all tokens of a window, in rows that do not see each other."""
    ends = 2 * seen * encoder_width * width + 2 * (tokens - seen) * width * out_width
    linear, attention = (rows * count for count in _blocks(tokens // rows, width, depth, 4.0))
    return (
        Operations(part=part, kind="linear layers", forward=linear + ends, backward=2 * (linear + ends)),
        Operations(part=part, kind="attention", forward=attention, backward=2 * attention),
    )


def _blocks(tokens: int, width: int, depth: int, mlp_ratio: float) -> tuple[int, int]:
    """Return the operations of a forward pass through linear layers and through attention."""
    weights = 4 * width**2 + 2 * width * int(width * mlp_ratio)
    return depth * 2 * tokens * weights, depth * 2 * 2 * tokens**2 * width


def kind_of(objective: Objective.Config, encoder: Encoder.Config) -> str:
    """Return how the pair is called."""
    return f"{parts.kind_of(type(objective))} on {parts.kind_of(type(encoder))}"
