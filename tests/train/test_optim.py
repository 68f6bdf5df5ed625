"""The optimizer's groups, and the paper's schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.advmask import AdvMask
from ecgfm.objectives.base import Objective, OwnOptim, Progress, build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.optim import Optim, build_optimizer, set_values

AT = Progress(step=7, schedule_steps=100)


@pytest.fixture
def objective() -> Objective:
    encoder = ViT.Config(width=16, num_leads=3, patch_samples=25, depth=1, num_heads=2)
    return build_objective(JEPA.Config(), encoder, 1000, 500.0)


def grouped(model: nn.Module, optimizer: torch.optim.AdamW, decays: bool) -> set[str]:
    """Return the names of the weights in the group with, or without, decay."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        names[id(weight)] for group in optimizer.param_groups if group["decays"] is decays for weight in group["params"]
    }


def test_decay_is_on_the_weights_of_linear_layers_and_convolutions_only(objective: Objective) -> None:
    optimizer = build_optimizer(Optim(), objective)
    block = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert grouped(objective, optimizer, True) == {
        "encoder.patch.weight",
        "predictor.embed.weight",
        "predictor.project.weight",
        *(f"{part}.blocks.0.{name}" for part in ("encoder", "predictor") for name in block),
    }
    assert grouped(objective, optimizer, False) == {
        "encoder.register",
        "predictor.mask_token",
        *(
            f"{part}.{name}.weight"
            for part in ("encoder", "predictor")
            for name in ("blocks.0.norm1", "blocks.0.norm2")
        ),
        *(f"{part}.norm.weight" for part in ("encoder", "predictor")),
    }


def test_every_trained_weight_is_in_one_group_and_no_other_weight_is(objective: Objective) -> None:
    optimizer = build_optimizer(Optim(), objective)
    ids = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(ids) == sorted(id(weight) for weight in objective.parameters() if weight.requires_grad)
    assert not {id(weight) for weight in objective.published().parameters()} & set(ids)


def test_biases_and_norms_with_other_names_have_no_decay() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3), "line": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    optimizer = build_optimizer(Optim(), model)
    assert grouped(model, optimizer, True) == {"conv.weight", "line.weight"}
    assert grouped(model, optimizer, False) == {"conv.bias", "line.bias", "norm.weight", "norm.bias"}


def test_a_step_moves_weights_as_adamw_is_written_down() -> None:
    settings = Optim(lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(2.0)
    optimizer = build_optimizer(settings, model)
    set_values(optimizer.param_groups, {"lr": 0.1, "weight_decay": 0.5}, AT)
    weight, bias, first, second = 2.0, 2.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0, 0.5), start=1):
        model.weight.grad, model.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        move = 0.1 * first / (1 - 0.9**step) / (math.sqrt(second / (1 - 0.99**step)) + 1e-6)
        weight, bias = weight * (1 - 0.1 * 0.5) - move, bias - move
    # Float32 numbers of order 1.
    assert model.weight.item() == pytest.approx(weight, abs=1e-6)
    assert model.bias.item() == pytest.approx(bias, abs=1e-6)


def slow_values(step: int) -> tuple[float, float]:
    """Return learning rate and weight decay as the paper's code has them over 100,000 steps."""
    if step <= 10_000:
        rate = 1e-6 + (1e-3 - 1e-6) * step / 10_000
    else:
        rate = 1e-6 + (1e-3 - 1e-6) * math.cos(math.pi / 2 * (step - 10_000) / 90_000) ** 2
    return rate, 0.01 + (0.1 - 0.01) * math.sin(math.pi / 2 * step / 100_000) ** 2


@pytest.mark.parametrize("step", [0, 1, 5_000, 9_999, 10_000, 10_001, 32_500, 55_000, 77_777, 99_999, 100_000])
def test_values_are_those_of_the_paper(step: int) -> None:
    values = Optim().values(step)
    assert values.keys() == {"lr", "weight_decay"}
    assert (values["lr"], values["weight_decay"]) == pytest.approx(slow_values(step), rel=1e-9)


