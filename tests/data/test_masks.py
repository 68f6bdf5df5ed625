"""Masks against the statement in the module's docstring, drawn slowly and one row at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from ecgfm.data.batch import Draws
from ecgfm.data.masks import hide_blocks, hide_random, inside_segments, segment_starts, split_tokens
from ecgfm.errors import ConfigError

CPU = torch.device("cpu")
Runs = list[tuple[int, int]]
SHAPES = [(200, 160, 10), (200, 150, 25), (64, 40, 5), (50, 40, 1), (30, 17, 8), (100, 29, 10)]
FIGURES: tuple[Callable[[Runs], int], ...] = (
    lambda row: max(length for _, length in row),  # longest run
    lambda row: min(length for _, length in row),  # shortest run
    lambda row: row[0][0],  # where the first begins
    lambda row: row[0][1],  # its length
    lambda row: row[-1][0] + row[-1][1],  # where the last ends
)


def draws(first: int, last: int, *, step: int = 0, all_rows: int | None = None) -> Draws:
    return Draws(seed=3, step=step, rows=(first, last), all_rows=all_rows or last, device=CPU)


def hide(rows: int, tokens: int, hidden: int, min_block: int, step: int = 0) -> torch.Tensor:
    return hide_blocks(draws(0, rows, step=step), rows, tokens, hidden, min_block)


def runs(hidden_N: np.ndarray) -> Runs:
    """Return start and length of each hidden run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden_N.astype(int), [0]])))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def slow_row(rng: np.random.Generator, tokens: int, hidden: int, min_block: int) -> np.ndarray:
    """Return one mask, drawn as the module's docstring says."""
    mask = np.zeros(tokens, dtype=bool)
    while (left := hidden - int(mask.sum())) > 0:
        token = int(rng.choice(np.flatnonzero(~mask)))
        start, end = token, token + 1
        while start > 0 and not mask[start - 1]:
            start -= 1
        while end < tokens and not mask[end]:
            end += 1
        size = int(rng.integers(min_block, left + 1)) if left >= min_block else left
        if size >= end - start:
            mask[start:end] = True
        elif left >= min_block:
            at = int(rng.integers(start, end - size + 1))
            mask[at : at + size] = True
        else:
            beside = ([start] if start > 0 else []) + ([end - size] if end < tokens else [])
            at = int(rng.choice(beside))
            mask[at : at + size] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_each_row_hides_exactly_so_many_in_runs_of_a_block_or_more(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(2, 120))
    hidden = data.draw(st.integers(1, tokens - 1))
    min_block = data.draw(st.integers(1, hidden))
    step = data.draw(st.integers(0, 1000))
    for row in hide(40, tokens, hidden, min_block, step).numpy():
        assert row.sum() == hidden
        assert min(length for _, length in runs(row)) >= min_block


