"""What the engine does to an objective before DeepSpeed has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.nn.norms import Norm
from ecgfm.nn.recompute import Blocks
from ecgfm.objectives.base import Objective, Progress, build_objective
from ecgfm.objectives.dino import DINO
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.moco import MoCo
from ecgfm.objectives.supervised import Supervised
from ecgfm.train.averages import pairs, split_groups_
from ecgfm.train.engine import any_length_, recompute_
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
    recompute_(built, compiled=True)
    assert built.predictor.blocks.recomputed and built.encoder.get_submodule("blocks").recomputed
    built.encoder, built.target, built.predictor = (torch.nn.Identity(),) * 3  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"JEPA has no blocks that can be computed again"):
        recompute_(built, compiled=False)


def test_a_batch_norm_that_is_compiled_is_refused_to_recompute() -> None:
    def supervised(norm: Norm) -> Objective:
        encoder = ResNet1d.Config(width=16, layers=(1, 1), patch_samples=8, norm=norm)
        return build_objective(Supervised.Config(labels=("sex",)), encoder, 160, 500.0)

    with pytest.raises(ConfigError, match=r"batch norm, .* use --encoder\.norm group"):
        recompute_(supervised("batch"), compiled=True)
    recompute_(supervised("batch"), compiled=False)
    recompute_(supervised("group"), compiled=True)


@pytest.mark.parametrize(
    "settings", [DINO.Config(num_short=0, prototypes=16), MoCo.Config(queue=64)], ids=["dino", "moco"]
)
def test_what_an_objective_remembers_of_a_step_compiles_no_later_step_anew(
    settings: Objective.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # tests/conftest.py turns torch.compile off
    built, graphs = build_objective(settings, replace(ENCODER, depth=1), 1000, 500.0), []
    compiled = 0

    def trace(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    built.compile(backend=trace)
    batch = Batch(
        signal_BLT=torch.zeros(2, 3, 1000),
        microvolt_per_count_B=torch.ones(2),
        database_B=torch.zeros(2, dtype=torch.int64),
        views_BVLT=torch.randn(2, 2, 3, 500, generator=torch.Generator().manual_seed(0)),
    )
    with torch._dynamo.config.patch(disable=False):
        for step in range(4):
            built(batch, Progress(step=step, schedule_steps=100))
            built.after_step(Progress(step=step, schedule_steps=100))
            graphs.append(compiled)
    # The first step's number is taken for a constant, and the second's for any other.
    assert 0 < graphs[0] < graphs[1] == graphs[2] == graphs[3], graphs


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


def test_any_number_of_hidden_tokens_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # tests/conftest.py turns torch.compile off
    built = objective()
    graphs = 0

    def trace(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    built.compile(backend=trace)
    batch = Batch(
        signal_BLT=torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0)),
        microvolt_per_count_B=torch.ones(2),
        database_B=torch.zeros(2, dtype=torch.int64),
    )
    lengths = set()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(disable=False):
        for step in range(4):
            draws = Draws(seed=0, step=step, rows=(0, 2), all_rows=2, device=torch.device("cpu"))
            views = built.views(batch, draws)
            assert views.keep_BK is not None
            lengths.add(views.keep_BK.shape[1])
            any_length_(views)
            built(views, Progress(step=step, schedule_steps=100))
            if step == 0:
                first = graphs
    assert len(lengths) >= 2
    assert graphs == first, (graphs, first)
