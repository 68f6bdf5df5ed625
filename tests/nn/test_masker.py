"""The masker's shapes, and the reversed gradient."""

from __future__ import annotations

import pytest
import torch

from ecgfm.nn.masker import Masker, reverse_gradient


@pytest.mark.parametrize("samples", [64, 100, 1])
def test_any_length_gets_a_value_for_each_sample(samples: int) -> None:
    masker = Masker(3, 2, (4, 5, 6), norm="group")
    assert masker(torch.randn(2, 3, samples)).shape == (2, 2, samples)


def test_lengths_are_filled_up_with_zeros() -> None:
    masker = Masker(3, 2, (4, 5), norm="group")
    signal_BLT = torch.randn(2, 3, 12)
    longer = masker(signal_BLT)
    signal_BLT[..., 9:] = 0
    assert torch.equal(masker(signal_BLT[..., :9]), masker(signal_BLT)[..., :9])
    assert not torch.equal(masker(signal_BLT), longer)


def test_what_is_fine_and_what_is_far_both_reach_a_sample() -> None:
    torch.manual_seed(0)
    masker = Masker(1, 1, (16, 16, 16, 16), norm="group").double()
    # Group norms join all samples: only the convolutions are looked at.
    for module in masker.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda values: values  # type: ignore[assignment, method-assign]
    signal_BLT = torch.randn(1, 1, 128, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(masker(signal_BLT)[0, 0, 64], signal_BLT)
    assert gradient[0, 0, 64] != 0
    reached = gradient[0, 0].nonzero().flatten()
    # Two convolutions of three samples at each of five levels: 2 + 4 + ... on each side, there and back.
    assert reached.min() <= 64 - 30 and reached.max() >= 64 + 30


def test_the_gradient_is_reversed_and_the_values_are_not() -> None:
    values = torch.randn(5, requires_grad=True)
    same = reverse_gradient(values)
    assert torch.equal(same, values)
    (gradient,) = torch.autograd.grad((same * torch.arange(5.0)).sum(), values)
    assert torch.equal(gradient, -torch.arange(5.0))
