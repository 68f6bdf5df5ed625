"""VICReg against algorithm 1 in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecgfm.objectives.vicreg import spread
from tests.objectives.crop_cases import AT, ROWS, SETTINGS, Exact, batch, build, compare, draws, rows_of


def slow_terms(rows_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hinge and the covariances, number by number."""
    count, width = rows_NE.shape
    mean = [sum(rows_NE[:, one]) / count for one in range(width)]
    hinge, others = torch.zeros(()).double(), torch.zeros(()).double()
    for one in range(width):
        for other in range(width):
            both = sum((row[one] - mean[one]) * (row[other] - mean[other]) for row in rows_NE) / (count - 1)
            if one == other:
                hinge = hinge + torch.relu(1 - (both + 1e-4) ** 0.5) / width
            else:
                others = others + both**2 / width
    return hinge, others


def test_loss_and_gradients_are_those_of_float64() -> None:
    objective = build(SETTINGS["vicreg"])
    # Some of the standard deviations are above 1 then, and some below.
    with torch.no_grad():
        objective.get_parameter("expander.3.weight").mul_(2.0)
    views = objective.views(batch(), draws())
    assert views.views_BVLT is not None
    exact = Exact(objective)
    one, other = (
        exact.batch_norm_head("expander", exact.features("encoder", view), 2) for view in views.views_BVLT.unbind(1)
    )
    assert 0 < (one.std(dim=0) > 1).sum() < one.shape[1]
    distance = sum((a - b) ** 2 for a, b in zip(one.flatten(), other.flatten(), strict=True)) / one.numel()
    hinges, others = zip(slow_terms(one), slow_terms(other), strict=True)
    losses = objective(views, AT)
    for name, wanted in (("invariance", distance), ("variance", sum(hinges)), ("covariance", sum(others))):
        assert losses[name].item() == pytest.approx(wanted.item(), rel=1e-5)  # type: ignore[union-attr]
    compare(objective, exact, losses["loss"], 25 * distance + 25 * sum(hinges) + sum(others))


def test_embeddings_that_are_independent_and_spread_cost_nothing() -> None:
    # Hadamard's matrix without its first column: independent, of mean 0 and variance 8 / 7.
    square = torch.ones(1, 1)
    for _ in range(3):
        square = torch.cat([torch.cat([square, square], 1), torch.cat([square, -square], 1)])
    hinge, covariance = spread(square[:, 1:])
    assert hinge == 0 and covariance.item() == pytest.approx(0, abs=1e-9)
    # One point: the standard deviation is the root of epsilon, and nothing varies together.
    hinge, covariance = spread(torch.ones(8, 3))
    assert hinge.item() == pytest.approx(0.99, abs=1e-6) and covariance == 0
    # The same number three times: each pair's covariance is 8 / 7, six pairs over three dimensions.
    assert spread(square[:, [1, 1, 1]])[1].item() == pytest.approx(2 * (8 / 7) ** 2, rel=1e-6)


def test_weights_of_the_terms_are_the_settings() -> None:
    objective = build(replace(SETTINGS["vicreg"], invariance=2.0, variance=3.0, covariance=0.5))  # type: ignore[call-arg]
    found = objective(objective.views(batch(), draws()), AT)
    wanted = 2 * found["invariance"] + 3 * found["variance"] + 0.5 * found["covariance"]
    torch.testing.assert_close(found["loss"].detach(), wanted)


def test_a_single_window_can_be_validated() -> None:
    objective = build(SETTINGS["vicreg"]).eval()
    views = objective.views(batch(), draws())
    assert ROWS > 1
    assert objective(rows_of(views, slice(0, 1)), AT)["loss"].isfinite()
