"""BYOL against equation 2 in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ecgfm.objectives.base import Progress, move_averages_
from ecgfm.objectives.byol import BYOL
from tests.objectives.crop_cases import AT, ROWS, SETTINGS, Exact, batch, build, compare, draws


def test_loss_and_gradients_are_those_of_float64() -> None:
    objective = build(SETTINGS["byol"])
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None
    exact, terms = Exact(objective), []
    for here, there in ((0, 1), (1, 0)):
        online = exact.features("encoder", views.views_BVLT[:, here])
        guess = exact.batch_norm_head("predictor", exact.batch_norm_head("projector", online, 2), 2)
        target = exact.features("target", views.views_BVLT[:, there])
        wanted = exact.batch_norm_head("target_projector", target, 2).detach()
        for row in range(ROWS):
            cosine = guess[row] @ wanted[row] / (guess[row] @ guess[row] * (wanted[row] @ wanted[row])).sqrt()
            terms.append((2 - 2 * cosine) / ROWS)
    compare(objective, exact, objective(views, AT)["loss"], torch.stack(terms).sum())


def test_target_and_projector_follow_and_the_online_encoder_is_published() -> None:
    objective = build(replace(SETTINGS["byol"], momentum=(0.9, 1.0)))  # type: ignore[call-arg]
    assert isinstance(objective, BYOL) and objective.published() is objective.encoder
    # Half a cosine: 0.9, half way 0.95, and at the end nothing moves any more.
    for step, share in ((0, 0.9), (50, 0.95), (100, 1.0)):
        before = {name: weight.clone() for name, weight in objective.named_parameters()}
        figures = move_averages_(objective, Progress(step=step, schedule_steps=100))
        assert figures == {"momentum": pytest.approx(share, abs=1e-12)}
        for follower, source in (("target", "encoder"), ("target_projector", "projector")):
            for name, weight in getattr(objective, follower).named_parameters():
                wanted = share * before[f"{follower}.{name}"] + (1 - share) * before[f"{source}.{name}"]
                torch.testing.assert_close(weight, wanted, atol=1e-6, rtol=1e-5)


def test_running_statistics_of_the_target_are_of_its_own_passes() -> None:
    objective = build(SETTINGS["byol"])
    assert isinstance(objective, BYOL)
    objective(objective.views(batch(), draws()), AT)
    own, other = (objective.get_buffer(f"{head}.1.running_mean") for head in ("target_projector", "projector"))
    assert own.any() and not torch.allclose(own, other)
    before = own.clone()
    objective.eval()(objective.views(batch(), draws()), AT)
    assert torch.equal(own, before)
