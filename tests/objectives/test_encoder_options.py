"""Rotary positions and learned pools of the vision transformers, under every objective of the folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders._transformer import Transformer
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, Progress, build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.mae import MAE

ROWS, WINDOW, RATE_HZ = 4, 1000, 500.0
VIT = ViT.Config(width=16, patch_samples=25, depth=1, num_heads=2, positions="rotary")
LEADTIME = LeadTimeViT.Config(width=16, patch_samples=50, depth=1, num_heads=2, positions="rotary", separators=True)


def objective(settings: Objective.Config, encoder: Transformer.Config) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_objective(settings, encoder, WINDOW, RATE_HZ)


def loss(built: Objective) -> Tensor:
    labels = built.labels(built.config)
    batch = Batch(
        signal_BLT=torch.randn(ROWS, 12, WINDOW, generator=torch.Generator().manual_seed(0)),
        microvolt_per_count_B=torch.ones(ROWS),
        database_B=torch.zeros(ROWS, dtype=torch.int64),
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.zeros(ROWS, 12),
        std_mv_BL=torch.ones(ROWS, 12),
        labels_BC=(torch.arange(ROWS * len(labels)) % 2).float().view(ROWS, -1) if labels else None,
    )
    draws = Draws(seed=0, step=0, rows=(0, ROWS), all_rows=ROWS, device=torch.device("cpu"))
    found: Tensor = built(built.views(batch, draws), Progress(step=0, schedule_steps=100, measure=True))["loss"]
    return found


def check_all_learn(built: Objective) -> None:
    torch.autograd.backward(loss(built))
    for name, weight in built.encoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.mark.parametrize("encoder", [VIT, LEADTIME])
@pytest.mark.parametrize("settings", [JEPA.Config(min_block=2), MAE.Config()])
def test_rotary_positions_learn_with_tokens_left_out(settings: Objective.Config, encoder: Transformer.Config) -> None:
    check_all_learn(objective(settings, encoder))


@pytest.mark.parametrize("pooling", ["register", "attentive"])
@pytest.mark.parametrize("name", parts.names("ecgfm.objectives"))
def test_a_pool_is_refused_or_learns(name: str, pooling: Literal["register", "attentive"]) -> None:
    settings = parts.load("ecgfm.objectives", name, Objective).Config()  # type: ignore[type-abstract]
    encoder = replace(VIT, pooling=pooling)
    try:
        built = objective(settings, encoder)
    except ConfigError as error:
        # Those that take no vision transformer say so.
        if "does not pass through the pool" not in str(error):
            with pytest.raises(ConfigError):
                objective(settings, replace(encoder, pooling="mean"))
        return
    check_all_learn(built)
