"""Masks that hide blocks of time, single tokens, or segments of samples, for whole batches at once.

Weimann and Conrad 2024 (https://arxiv.org/abs/2410.13867) hide contiguous blocks; how they are drawn is
only in their code. Stated here as what it does: pick a still visible token at random, which picks its
visible run in proportion to its length; draw a block length uniformly between the shortest allowed and
what is left to hide; put the block at a random place of the run, or hide the whole run when the block
does not fit in; and when less than the shortest block is left, put it at an end of the run, beside a
block. At 200 tokens and 15-25 % kept this gives 2.7 hidden runs of mean length 60.

Ours draws the same distribution for all rows together, on the device, without a wait.

Shapes: B windows, G groups, N tokens, K kept tokens, M hidden tokens, R rounds, C segments, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.data.batch import Draws
from ecgfm.errors import ConfigError

DRAWS_PER_ROUND = 3


def rounds(hidden: int, min_block: int) -> int:
    """Return how many rounds always suffice.

    At most hidden // min_block rounds place a full block; each of those leaves at most one more visible
    run, and every other round but the last hides a whole run.
    """
    return 2 * (hidden // min_block) + 2


def hide_blocks(draws: Draws, batch: int, tokens: int, hidden: int, min_block: int, groups: int = 1) -> Tensor:
    """Return hidden_BN, bool, with exactly `hidden` tokens hidden in each row, in runs of `min_block` or more.

    With groups, such as leads, each group of a row has `tokens` tokens and a mask of its own; N is all of them.

    Raises:
        ConfigError: The block is longer than what is to be hidden, or nothing is left to see.
    """
    if not 1 <= min_block <= hidden < tokens:
        raise ConfigError(
            f"cannot hide {hidden} of {tokens} tokens in blocks of at least {min_block}: needs block <= hidden < tokens"
        )
    uniform_BRU = draws.rows("mask blocks", groups, rounds(hidden, min_block), DRAWS_PER_ROUND).flatten(0, 1)
    batch *= groups
    assert len(uniform_BRU) == batch
    place_N = torch.arange(tokens, device=uniform_BRU.device)
    hidden_BN = torch.zeros(batch, tokens, dtype=torch.bool, device=uniform_BRU.device)
    for number in range(uniform_BRU.shape[1]):
        left_B1 = hidden - hidden_BN.sum(dim=1, keepdim=True)
        if hidden_BN.device.type == "cpu" and not left_B1.any():
            break  # a GPU would have to wait for the answer; there the last rounds change nothing
        choose_B1, length_B1, shift_B1 = uniform_BRU[:, number].unsqueeze(2).unbind(1)
        start_B1, end_B1 = _visible_run(hidden_BN, choose_B1, place_N)
        room_B1 = end_B1 - start_B1
        full_B1 = left_B1 >= min_block
        size_B1 = torch.where(full_B1, min_block + _below(length_B1, left_B1 - min_block + 1), left_B1)
        at_B1 = start_B1 + _below(shift_B1, room_B1 - size_B1 + 1)
        # A remainder goes beside a block: at the run's start or end, whichever is not the window's own edge.
        to_end_B1 = (start_B1 == 0) | ((end_B1 < tokens) & (shift_B1 < 0.5))
        at_B1 = torch.where(full_B1, at_B1, torch.where(to_end_B1, end_B1 - size_B1, start_B1))
        fits_B1 = size_B1 < room_B1
        at_B1 = torch.where(fits_B1, at_B1, start_B1)
        size_B1 = torch.where(fits_B1, size_B1, room_B1).clamp(max=left_B1)
        hidden_BN |= (place_N >= at_B1) & (place_N < at_B1 + size_B1)
    return hidden_BN.reshape(batch // groups, groups * tokens)


def hide_random(draws: Draws, batch: int, tokens: int, hidden: int, groups: int = 1) -> Tensor:
    """Return hidden_BN, bool, with exactly `hidden` tokens hidden in each row, any set of them as likely as another.

    With groups, such as leads, each group of a row has `tokens` tokens and a mask of its own; N is all of them.

    Raises:
        ConfigError: Nothing is to be hidden, or nothing is left to see.
    """
    if not 1 <= hidden < tokens:
        raise ConfigError(f"cannot hide {hidden} of {tokens} tokens: needs 1 <= hidden < tokens")
    uniform_BGN = draws.many("mask tokens", groups, tokens)
    assert len(uniform_BGN) == batch
    order_BGN = uniform_BGN.argsort(dim=2, stable=True)
    hidden_BGN = torch.zeros_like(uniform_BGN, dtype=torch.bool)
    return hidden_BGN.scatter_(2, order_BGN[:, :, :hidden], True).flatten(1)


def segment_starts(draws: Draws, batch: int, samples: int, segment: int, count: int, groups: int = 1) -> Tensor:
    """Return start_BGC, int64 and ascending: the first samples of `count` segments of one length that do not overlap.

    What is left between them is shared out by random places in what remains when the segments are taken away.

    Raises:
        ConfigError: The segments do not fit, or leave nothing to see.
    """
    room = samples - segment * count
    if segment < 1 or count < 1 or room < 1:
        raise ConfigError(f"cannot hide {count} segments of {segment} samples in windows of {samples}")
    uniform_BGC = draws.rows("mask segments", groups, count)
    assert len(uniform_BGC) == batch
    free_BGC = (uniform_BGC * (room + 1)).long().sort(dim=2).values
    return free_BGC + segment * torch.arange(count, device=free_BGC.device)


def inside_segments(start_BGC: Tensor, segment: int, samples: int) -> Tensor:
    """Return hidden_BGT, bool: whether a sample lies in one of the segments."""
    place_T = torch.arange(samples, device=start_BGC.device)
    # The last segment that begins at or before a sample is the only one that could hold it.
    number_BGT = torch.searchsorted(
        start_BGC.contiguous(), place_T.expand(*start_BGC.shape[:2], -1).contiguous(), right=True
    )
    last_BGT = start_BGC.gather(2, (number_BGT - 1).clamp(min=0))
    return (number_BGT > 0) & (place_T < last_BGT + segment)


def split_tokens(hidden_BN: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Return keep_BK and hide_BM, the visible and the hidden indices of each row, ascending."""
    order_BN = torch.argsort(hidden_BN.to(torch.uint8), dim=1, stable=True)
    kept = hidden_BN.shape[1] - hidden
    return order_BN[:, :kept], order_BN[:, kept:]


def _visible_run(hidden_BN: Tensor, choose_B1: Tensor, place_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return start_B1 and end_B1 of the visible run that holds a random visible token."""
    visible_BN = ~hidden_BN
    rank_BN = visible_BN.cumsum(dim=1)
    wanted_B1 = 1 + _below(choose_B1, rank_BN[:, -1:])
    chosen_B1 = (rank_BN < wanted_B1).sum(dim=1, keepdim=True)
    tokens = len(place_N)
    before_BN = torch.where(hidden_BN & (place_N < chosen_B1), place_N + 1, 0)
    after_BN = torch.where(hidden_BN & (place_N > chosen_B1), place_N, tokens)
    return before_BN.amax(dim=1, keepdim=True), after_BN.amin(dim=1, keepdim=True)


def _below(uniform: Tensor, limit: Tensor) -> Tensor:
    """Return whole numbers 0 .. limit - 1 from uniform numbers in [0, 1)."""
    return (uniform * limit).long().clamp(min=0)
