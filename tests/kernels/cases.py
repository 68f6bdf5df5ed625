"""Each kernel against float64 written another way; test_kernels.py runs this file in Triton's interpreter and on a GPU.

Not collected by itself: the interpreter is chosen before Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.kernels import assemble, dispatch, ema, ingest, masked_error
from ecgfm.kernels.ingest import Counts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
Floats = NDArray[np.float64]
TYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""One rounding of a value of 1, of float32 a few."""
# Without shrinking, which takes minutes in the interpreter.
few = settings(max_examples=8 if INTERPRETED else 100, derandomize=True, phases=[Phase.generate])


@pytest.fixture(autouse=True)
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter take the tensors of a CPU, on which the references run by themselves."""
    if INTERPRETED:
        for module in (assemble, ema, ingest, masked_error):
            monkeypatch.setattr(module, "triton_runs", lambda *tensors: True)


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32, apart: bool = False) -> Tensor:
    """Return normal numbers; `apart` not next to each other in memory."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if apart:
        made = made.transpose(0, -1).contiguous().transpose(0, -1)
        made = torch.stack([made, made.neg()], dim=-1)[..., 0]
    return made.to(dtype).to(DEVICE)


def exact(values: Tensor) -> Floats:
    """Return what a tensor holds."""
    return values.detach().double().cpu().numpy()


def near(found: Tensor, wanted: Floats, unit: float) -> None:
    """Compare with some roundings of a value."""
    assert found.shape == wanted.shape
    np.testing.assert_allclose(exact(found), wanted, rtol=2 * unit, atol=2 * unit)


def indices(seed: int, rows: int, of: int, count: int) -> Tensor:
    """Return places, each at most once in a row, ascending as masks give them; not next to each other in memory."""
    generator = np.random.default_rng(seed)
    drawn = (
        np.stack([np.sort(generator.permutation(of)[:count]) for _ in range(rows)]) if rows else np.empty((0, count))
    )
    return torch.tensor(drawn, dtype=torch.int64).t().contiguous().t().to(DEVICE)


