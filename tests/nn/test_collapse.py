"""The figures of collapse against slow ones in float64, and on shapes whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.nn.collapse import (
    alignment,
    dimension_std,
    effective_rank,
    target_entropy,
    uniformity,
    usage_entropy,
)


def rows(count: int, width: int = 16) -> NDArray[np.float64]:
    """Return rows of unlike spread with a mean that is not 0."""
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, width)) * np.geomspace(1, 0.01, width) + rng.normal(size=width)


def slow_rank(tokens_ND: NDArray[np.float64]) -> float:
    values = np.linalg.svd(tokens_ND - tokens_ND.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.prod(share**-share))


def test_the_effective_rank_is_that_of_numpy() -> None:
    tokens = rows(500)
    assert effective_rank(torch.from_numpy(tokens)).item() == pytest.approx(slow_rank(tokens), rel=1e-5)


def test_the_effective_rank_of_known_shapes() -> None:
    line = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None] * torch.arange(1.0, 9.0)
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    # Orthogonal features of one length, each with mean 0: plus and minus every unit vector.
    cross = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(cross).item() == pytest.approx(8, rel=1e-5)
    assert effective_rank(cross + 100).item() == pytest.approx(8, rel=1e-3)
    plane = cross * torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    assert effective_rank(plane).item() == pytest.approx(3, rel=1e-5)
    noise = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(noise).item() > 15.9
    assert effective_rank(torch.full((10, 8), 3.0)).item() == 1


def test_evenly_spaced_tokens_stand_for_many() -> None:
    tokens = torch.randn(4097, 8, generator=torch.Generator().manual_seed(0))
    assert effective_rank(tokens).item() == effective_rank(tokens[::3]).item()
    assert effective_rank(tokens[:2048]).item() != effective_rank(tokens[:2048:2]).item()


def test_effective_rank_of_tokens_that_differ_by_rounding_alone_is_one() -> None:
    noise_ND = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * 1e-7
    assert effective_rank(1.0 + noise_ND).item() == pytest.approx(1.0, abs=1e-3)


def test_the_std_is_that_of_each_dimension() -> None:
    tokens = rows(300)
    wanted = [math.sqrt(sum((value - column.mean()) ** 2 for value in column) / 299) for column in tokens.T]
    torch.testing.assert_close(
        dimension_std(torch.from_numpy(tokens)), torch.tensor(wanted, dtype=torch.float32), rtol=1e-4, atol=0
    )
    assert dimension_std(torch.ones(1, 4)).tolist() == [0.0] * 4


def test_alignment_is_the_mean_squared_distance_of_unit_vectors() -> None:
    one, other = rows(200), rows(200)[::-1] + 0.1
    distances = []
    for a, b in zip(one, other, strict=True):
        distances.append(sum((a / math.sqrt(sum(a * a)) - b / math.sqrt(sum(b * b))) ** 2))
    got = alignment(torch.from_numpy(one), torch.from_numpy(other.copy()))
    assert got.item() == pytest.approx(np.mean(distances), rel=1e-5)
    eye = torch.eye(5)
    assert alignment(eye, 7 * eye).item() == 0
    assert alignment(eye, -eye).item() == pytest.approx(4)
    assert alignment(eye, eye.roll(1, dims=0)).item() == pytest.approx(2)


def test_uniformity_is_the_log_mean_over_pairs() -> None:
    features = rows(60)
    unit = [row / math.sqrt(sum(row * row)) for row in features]
    pairs = [math.exp(-2 * sum((unit[i] - unit[j]) ** 2)) for i in range(60) for j in range(i)]
    assert uniformity(torch.from_numpy(features)).item() == pytest.approx(math.log(np.mean(pairs)), rel=1e-4)


def test_the_uniformity_of_known_shapes() -> None:
    assert uniformity(torch.arange(1.0, 9.0).expand(30, 8)).item() == pytest.approx(0, abs=1e-5)
    # Orthogonal: every pair is at the squared distance 2.
    assert uniformity(3 * torch.eye(9)).item() == pytest.approx(-4)
    # Even over the sphere of D dimensions: -4 + 8 / D, the cosine being a normal number of variance 1 / D.
    wide = torch.randn(2000, 512, generator=torch.Generator().manual_seed(0))
    assert uniformity(wide).item() == pytest.approx(-4 + 8 / 512, abs=0.003)
    assert uniformity(wide[:1]).item() == 0


def slow_entropy(probability: NDArray[np.float64]) -> float:
    return float(-sum(value * math.log(value) for value in probability if value > 0) / math.log(len(probability)))


def test_entropies_are_shares_of_an_even_targets() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(50, 12))
    target = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = torch.from_numpy(target)
    assert target_entropy(given).item() == pytest.approx(np.mean([slow_entropy(row) for row in target]), rel=1e-5)
    assert usage_entropy(given).item() == pytest.approx(slow_entropy(target.mean(axis=0)), rel=1e-5)


def test_the_two_entropies_tell_one_class_from_sure_targets_of_many() -> None:
    sure, same, even = torch.eye(8), torch.eye(8)[:1].expand(8, -1), torch.full((8, 8), 1 / 8)
    assert [target_entropy(each).item() for each in (sure, same, even)] == pytest.approx([0, 0, 1])
    assert [usage_entropy(each).item() for each in (sure, same, even)] == pytest.approx([1, 0, 1])


def test_figures_are_float32_under_autocast_and_have_no_gradient() -> None:
    def figures(tokens: Tensor) -> list[Tensor]:
        return [
            effective_rank(tokens),
            dimension_std(tokens).mean(),
            uniformity(tokens),
            alignment(tokens, 2 * tokens.roll(1, dims=0)),
            target_entropy(tokens.softmax(dim=1)),
            usage_entropy(tokens.softmax(dim=1)),
        ]

    tokens = torch.from_numpy(rows(100)).float().requires_grad_()
    plain = figures(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got, wanted in zip(figures(tokens), plain, strict=True):
            assert got.dtype == torch.float32 and not got.requires_grad
            assert got.item() == wanted.item()
