"""What objectives that compare crops share: the crops, and that two ranks do what one does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ecgfm.errors import ConfigError
from ecgfm.objectives._crops import Cropped
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.byol import BYOL
from ecgfm.objectives.dino import DINO
from ecgfm.objectives.lejepa import LeJEPA
from ecgfm.objectives.vicreg import VICReg
from tests.objectives import crop_cases
from tests.objectives.crop_cases import AT, ENCODER, NOTHING, ROWS, SETTINGS, WINDOW, batch, build, draws, one_step
from tests.two_ranks import run_two_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """Return what each of two ranks found in a step, by objective."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(crop_cases.__file__, folder)
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)] for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_have_the_gradient_of_one_with_all_rows(name: str, ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, (first, second) = one_step(name, slice(None)), ranks[name]
    assert alone.keys() == first.keys() == second.keys() and any(key.startswith("grad.") for key in alone)
    for key, wanted in alone.items():
        if key.startswith("buffer."):
            assert torch.equal(first[key], second[key]), key
        # An engine averages gradients over ranks.
        found = first[key] if key == "eval" else (first[key] + second[key]) / 2
        # Sums of float32 in another order; a gradient that cancels is as exact as what it is the difference of.
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 + 1e-4 * wanted.abs().max().item(), msg=key)
    # The halves differ, so that each alone would not have done.
    assert any(not torch.allclose(first[key], second[key], rtol=1e-2) for key in alone if key.startswith("grad."))


def test_crops_are_pieces_of_their_windows_at_places_of_their_own() -> None:
    settings = DINO.Config(num_short=4, long_share=0.66, short_share=0.26, augment=NOTHING)
    objective, windows = build(settings), batch()
    seen = []
    for step in range(30):
        views = objective.views(windows, draws(step))
        assert views.views_BVLT is not None and views.short_BSLT is not None
        # In whole steps of 50 samples.
        assert views.views_BVLT.shape == (ROWS, 2, 3, 650) and views.short_BSLT.shape == (ROWS, 4, 3, 250)
        for crops in (views.views_BVLT, views.short_BSLT):
            for row, window_LT in zip(crops, windows.signal_BLT, strict=True):
                for crop_LT in row:
                    start = int((window_LT[0] == crop_LT[0, 0]).nonzero()[0, 0])
                    assert torch.equal(crop_LT, window_LT[:, start : start + crop_LT.shape[1]])
                    seen.append((crop_LT.shape[1], start))
    for length in (650, 250):
        starts = torch.tensor([start for size, start in seen if size == length], dtype=torch.float64)
        room = WINDOW - length
        assert len(set(starts.tolist())) > 0.35 * min(room, len(starts))
        assert starts.min() < 0.03 * room and starts.max() > 0.97 * room
        # Uniform, to four standard errors of at least 360 draws.
        assert starts.mean().item() == pytest.approx(room / 2, abs=4 * room / (12 * len(starts)) ** 0.5)


def test_each_view_is_augmented_by_draws_of_its_own() -> None:
    views = build(LeJEPA.Config(num_short=2, long_share=1.0, short_share=1.0)).views(batch(), draws())
    assert views.views_BVLT is not None and views.short_BSLT is not None
    crops = torch.cat([views.views_BVLT, views.short_BSLT], dim=1)
    changes = (crops - batch().signal_BLT[:, None]).flatten(2)
    for first in range(4):
        for second in range(first):
            assert not torch.allclose(changes[:, first], changes[:, second], atol=0.01)


def test_short_views_may_be_left_out() -> None:
    for settings in (replace(SETTINGS["dino"], num_short=0), replace(SETTINGS["lejepa"], num_short=0)):  # type: ignore[call-arg]
        objective = build(settings)
        views = objective.views(batch(), draws())
        assert views.short_BSLT is None
        assert objective(views, AT)["loss"].isfinite()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_encoder_that_gives_one_answer_shows(name: str) -> None:
    objective = build(SETTINGS[name])
    views = objective.views(batch(), draws())
    healthy = objective(views, replace(AT, measure=True))
    assert healthy["feature_std"] > 0.02 and healthy["feature_rank"] > 2 and healthy["effective_rank"] > 3
    for encoder in {objective.encoder, objective.published()}:
        with torch.no_grad():
            encoder.get_parameter("norm.weight").zero_()
    collapsed = objective(views, replace(AT, measure=True))
    assert collapsed["target_std"] == collapsed["feature_std"] == 0
    assert collapsed["feature_rank"].item() == pytest.approx(1, abs=1e-4)
    assert all(value.isfinite() for value in collapsed.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BYOL.Config(long_share=0.02), "--objective.long-share 0.02 of windows of 1000 samples is less than one step"),
        (LeJEPA.Config(short_share=0.04), "--objective.short-share 0.04 of windows .* encoder, 50 samples; raise it"),
    ],
)
def test_crops_shorter_than_a_step_are_refused(settings: Cropped.Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(settings, ENCODER, WINDOW, 500.0)


@pytest.mark.parametrize(
    ("owner", "settings", "message"),
    [
        (BYOL, {"long_share": 0.0}, "--objective.long-share must be above 0"),
        (DINO, {"short_share": 1.5}, "--objective.short-share must be above 0 and at most 1, got 1.5"),
        (DINO, {"num_short": -1}, "--objective.num-short must be 0 or more, got -1"),
        (DINO, {"prototypes": 1}, "--objective.prototypes must be at least 2, got 1"),
        (DINO, {"center_momentum": 1.5}, "--objective.center-momentum needs values in 0..1, got 1.5"),
        (DINO, {"teacher_temperature": (0.0, 0.1)}, "-teacher-temperature must be above 0"),
        (BYOL, {"momentum": (0.9, 1.1)}, "--objective.momentum needs values in 0..1"),
        (BYOL, {"projection": 0}, "--objective.projection must be at least 1, got 0"),
        (VICReg, {"expander": ()}, "--objective.expander needs widths"),
        (VICReg, {"covariance": -1.0}, "--objective.covariance must be 0 or more, got -1.0"),
        (LeJEPA, {"gaussian": 1.1}, "--objective.gaussian must be 0 to 1, got 1.1"),
        (LeJEPA, {"num_points": 16}, "16 odd and at least 3"),
        (LeJEPA, {"projector": (0,)}, "--objective.projector needs widths"),
        (LeJEPA, {"reach": 0.0}, "--objective.reach must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(owner: type[Cropped], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        owner.Config(**settings)