def counts(
    seed: int, rows: int, leads: int, samples: int, clip: float, *, apart: bool = False, scale_of: str = "both"
) -> Counts:
    """Return counts of which many are beyond the clip, and some at the ends of int16."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-32768, 32768, (rows, leads, samples), generator=generator).to(torch.int16)
    drawn[:, :, ::7], drawn[:, :, ::11] = -32768, 32767
    if apart:
        drawn = drawn.transpose(1, 2).contiguous().transpose(1, 2)
    scale = numbers(seed + 1, 3, rows, leads)
    return Counts(
        counts_BLT=drawn.to(DEVICE),
        offset_BL=None if scale_of == "database" else scale[0] * 1000,
        factor_BL=scale[1].abs() * 2e-4,
        shift_BL=None if scale_of == "window" else scale[2],
        clip=clip,
    )


def slow_patches(signal: Counts, size: int, index: Tensor | None, *, leads_apart: bool) -> Floats:
    """Return the patches, a value at a time."""
    raw, factor = exact(signal.counts_BLT), exact(signal.factor_BL)
    offset, shift = (
        np.zeros(factor.shape) if each is None else exact(each) for each in (signal.offset_BL, signal.shift_BL)
    )
    rows, leads, samples = raw.shape
    steps = samples // size
    many = leads * steps if leads_apart else steps
    wanted = [list(range(many))] * rows if index is None else index.tolist()
    out = np.empty((rows, len(wanted[0]) if rows else 0, size if leads_apart else leads * size))
    for row, number, place in np.ndindex(out.shape):
        token = wanted[row][number]
        lead = token // steps if leads_apart else place // size
        sample = token % steps * size + place % size
        value = (raw[row, lead, sample] - offset[row, lead]) * factor[row, lead] + shift[row, lead]
        out[row, number, place] = min(max(value, -signal.clip), signal.clip)
    return out


@few
@given(
    rows=st.integers(1, 2),
    leads=st.integers(1, 13),
    size=st.integers(1, 27),
    steps=st.integers(1, 5),
    kept=st.integers(0, 9),
    leads_apart=st.booleans(),
    apart=st.booleans(),
    dtype=st.sampled_from(TYPES),
    clip=st.sampled_from((0.5, 5.0)),
    scale_of=st.sampled_from(("both", "window", "database")),
)
def test_patches_of_counts_are_those_of_float64(
    rows: int,
    leads: int,
    size: int,
    steps: int,
    kept: int,
    leads_apart: bool,
    apart: bool,
    dtype: torch.dtype,
    clip: float,
    scale_of: str,
) -> None:
    signal = counts(rows * 100 + size, rows, leads, steps * size, clip, apart=apart, scale_of=scale_of)
    index = None if kept == 0 else indices(kept, rows, leads * steps if leads_apart else steps, min(kept, steps))
    found = ingest.patches(signal, size, index, leads_apart=leads_apart, dtype=dtype)
    assert found.dtype == dtype
    # Counts times the factor are up to 20 before the shift, of either sign, is added.
    near(
        found,
        slow_patches(signal, size, index, leads_apart=leads_apart),
        max(UNIT[dtype], 20 * UNIT[torch.float32]) * clip,
    )
    by_torch = ingest.reference(signal, size, index, leads_apart=leads_apart, dtype=dtype)
    torch.testing.assert_close(found, by_torch, rtol=2 * UNIT[dtype], atol=2e-5)
    assert found.float().abs().max() <= clip


def test_more_values_than_a_program_holds_and_windows_of_none() -> None:
    signal = counts(1, 2, 12, 250, 5.0)
    index = indices(1, 2, 10, 5)
    for which in (None, index):
        found = ingest.patches(signal, 25, which, leads_apart=False, dtype=torch.float32)
        near(found, slow_patches(signal, 25, which, leads_apart=False), 1e-4)
    empty = ingest.patches(counts(1, 0, 12, 250, 5.0), 25, None, leads_apart=False, dtype=torch.bfloat16)
    assert empty.shape == (0, 10, 300) and empty.dtype == torch.bfloat16
    assert ingest.patches(signal, 25, index[:, :0], leads_apart=True, dtype=torch.float16).shape == (2, 0, 25)


@few
@given(
    rows=st.integers(1, 3),
    seen=st.integers(0, 7),
    hidden=st.integers(0, 7),
    before=st.integers(0, 3),
    width=st.integers(1, 70),
    apart=st.booleans(),
    ordered=st.booleans(),
    tokens_type=st.sampled_from(TYPES),
    dtype=st.sampled_from(TYPES),
)
def test_assembled_tokens_and_their_gradients_are_those_of_float64(
    rows: int,
    seen: int,
    hidden: int,
    before: int,
    width: int,
    apart: bool,
    ordered: bool,
    tokens_type: torch.dtype,
    dtype: torch.dtype,
) -> None:
    positions = 16
    tokens = numbers(1, rows, seen, width, dtype=tokens_type, apart=apart).requires_grad_()
    position = numbers(2, positions, width, apart=apart).requires_grad_()
    keep = None if ordered else indices(3, rows, positions, seen)
    hide = indices(4, rows, positions, hidden) if hidden else None
    mask = numbers(5, width).requires_grad_() if hidden else None
    first = numbers(6, before, width, apart=apart).requires_grad_() if before else None
    found = assemble.assemble(tokens, position, keep, before_ED=first, mask_D=mask, hide_BM=hide, dtype=dtype)
    pull = numbers(7, *found.shape, dtype=dtype, apart=apart)
    torch.autograd.backward(found, pull)

    wanted = np.zeros(found.shape)
    grads = {name: np.zeros(shape) for name, shape in (("tokens", tokens.shape), ("position", position.shape))}
    grads |= {"mask": np.zeros(width), "first": np.zeros((before, width))}
    where = [list(range(seen))] * rows if keep is None else keep.tolist()
    for row in range(rows):
        slope = exact(pull)[row]
        for number in range(before):
            assert first is not None
            wanted[row, number] = exact(first)[number]
            grads["first"][number] += slope[number]
        for number, place in enumerate(where[row], start=before):
            wanted[row, number] = exact(tokens)[row, number - before] + exact(position)[place]
            grads["tokens"][row, number - before] += slope[number]
            grads["position"][place] += slope[number]
        for number, place in enumerate([] if hide is None else hide[row].tolist(), start=before + seen):
            assert mask is not None
            wanted[row, number] = exact(mask) + exact(position)[place]
            grads["mask"] += slope[number]
            grads["position"][place] += slope[number]
    near(found, wanted, 2 * UNIT[dtype])
    for name, weight in (("tokens", tokens), ("position", position), ("mask", mask), ("first", first)):
        if weight is not None:
            assert weight.grad is not None and weight.grad.dtype == weight.dtype
            near(weight.grad, grads[name], 20 * UNIT[weight.dtype])


def test_assembled_tokens_are_those_of_the_reference_where_programs_are_many() -> None:
    tokens, position = numbers(1, 2, 5, 192, dtype=torch.bfloat16), numbers(2, 40, 192)
    keep, hide = indices(3, 2, 40, 5), indices(4, 2, 40, 9)
    settings_ = {"before_ED": numbers(5, 2, 192), "mask_D": numbers(6, 192), "hide_BM": hide, "dtype": torch.float32}
    found = assemble.assemble(tokens, position, keep, **settings_)  # type: ignore[arg-type]
    wanted = assemble.reference(tokens, position, keep, *list(settings_.values()))  # type: ignore[arg-type]
    assert torch.equal(found, wanted)


def slow_error(guess: Floats, target: Floats, hide: Tensor, *, smooth: bool, norm: bool) -> tuple[float, Floats]:
    """Return the mean error and the gradient of the guess, a feature at a time."""
    total, grad = 0.0, np.zeros(guess.shape)
    for row, number in np.ndindex(guess.shape[:2]):
        wanted = target[row, int(hide[row, number])]
        if norm:
            wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var() + 1e-5)
        for feature, difference in enumerate(guess[row, number] - wanted):
            if smooth and abs(difference) < 1:
                total, slope = total + difference**2 / 2, difference
            else:
                total, slope = total + abs(difference) - (0.5 if smooth else 0.0), np.sign(difference)
            grad[row, number, feature] = slope
    return total / guess.size, grad / guess.size


@few
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    share=st.floats(0.1, 1.0),
    width=st.integers(2, 70),
    apart=st.booleans(),
    smooth=st.booleans(),
    norm=st.booleans(),
    guess_type=st.sampled_from(TYPES),
    target_type=st.sampled_from(TYPES),
)
def test_the_masked_error_and_its_gradient_are_those_of_float64(
    rows: int,
    tokens: int,
    share: float,
    width: int,
    apart: bool,
    smooth: bool,
    norm: bool,
    guess_type: torch.dtype,
    target_type: torch.dtype,
) -> None:
    hide = indices(1, rows, tokens, max(1, round(share * tokens)))
    guess = numbers(2, rows, hide.shape[1], width, dtype=guess_type, apart=apart).requires_grad_()
    target = (numbers(3, rows, tokens, width, apart=apart) * 2 + 1).to(target_type)
    if not norm:  # a guess that is right has no gradient
        with torch.no_grad():
            guess[0, 0, 0] = target[0, hide[0, 0], 0].to(guess_type)
            target[0, hide[0, 0], 0] = guess[0, 0, 0].to(target_type)
            guess[0, 0, 0] = target[0, hide[0, 0], 0].to(guess_type)
    loss = masked_error.masked_error(guess, target, hide, smooth=smooth, norm=norm)
    torch.autograd.backward(loss * 3.0)
    wanted, slope = slow_error(exact(guess), exact(target), hide, smooth=smooth, norm=norm)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert guess.grad is not None and guess.grad.dtype == guess_type
    # Of a normalised target that is all but met the sign is float32's.
    near(guess.grad * guess.numel() / 3, slope * guess.numel(), 8 * UNIT[guess_type] + 1e-5 * norm)


@pytest.mark.parametrize(("width", "smooth"), [(384, False), (3000, True)])
def test_the_masked_error_is_that_of_the_reference_where_programs_are_many(width: int, smooth: bool) -> None:
    hide, target = indices(1, 3, 9, 5), numbers(3, 3, 9, width)
    found, wanted = (numbers(2, 3, 5, width, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    ours = masked_error.masked_error(found, target, hide, smooth=smooth, norm=True)
    theirs = masked_error.reference(wanted, target, hide, smooth=smooth, norm=True)
    for loss in (ours, theirs):
        torch.autograd.backward(loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=2.0**-7, atol=1e-9)


def test_the_mean_of_no_error_is_no_number() -> None:
    hide, target = indices(1, 2, 5, 0), numbers(1, 2, 5, 8)
    guess = torch.empty(2, 0, 8, device=DEVICE, requires_grad=True)
    for error in (masked_error.masked_error, masked_error.reference):
        loss = error(guess, target, hide, smooth=False, norm=False)
        torch.autograd.backward(loss)
        assert loss.isnan() and guess.grad is not None and guess.grad.shape == (2, 0, 8)


@few
@given(
    sizes=st.lists(st.sampled_from((0, 1, 7, 1000, 16_384, 16_390)), min_size=1, max_size=3),
    weight=st.floats(0, 0.5),
    copied=st.sampled_from((None, *TYPES)),
)
def test_moved_averages_are_those_of_float64(sizes: list[int], weight: float, copied: torch.dtype | None) -> None:
    targets = [numbers(place, size) for place, size in enumerate(sizes)]
    sources = [numbers(place + 9, size) for place, size in enumerate(sizes)]
    # What lies around a copy must stay: it is one of many in a row.
    rows = None if copied is None else [torch.full((size + 2,), 7.0, dtype=copied, device=DEVICE) for size in sizes]
    before = [(exact(target), exact(source)) for target, source in zip(targets, sources, strict=True)]
    ema.move_(targets, sources, weight, None if rows is None else [row[1:-1] for row in rows])
    for target, source, (old, followed) in zip(targets, sources, before, strict=True):
        near(target, old + weight * (followed - old), UNIT[torch.float32])
        assert np.array_equal(exact(source), followed)
    for row, target in zip(rows or (), targets, strict=rows is not None):
        # The interpreter cuts bfloat16 off instead of rounding it.
        cut = 2 * UNIT[row.dtype] if INTERPRETED and row.dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(row[1:-1], target.to(row.dtype), rtol=cut, atol=0)
        assert row[0] == row[-1] == 7.0


def test_averages_of_many_shapes_move_again_and_none_is_no_error() -> None:
    ema.move_([], [], 0.1)
    targets, sources = [numbers(1, 3, 5, 7), numbers(2, 64)], [numbers(3, 3, 5, 7), numbers(4, 64)]
    again = [target.clone() for target in targets]
    for weight in (0.5, 0.002):
        ema.move_(targets, sources, weight)
        ema.reference(again, sources, weight)
    for one, other in zip(targets, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(INTERPRETED, reason="torch.compile takes no interpreter")
@pytest.mark.parametrize("what", ["ingest", "assemble", "masked_error"])
def test_a_compiled_step_sees_through_the_kernels(what: str) -> None:
    def step(guess: Tensor, index: Tensor, target: Tensor) -> Tensor:
        if what == "ingest":
            got = ingest.patches(signal, 25, index, leads_apart=False, dtype=torch.float32)
            return (got * guess[:, :1, :1]).sum()
        if what == "assemble":
            return (
                assemble.assemble(guess, target[0], index, mask_D=target[0, 0], hide_BM=index, dtype=torch.float32)
                .sin()
                .sum()
            )
        return masked_error.masked_error(guess * 2, target, index, smooth=True)

    signal, index, target = counts(1, 3, 12, 1000, 5.0), indices(1, 3, 40, 9), numbers(1, 3, 40, 64)
    guesses = [numbers(2, 3, 9, 64).requires_grad_() for _ in range(2)]
    compiled: Callable[..., Tensor] = torch.compile(step, fullgraph=True)
    for function, guess in zip((step, compiled), guesses, strict=True):
        torch.autograd.backward(function(guess, index, target))
    torch.testing.assert_close(guesses[0].grad, guesses[1].grad)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_the_references_run_on_a_gpu_when_they_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    value = numbers(1, 2)
    assert dispatch.triton_runs(value, None)
    monkeypatch.setattr(dispatch, "_chosen", "reference")
    assert not dispatch.triton_runs(value)
