"""LeJEPA against the paper's listing, with complex numbers in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfm.data.batch import Draws
from ecgfm.objectives.base import Progress
from ecgfm.objectives.lejepa import LeJEPA
from tests.objectives.crop_cases import AT, ROWS, SETTINGS, Exact, batch, build, compare, draws


def built(**settings: object) -> LeJEPA:
    objective = build(replace(SETTINGS["lejepa"], **settings))  # type: ignore[arg-type]
    assert isinstance(objective, LeJEPA)
    return objective


def directions(step: int, count: int, width: int) -> Tensor:
    drawn = Draws(seed=0, step=step, rows=(0, count), all_rows=count, device=torch.device("cpu"))
    rows = drawn.normal("directions", width).double()
    return rows / (rows**2).sum(dim=1, keepdim=True) ** 0.5


def slow_sigreg(embedding_NE: Tensor, direction_SE: Tensor) -> Tensor:
    """Return the statistic of Epps and Pulley, a mean over directions, on all 17 points."""
    point = torch.linspace(-5, 5, 17, dtype=torch.float64)
    gaussian = (-(point**2) / 2).exp()
    found = []
    for direction in direction_SE:
        characteristic = sum(torch.exp(1j * point * (direction @ row)) for row in embedding_NE) / len(embedding_NE)
        apart = (characteristic - gaussian).abs() ** 2 * gaussian
        found.append(len(embedding_NE) * torch.trapezoid(apart, point))
    return torch.stack(found).mean()


def test_loss_and_gradients_are_those_of_float64() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None and views.short_BSLT is not None
    exact = Exact(objective)
    embeddings = []
    for crops in (views.views_BVLT, views.short_BSLT):
        rows = exact.features("encoder", crops.flatten(0, 1))  # batch norm is over the views of a length together
        embedding = exact.batch_norm_head("projector", rows, 2)
        embeddings += [embedding[view :: crops.shape[1]] for view in range(crops.shape[1])]
    center = (embeddings[0] + embeddings[1]) / 2
    prediction = torch.stack([((embedding - center) ** 2).mean() for embedding in embeddings]).mean()
    gaussian = torch.stack([slow_sigreg(embedding, directions(7, 8, 5)) for embedding in embeddings]).mean()
    losses = objective(views, AT)
    assert losses["prediction"].item() == pytest.approx(prediction.item(), rel=1e-5)
    assert losses["gaussian"].item() == pytest.approx(gaussian.item(), rel=1e-5)
    compare(objective, exact, losses["loss"], 0.95 * prediction + 0.05 * gaussian)


def statistic(rows: np.ndarray, **settings: object) -> float:
    objective = built(**settings)
    embedding_BVE = torch.tensor(rows, dtype=torch.float32)[:, None]
    return float(objective._sigreg(embedding_BVE, 0))


def test_the_statistic_of_a_gaussian_does_not_grow_with_the_batch_and_that_of_others_does() -> None:
    random = np.random.default_rng(0)
    # Of normal rows its mean is that of N |phi_N - phi|^2 = 1 - exp(-t^2), weighted and integrated.
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    for count in (200, 2000):
        normal = np.mean([statistic(random.normal(size=(count, 16)), num_directions=64) for _ in range(20)])
        assert normal == pytest.approx(expected, rel=0.25)
    for other in (np.zeros((2000, 16)), random.normal(size=(2000, 16)) * 2, random.normal(size=(2000, 16)) + 1):
        assert statistic(other, num_directions=64) > 20 * expected
    # Dimensions that say the same.
    assert statistic(np.repeat(random.normal(size=(2000, 1)), 16, axis=1), num_directions=64) > 20 * expected


def test_directions_are_new_in_each_step_and_fixed_in_a_validation() -> None:
    objective = built()
    views = objective.views(batch(), draws())
    first, again, other = (objective(views, replace(AT, step=step))["gaussian"] for step in (3, 3, 4))
    assert first == again != other
    objective.eval()
    quiet = [objective(views, Progress(step=step, schedule_steps=100))["gaussian"] for step in (0, 3, 4)]
    assert quiet[0] == quiet[1] == quiet[2]


def test_views_that_agree_predict_each_other() -> None:
    objective = built(long_share=1.0, short_share=1.0)
    found = objective(objective.views(batch(), draws()), AT)
    assert found["prediction"].item() == pytest.approx(0, abs=1e-9) and found["gaussian"] > 0.1
    assert ROWS > 1
    assert not objective.averages() and objective.published() is objective.encoder
