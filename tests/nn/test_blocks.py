"""How the transformer's blocks are built and begin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ecgfm.nn.blocks import blocks, norm
from ecgfm.nn.tokens import take


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_weights_begin_at_the_stated_spread(depth: int) -> None:
    torch.manual_seed(0)
    layers = blocks(64, depth, 4, 4.0)
    seen = set()
    for name, weight in layers.named_parameters():
        if weight.ndim < 2:
            continue
        kind = name.split(".", 1)[1]
        seen.add(kind)
        # Truncated at 2 in absolute terms, not in standard deviations: the spread is that of the normal.
        wanted = 0.02 / math.sqrt(2 * depth) if kind in ("attn.proj.weight", "mlp.fc2.weight") else 0.02
        # The estimate's relative error is 1 / sqrt(2 n): 1.1 % for the smallest matrix, and 4 of those.
        assert weight.std().item() == pytest.approx(wanted, rel=0.045), name
        assert abs(weight.mean().item()) < 5 * wanted / math.sqrt(weight.numel())
    assert seen == {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}


def test_there_is_no_bias_anywhere() -> None:
    layers = nn.ModuleList([blocks(32, 2, 4, 4.0), norm(32)])
    assert [name for name, _ in layers.named_parameters() if "bias" in name] == []
    norms = [module for module in layers.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert all(module.eps == 1e-6 and torch.equal(module.weight, torch.ones(32)) for module in norms)


def test_there_is_nothing_random_or_scaled_in_a_block() -> None:
    layers = blocks(32, 2, 4, 4.0).train()
    tokens_BND = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layers(tokens_BND), layers(tokens_BND), atol=0, rtol=0)
    assert len(list(layers.parameters())) == 2 * 6  # two norms and four matrices a block, no LayerScale


def test_the_perceptron_is_as_wide_as_the_ratio_says() -> None:
    shapes = {name: tuple(weight.shape) for name, weight in blocks(32, 1, 4, 2.5).named_parameters()}
    assert shapes["0.mlp.fc1.weight"] == (80, 32) and shapes["0.mlp.fc2.weight"] == (32, 80)


def test_take_gives_each_row_the_tokens_of_its_own_index() -> None:
    tokens_BND = torch.arange(2 * 4 * 3).reshape(2, 4, 3)
    index_BK = torch.tensor([[0, 3], [2, 1]])
    taken = take(tokens_BND, index_BK)
    for row in range(2):
        for place in range(2):
            assert torch.equal(taken[row, place], tokens_BND[row, index_BK[row, place]])
