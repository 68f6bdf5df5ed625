"""Heads of linear layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ecgfm.nn.projector import HeadNorm, projector


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Draw the same weights in each test, and leave torch's generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def kinds(head: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in head.children()]


def test_layers_stand_in_the_papers_orders() -> None:
    assert kinds(projector(8, (16, 4))) == ["Linear", "ReLU", "Linear"]
    assert kinds(projector(8, (16, 4), norm="batch", activation="gelu")) == ["Exact", "BatchNorm", "GELU", "Exact"]
    assert kinds(projector(8, (4,), last_norm="batch")) == ["Exact", "BatchNorm"]
    assert kinds(projector(8, ())) == []


def test_only_layers_that_no_norm_follows_have_a_bias() -> None:
    plain = [name for name, _ in projector(8, (16, 4), norm="layer").named_parameters()]
    assert plain == ["0.weight", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert "3.bias" not in dict(projector(8, (16, 4), norm="layer", last_bias=False).named_parameters())
    ended = projector(8, (16, 4), norm="batch", last_norm="batch")
    assert [name for name, _ in ended.named_parameters()] == ["0.weight", "1.weight", "1.bias", "3.weight"]
    learnt = projector(8, (4,), last_norm="batch", last_affine=True)
    assert [name for name, _ in learnt.named_parameters()] == ["0.weight", "1.weight", "1.bias"]


def test_a_last_norm_without_weights_normalises() -> None:
    values_BD = 3 + torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    kinds: tuple[tuple[HeadNorm, int], ...] = (("batch", 0), ("rank-batch", 0), ("layer", 1))
    for kind, axis in kinds:
        out_BD = projector(8, (16, 4), norm="batch", last_norm=kind)(values_BD)
        # The norms add 1e-5 to a variance that may be a thousandth.
        mean, variance = out_BD.mean(axis), out_BD.var(axis, correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=2e-2, rtol=0)


def test_a_head_is_what_its_layers_are() -> None:
    head = projector(8, (16, 4))
    values_BD = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    first, last = (layer for layer in head.children() if isinstance(layer, nn.Linear))
    hidden = (values_BD @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(values_BD), hidden @ last.weight.T + last.bias)
    assert projector(8, ())(values_BD) is values_BD


def test_weights_of_16_bits_take_float32_features() -> None:
    head = projector(8, (16, 4)).bfloat16()
    assert head(torch.ones(2, 8)).dtype == torch.bfloat16


def test_batch_norm_does_not_stretch_the_rounding_of_16_bits() -> None:
    # Eight windows that differ in the third digit.
    values_BD = 1 + 0.004 * torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    head = projector(32, (16, 4), norm="batch", last_norm="batch")
    wanted_BD = head(values_BD)
    for weight in head.parameters():
        weight.data = weight.data.bfloat16()
    # The weights' own rounding is left, of 0.4 %; with features of 16 bits they are 1 apart.
    torch.testing.assert_close(head(values_BD), wanted_BD, atol=0.1, rtol=0)
