"""DINO against a version of one window and one pair of views at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecgfm.objectives.base import Progress
from ecgfm.objectives.dino import DINO
from tests.objectives.crop_cases import AT, ROWS, SETTINGS, Exact, batch, build, compare, draws, rows_of


def built(**settings: object) -> DINO:
    objective = build(replace(SETTINGS["dino"], **settings))  # type: ignore[arg-type]
    assert isinstance(objective, DINO)
    objective.center_K.copy_(torch.linspace(-0.1, 0.1, 9))
    return objective


def slow_softmax(values_K: Tensor) -> Tensor:
    powers = torch.stack([value.exp() for value in values_K - values_K.max()])
    return powers / powers.sum()


def test_loss_and_gradients_are_those_of_float64() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None and views.short_BSLT is not None
    exact, terms = Exact(objective), []
    # Step 7 of a warm-up of 30.
    temperature = 0.04 + 0.03 * 7 / 30
    center = objective.center_K.double()
    crops = [*views.views_BVLT.unbind(1), *views.short_BSLT.unbind(1)]
    student = [exact.features("encoder", crop) for crop in crops]
    teacher = [exact.features("teacher", crop) for crop in crops[:2]]
    for row in range(ROWS):
        for one, seen in enumerate(teacher):
            target = slow_softmax((exact.cosine_head("teacher_head", seen[row]) - center) / temperature).detach()
            for other, guessed in enumerate(student):
                if one != other:
                    guess = slow_softmax(exact.cosine_head("head", guessed[row]) / 0.1)
                    terms.append(-(target * guess.log()).sum())
    assert len(terms) == ROWS * 2 * 3
    compare(objective, exact, objective(views, AT)["loss"], torch.stack(terms).mean())


def test_batch_norm_of_the_head_is_over_all_crops_of_a_length() -> None:
    objective = built(head_norm="batch")
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None and views.short_BSLT is not None
    exact = Exact(objective)

    def cosines(part: str, head: str, crops_BVLT: Tensor) -> Tensor:
        crops = crops_BVLT.unbind(1)
        rows_BD = torch.cat([exact.features(part, crop) for crop in crops])
        for place in (0, 3, 6):
            name = f"{head}.layers.{place}"
            rows_BD = rows_BD @ exact.weights[f"{name}.weight"].T
            if place == 6:
                rows_BD = rows_BD + exact.weights[f"{name}.bias"]
                break
            away_BD = rows_BD - rows_BD.mean(dim=0)
            norm = f"{head}.layers.{place + 1}"
            rows_BD = away_BD / (away_BD.square().mean(dim=0) + 1e-5).sqrt()
            rows_BD = rows_BD * exact.weights[f"{norm}.weight"] + exact.weights[f"{norm}.bias"]
            rows_BD = rows_BD * (1 + torch.erf(rows_BD / math.sqrt(2))) / 2
        directions = exact.weights[f"{head}.prototypes.weight"]
        products = rows_BD @ directions.T
        found = products / rows_BD.square().sum(dim=1, keepdim=True).sqrt() / directions.square().sum(dim=1).sqrt()
        return torch.stack(found.chunk(len(crops)))

    target = ((cosines("teacher", "teacher_head", views.views_BVLT) - objective.center_K.double()) / 0.047).softmax(-1)
    guesses = [cosines("encoder", "head", crops) for crops in (views.views_BVLT, views.short_BSLT)]
    guess = (torch.cat(guesses) / 0.1).log_softmax(-1)
    pairs = [(one, other) for one in range(2) for other in range(len(guess)) if one != other]
    terms = [-(target[one].detach() * guess[other]).sum(dim=1).mean() for one, other in pairs]
    compare(objective, exact, objective(views, AT)["loss"], torch.stack(terms).mean())


def test_the_center_follows_the_mean_of_all_micro_batches_once_a_step() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None
    exact = Exact(objective)
    seen = [exact.features("teacher", view) for view in views.views_BVLT.unbind(1)]
    cosines = [exact.cosine_head("teacher_head", view[row]) for view in seen for row in range(ROWS)]
    wanted = 0.9 * objective.center_K.double() + 0.1 * torch.stack(cosines).mean(dim=0).detach()
    # A step whose gradient was dropped is not finished, and what it saw is forgotten.
    objective(objective.views(batch(), draws(3)), replace(AT, step=6))
    before = objective.center_K.clone()
    for rows in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS)):
        objective(rows_of(views, rows), AT)
    assert torch.equal(objective.center_K, before)
    figures = objective.after_step(AT)
    assert figures == {"teacher_temperature": pytest.approx(0.047)}
    torch.testing.assert_close(objective.center_K.double(), wanted.detach(), atol=1e-6, rtol=1e-4)


def test_a_validation_leaves_the_center() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    objective(views, AT)
    with torch.no_grad():
        objective.eval()(objective.views(batch(), draws(1)), AT)
    objective.train()
    other = built()
    other(views, AT)
    objective.after_step(AT)
    other.after_step(AT)
    assert torch.equal(objective.center_K, other.center_K)
    assert "center_K" in objective.state_dict()


def test_the_teacher_gets_sharper_targets_at_first() -> None:
    objective = built(temperature_warmup_share=0.5)
    at = [Progress(step=step, schedule_steps=100) for step in (0, 25, 50, 90)]
    found = [objective._teacher_temperature(one) for one in at]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert built(temperature_warmup_share=0.0)._teacher_temperature(at[0]) == 0.07
    assert [objective.momentum(one) for one in (at[0], at[2])] == pytest.approx([0.996, 0.998])


def test_both_ways_to_collapse_show() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    measured = replace(AT, measure=True)
    found = objective(views, measured)
    assert 0.02 < found["target_entropy"] < 0.98 and found["usage_entropy"] > 0.3
    # One class that takes all.
    objective.center_K.zero_()
    objective.center_K[3] = -5.0
    one = objective(views, measured)
    assert one["target_entropy"] < 0.01 and one["usage_entropy"] < 0.01
    # Prototypes that are all the same: no target prefers any, and the loss is that of a guess at random.
    objective.center_K.zero_()
    for head in (objective.head, objective.teacher_head):
        with torch.no_grad():
            head.prototypes.weight.copy_(head.prototypes.weight[:1].expand(9, -1))
    even = objective(views, measured)
    assert even["target_entropy"].item() == pytest.approx(1, abs=1e-4)
    assert even["loss"].item() == pytest.approx(math.log(9), abs=1e-5)


def test_prototypes_count_by_their_direction_only() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    before = objective(views, AT)["loss"]
    with torch.no_grad():
        objective.head.prototypes.weight.mul_(torch.linspace(0.5, 3, 9)[:, None])
    torch.testing.assert_close(objective(views, AT)["loss"], before, rtol=1e-5, atol=0)


def test_the_teacher_is_published_and_never_trained() -> None:
    objective = built()
    assert objective.published() is objective.teacher
    assert not any(weight.requires_grad for target, _ in objective.averages() for weight in target.parameters())
