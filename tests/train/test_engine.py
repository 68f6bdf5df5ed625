"""What the engine does to an objective before DeepSpeed has it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.nn.blocks import Blocks
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.averages import pairs, split_groups_
from ecgfm.train.engine import recompute_
from ecgfm.train.optim import Optim, build_optimizer

ENCODER = ViT.Config(width=16, num_leads=3, patch_samples=25, depth=2, num_heads=2)


def objective() -> JEPA:
    torch.manual_seed(0)
    built = build_objective(JEPA.Config(), ENCODER, 1000, 500.0)
    assert isinstance(built, JEPA)
    return built


def note(kept: list[Tensor], tensor: Tensor) -> Tensor:
    kept.append(tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    return tensor


def test_recomputed_activations_change_no_bit_of_a_gradient() -> None:
    found: list[list[Tensor]] = []
    saved: list[int] = []
    for recomputed in (False, True):
        encoder = objective().encoder
        for module in encoder.modules():
            if isinstance(module, Blocks):
                module.recomputed = recomputed
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(note, kept), same):
            loss = encoder(torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(1))).square().mean()
        torch.autograd.backward(loss)
        found.append([weight.grad for weight in encoder.parameters() if weight.grad is not None])
        saved.append(len(kept))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)) and found[0]
    assert saved[1] < saved[0] / 2


def test_an_objective_without_blocks_is_refused_to_recompute() -> None:
    built = objective()
    recompute_(built)
    assert built.predictor.blocks.recomputed and built.encoder.get_submodule("blocks").recomputed
    built.encoder, built.target, built.predictor = (torch.nn.Identity(),) * 3  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"JEPA has no blocks that can be computed again"):
        recompute_(built)


def test_what_an_average_follows_is_in_groups_of_its_own() -> None:
    built = objective()
    optimizer = build_optimizer(Optim(), built)
    before = {id(weight): group["decays"] for group in optimizer.param_groups for weight in group["params"]}
    split_groups_(optimizer, built)
    after = {id(weight): group["decays"] for group in optimizer.param_groups for weight in group["params"]}
    assert before == after
    followed = {id(pair.source) for pair in pairs(built)}
    kinds = [{id(weight) in followed for weight in group["params"]} for group in optimizer.param_groups]
    assert kinds == [{True}, {False}, {True}, {False}]