@pytest.mark.parametrize(
    ("step", "rate", "decay"),
    [(0, 1e-6, 0.01), (5_000, 5.005e-4, None), (10_000, 1e-3, None), (50_000, None, 0.055), (55_000, 5.005e-4, None),
     (100_000, 1e-6, 0.1)],
)  # fmt: skip
def test_values_at_the_turning_points(step: int, rate: float | None, decay: float | None) -> None:
    values = Optim().values(step)
    assert rate is None or values["lr"] == pytest.approx(rate, rel=1e-9)
    assert decay is None or values["weight_decay"] == pytest.approx(decay, rel=1e-9)


def test_a_shorter_schedule_has_the_same_shape() -> None:
    short = Optim(schedule_steps=1000)
    for step in range(0, 1001, 50):
        assert short.values(step) == pytest.approx(Optim().values(100 * step), rel=1e-9)


def test_set_values_reaches_both_groups(objective: Objective) -> None:
    optimizer = build_optimizer(Optim(), objective)
    set_values(optimizer.param_groups, {"lr": 0.25, "weight_decay": 0.5}, AT)
    assert {(group["decays"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (True, 0.25, 0.5),
        (False, 0.25, 0.0),
    }


@pytest.mark.parametrize(
    "settings", [{"schedule_steps": 0}, {"warmup_share": 1.0}, {"warmup_share": -0.1}, {"clip_norm": 0.0}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--optim." + next(iter(settings)).replace("_", "-")):
        Optim(**settings)  # type: ignore[arg-type]


def test_a_part_with_settings_of_its_own_keeps_them_over_the_run() -> None:
    own = OwnOptim(lr=0.3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.2)
    encoder = ResNet1d.Config(width=8, layers=(1, 1), patch_samples=8)
    config = AdvMask.Config(masker=own, masker_widths=(4,), projector=(4,))
    objective = build_objective(config, encoder, 200, 500.0)
    assert isinstance(objective, AdvMask)
    optimizer = build_optimizer(Optim(), objective)
    set_values(optimizer.param_groups, {"lr": 0.25, "weight_decay": 0.5}, AT)
    masker = {id(weight) for weight in objective.masker.parameters()}
    found = set()
    for group in optimizer.param_groups:
        here = {id(weight) in masker for weight in group["params"]}
        assert len(here) == 1
        found.add((*here, group["decays"], group["lr"], group["betas"], group["eps"], group["weight_decay"]))
    assert found == {
        (False, True, 0.25, (0.9, 0.99), 1e-6, 0.5),
        (False, False, 0.25, (0.9, 0.99), 1e-6, 0.0),
        (True, True, 0.3, (0.5, 0.6), 1e-3, 0.2),
        (True, False, 0.3, (0.5, 0.6), 1e-3, 0.0),
    }
    ids = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(ids) == sorted(id(weight) for weight in objective.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}, {"lr_start": -1.0},
        {"lr_end": math.inf}, {"warmup_share": 1.0},
    ],
)  # fmt: skip
def test_settings_of_a_part_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="of a part"):
        OwnOptim(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.25), (20, 1.0), (60, 0.5), (100, 0.0), (120, 0.0)])
def test_a_part_may_warm_up_and_fall_along_a_cosine_of_its_own(step: int, share: float) -> None:
    own = OwnOptim(lr=0.3, schedule="cosine", lr_start=0.1, lr_end=0.02, warmup_share=0.2, weight_decay=0.4)
    encoder = ResNet1d.Config(width=8, layers=(1, 1), patch_samples=8)
    config = AdvMask.Config(masker=own, masker_widths=(4,), projector=(4,))
    objective = build_objective(config, encoder, 200, 500.0)
    assert isinstance(objective, AdvMask)
    optimizer = build_optimizer(Optim(), objective)
    at = Progress(step=step, schedule_steps=100)
    set_values(optimizer.param_groups, {"lr": 0.25, "weight_decay": 0.5}, at)
    low = 0.1 if step < 20 else 0.02
    wanted = low + (0.3 - low) * share
    masker = {id(weight) for weight in objective.masker.parameters()}
    for group in optimizer.param_groups:
        is_masker = {id(weight) in masker for weight in group["params"]} == {True}
        assert group["lr"] == pytest.approx(wanted if is_masker else 0.25, rel=1e-12)
        assert group["weight_decay"] == (0.4 if is_masker else 0.5) * group["decays"]
    assert objective.after_step(at) == {"masker_lr": pytest.approx(wanted, rel=1e-12)}
