"""Diagonal state spaces against the recurrence that they are, one step after another in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ecgfm.nn.s4 import Begin, S4Block, StateSpace

WIDTH, STATE, STEPS = 3, 6, 37


def space(*, causal: bool, begin: Begin = "lin", state: int = STATE, width: int = WIDTH) -> StateSpace:
    """Return a state space away from its start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = StateSpace(width, state, causal=causal, begin=begin)
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    return made


def values(rows: int = 2, steps: int = STEPS, width: int = WIDTH) -> Tensor:
    return torch.randn(rows, width, steps, generator=torch.Generator().manual_seed(1))


def slow(values_BDN: Tensor, weights: dict[str, Tensor], causal: bool) -> Tensor:
    """Return the paper's recurrence x[l] = exp(A dt) x[l - 1] + (exp(A dt) - 1) / A u[l], y[l] = 2 Re(C x[l]) + D u[l].

    The other direction has a state that runs backwards, and of which a step sees what was there before itself.
    """
    rows, width, steps = values_BDN.shape
    out = []
    for channel in range(width):
        step = weights["log_step"][channel].exp()
        pole = torch.complex(-weights["log_decay"][channel].exp(), weights["frequency"][channel])
        kept, driven = (pole * step).exp(), ((pole * step).exp() - 1) / pole
        readouts = [torch.view_as_complex(part[channel].contiguous()) for part in weights["readout"]]
        assert len(readouts) == (1 if causal else 2)
        for row in range(rows):
            inputs = values_BDN[row, channel]
            found = [weights["skip"][channel] * value for value in inputs]
            state = torch.zeros_like(pole)
            for place in range(steps):
                state = kept * state + driven * inputs[place]
                found[place] = found[place] + 2 * (readouts[0] * state).sum().real
            state = torch.zeros_like(pole)
            for place in reversed(range(steps)):
                if not causal:
                    found[place] = found[place] + 2 * (readouts[1] * state).sum().real
                state = kept * state + driven * inputs[place]
            out.append(torch.stack(found))
    return torch.stack(out).reshape(width, rows, steps).transpose(0, 1)


@pytest.mark.parametrize("begin", ["lin", "inv"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_convolution_is_the_recurrence_and_so_are_its_gradients(causal: bool, begin: Begin) -> None:
    fast, given = space(causal=causal, begin=begin), values().requires_grad_()
    weights = {name: weight.detach().double().requires_grad_() for name, weight in fast.named_parameters()}
    exact = given.detach().double().requires_grad_()
    wanted, found = slow(exact, weights, causal), fast(given)
    direction = values(2).flip(0)
    torch.autograd.backward((found * direction).sum())
    torch.autograd.backward((wanted * direction).sum())
    # Float32 over 37 steps; of gradients, relative to the largest of a weight: that of the frequencies is the sum of
    # terms that cancel.
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    pairs = {name: (weight.grad, weights[name].grad) for name, weight in fast.named_parameters()}
    for name, (mine, theirs) in {**pairs, "values": (given.grad, exact.grad)}.items():
        assert mine is not None and theirs is not None
        size = theirs.abs().max()
        assert size > 0, name
        torch.testing.assert_close(mine.double() / size, theirs / size, atol=2e-5, rtol=0)


def test_frequencies_decay_and_steps_begin_as_in_the_paper() -> None:
    linear, inverse = (StateSpace(4000, 8, causal=True, begin=begin) for begin in ("lin", "inv"))
    wanted = {"lin": [math.pi * n for n in range(4)], "inv": [8 / math.pi * (8 / (2 * n + 1) - 1) for n in range(4)]}
    for made, name in ((linear, "lin"), (inverse, "inv")):
        for row in (0, -1):
            assert made.frequency[row].tolist() == pytest.approx(wanted[name], rel=1e-6)
        assert made.log_decay.exp().tolist() == 4000 * [pytest.approx(4 * [0.5])]
        steps = made.log_step.exp()
        assert steps.min() >= 0.001 and steps.max() <= 0.1
        # Even in the logarithm: half of 4,000 are below the geometric mean, give or take 0.8 %.
        assert (steps < 0.01).float().mean().item() == pytest.approx(0.5, abs=0.04)
        assert made.readout.std().item() == pytest.approx(math.sqrt(0.5), rel=0.02)


def test_a_causal_one_sees_nothing_later_and_the_other_does() -> None:
    first = values()
    second = first.clone()
    second[..., 20:] += 100.0
    for causal in (True, False):
        made = space(causal=causal)
        change = (made(second) - made(first))[..., :20].abs().amax()
        # Rounding of the FFT of values of 100.
        assert change < 1e-3 if causal else change > 1.0


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_comes_round_the_circle_at_any_length(causal: bool) -> None:
    made = space(causal=causal)
    long = torch.zeros(1, WIDTH, 200)
    for steps in (1, 2, 31, 100):
        given = values(1, steps)
        long[..., 50 : 50 + steps] = given
        # With silence on both sides it is the same.
        torch.testing.assert_close(made(long)[..., 50 : 50 + steps], made(given), atol=2e-5, rtol=1e-5)
        long.zero_()


def test_no_kernel_grows_whatever_the_weights() -> None:
    made = StateSpace(50, 8, causal=False)
    with torch.no_grad():
        for weight in (made.log_step, made.log_decay, made.frequency):
            weight.add_(5.0 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    kernel_RDN = made.kernels(5000)
    assert kernel_RDN.isfinite().all()
    # |exp(A dt) - 1| <= |A| dt where nothing grows.
    bound_RD1 = 2 * made.readout.norm(dim=-1).sum(-1, keepdim=True) * made.log_step.exp()[:, None]
    assert (kernel_RDN.abs() <= 1.001 * bound_RD1).all()


def test_autocast_leaves_it_in_float32() -> None:
    made, given = space(causal=True), values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(given)
    assert found.dtype == torch.float32 and torch.equal(found, made(given))


def test_a_block_is_the_formula() -> None:
    torch.manual_seed(0)
    block = S4Block(4, 2, causal=True).double()
    tokens_BND = torch.randn(2, 9, 4, dtype=torch.float64)
    mixed = block.space(tokens_BND.mT).mT.double()
    mixed = mixed * (1 + torch.erf(mixed / math.sqrt(2))) / 2
    both = mixed @ block.mix.weight.T + block.mix.bias
    summed = tokens_BND + both[..., :4] / (1 + (-both[..., 4:]).exp())
    centred = summed - summed.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    # The state space gives float32, and GELU is taken of that.
    torch.testing.assert_close(block(tokens_BND), wanted, atol=1e-6, rtol=1e-6)