@pytest.mark.parametrize("shape", SHAPES)
def test_rounds_after_the_last_block_change_nothing(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = hide(60, *shape)
    # On a GPU nobody looks whether all rows are finished.
    monkeypatch.setattr(torch.Tensor, "any", lambda tensor: True)
    assert torch.equal(hide(60, *shape), finished)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_distributed_as_the_slow_process_draws_them(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    fast = [runs(row) for row in hide(2000, *shape).numpy()]
    slow = [runs(slow_row(rng, *shape)) for _ in range(2000)]
    most = max(len(row) for row in fast + slow)
    counts = np.stack([np.bincount([len(row) for row in rows], minlength=most + 1) for rows in (fast, slow)])
    # Rare numbers of runs together, so that the chi-square holds.
    common = counts.sum(axis=0) >= 20
    table = np.column_stack([counts[:, common], counts[:, ~common].sum(axis=1)])
    assert chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-3
    for figure in FIGURES:
        # With ties the test is the more lenient: each p-value is at least what it says.
        assert ks_2samp([figure(row) for row in fast], [figure(row) for row in slow]).pvalue > 1e-3


def test_masks_are_as_likely_as_their_mirror_images() -> None:
    # A remainder between two blocks lengthens either: were it always the first, 10 standard errors would show.
    found = [runs(row) for row in hide(10_000, 60, 25, 8).numpy()]
    longer = np.asarray([row[0][1] - row[-1][1] for row in found if len(row) > 1])
    assert len(longer) > 4000
    assert abs(longer.mean()) < 4 * longer.std() / np.sqrt(len(longer))


def test_each_token_is_hidden_as_often_as_in_the_slow_process() -> None:
    rng = np.random.default_rng(1)
    fast = hide(2000, 64, 40, 5).numpy().mean(axis=0)
    slow = np.mean([slow_row(rng, 64, 40, 5) for _ in range(2000)], axis=0)
    # The difference of two shares of 2000 has a standard deviation of at most 0.016; of 64, none beyond 4.5.
    assert np.abs(fast - slow).max() < 0.071


def test_at_the_papers_setting_there_are_2_7_runs_of_60_tokens() -> None:
    numbers, lengths = [], []
    for step in range(40):
        here = draws(0, 50, step=step)
        kept = math.ceil((0.15 + 0.1 * here.shared("mask ratio")) * 200)
        for row in hide_blocks(here, 50, 200, 200 - kept, 10).numpy():
            found = runs(row)
            numbers.append(len(found))
            lengths += [length for _, length in found]
    # 2000 rows: the mean number has a standard error of 0.03, the mean length one of about 0.7.
    assert np.mean(numbers) == pytest.approx(2.7, abs=0.1)
    assert np.mean(lengths) == pytest.approx(60, abs=2.5)


def test_rows_and_steps_differ() -> None:
    # Now and then two rows agree by chance: where one run reaches an end of the window.
    masks = torch.cat([hide(30, 200, 160, 10, step) for step in range(2)])
    assert len({tuple(row) for row in masks.tolist()}) > 50


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_have_the_masks_of_one_rank(ranks: int) -> None:
    whole = hide(12, 200, 160, 10)
    rows = 12 // ranks
    parts = [
        hide_blocks(draws(rank * rows, (rank + 1) * rows, all_rows=12), rows, 200, 160, 10) for rank in range(ranks)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_kept_and_hidden_are_disjoint_ascending_and_complete(shape: tuple[int, int, int]) -> None:
    tokens, hidden, _ = shape
    hidden_BN = hide(50, *shape)
    keep_BK, hide_BM = split_tokens(hidden_BN, hidden)
    assert keep_BK.shape == (50, tokens - hidden) and hide_BM.shape == (50, hidden)
    assert keep_BK.dtype == hide_BM.dtype == torch.int64
    for row in range(50):
        assert keep_BK[row].tolist() == [token for token in range(tokens) if not hidden_BN[row, token]]
        assert hide_BM[row].tolist() == [token for token in range(tokens) if hidden_BN[row, token]]


@pytest.mark.parametrize(("hidden", "min_block"), [(9, 10), (20, 1), (25, 1), (5, 0), (0, 0), (0, 1), (-3, 1)])
def test_what_cannot_be_hidden_is_refused_with_its_numbers(hidden: int, min_block: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot hide {hidden} of 20 tokens in blocks of at least {min_block}"):
        hide(4, 20, hidden, min_block)


@pytest.mark.parametrize("groups", [1, 3])
def test_random_masks_hide_exactly_as_many_in_each_group_and_any_token_as_often(groups: int) -> None:
    rows, tokens, hidden = 3000, 10, 7
    hidden_BGN = hide_random(draws(0, rows), rows, tokens, hidden, groups).view(rows, groups, tokens)
    assert (hidden_BGN.sum(dim=2) == hidden).all()
    # The deviation of a share of 3000 rows is 0.0084: five of them.
    assert (hidden_BGN.double().mean(dim=0) - hidden / tokens).abs().max() < 0.042
    # Two tokens are hidden together as often as draws without replacement have it.
    both = (hidden_BGN[..., 0] & hidden_BGN[..., 1]).double().mean(dim=0)
    assert (both - hidden * (hidden - 1) / (tokens * (tokens - 1))).abs().max() < 0.046
    if groups > 1:
        assert not torch.equal(hidden_BGN[:, 0], hidden_BGN[:, 1])


@pytest.mark.parametrize("hidden", [0, 10, 11])
def test_random_masks_that_hide_nothing_or_all_are_refused(hidden: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot hide {hidden} of 10 tokens"):
        hide_random(draws(0, 2), 2, 10, hidden)


def test_groups_have_block_masks_of_their_own() -> None:
    hidden_BGN = hide_blocks(draws(0, 50), 50, 40, 20, 5, 3).view(50, 3, 40)
    assert (hidden_BGN.sum(dim=2) == 20).all()
    for row in hidden_BGN.flatten(0, 1).numpy():
        assert min(length for _, length in runs(row)) >= 5
    assert not torch.equal(hidden_BGN[:, 0], hidden_BGN[:, 1])


@pytest.mark.parametrize(("samples", "segment", "count"), [(100, 7, 3), (100, 33, 3), (20, 1, 5), (50, 49, 1)])
def test_segments_are_of_one_length_and_do_not_overlap(samples: int, segment: int, count: int) -> None:
    start_BGC = segment_starts(draws(0, 400), 400, samples, segment, count, 2)
    hidden_BGT = inside_segments(start_BGC, segment, samples)
    for starts, hidden_T in zip(start_BGC.flatten(0, 1).tolist(), hidden_BGT.flatten(0, 1), strict=True):
        inside = {place for start in starts for place in range(start, start + segment)}
        assert hidden_T.nonzero().flatten().tolist() == sorted(inside)
        assert len(inside) == segment * count and max(inside) < samples
    assert start_BGC[..., 0].min() == 0 and start_BGC[..., -1].max() == samples - segment  # both edges are reached


def test_segments_of_a_row_do_not_depend_on_the_rank() -> None:
    whole = segment_starts(draws(0, 6), 6, 100, 7, 3)
    halves = [segment_starts(draws(first, first + 3, all_rows=6), 3, 100, 7, 3) for first in (0, 3)]
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize(("segment", "count"), [(0, 1), (10, 0), (10, 10)])
def test_segments_that_cannot_be_hidden_are_refused(segment: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot hide {count} segments of {segment} samples in windows of 100"):
        segment_starts(draws(0, 2), 2, 100, segment, count)
