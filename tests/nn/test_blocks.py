"""How the transformer's blocks are built and begin."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

from ecgfm.nn.blocks import attend, blocks, norm
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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_and_its_gradients_are_those_of_float64(dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    """bfloat16 on a CPU is by hand: its rounding is 2^-8 of each of some products in a row."""
    drawn = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 8, generator=drawn).to(dtype) for _ in range(4)]
    sees_B1NN = (torch.rand(2, 1, 7, 7, generator=drawn) > 0.4) | torch.eye(7, dtype=torch.bool) if masked else None
    exact = [value.double().requires_grad_() for value in inputs[:3]]
    query, key, value = exact
    score = torch.einsum("bhne,bhme->bhnm", query, key) / math.sqrt(8)
    weight = score.exp() * (1.0 if sees_B1NN is None else sees_B1NN)
    wanted = torch.einsum("bhnm,bhme->bhne", weight / weight.sum(dim=3, keepdim=True), value)
    torch.autograd.backward(wanted, inputs[3].double())
    fast = [value.clone().requires_grad_() for value in inputs[:3]]
    got = attend(fast[0], fast[1], fast[2], sees_B1NN)
    torch.autograd.backward(got, inputs[3])
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=tolerance)
    for one, other in zip(fast, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, atol=tolerance, rtol=tolerance)


def test_attention_of_16_bits_on_a_cpu_is_by_hand_and_of_float32_is_torch_s() -> None:
    for dtype, by_hand in ((torch.float32, False), (torch.bfloat16, True)):
        with patch("torch.nn.functional.scaled_dot_product_attention") as fused:
            query, key, value = torch.randn(3, 1, 2, 5, 8, dtype=dtype)
            attend(query, key, value)
        assert fused.called is not by_hand
