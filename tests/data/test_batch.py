"""Random numbers belong to rows, and not to the ranks that hold them."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import kstest

from ecgfm.data.batch import Batch, Draws
from ecgfm.rng import derive

CPU = torch.device("cpu")


def draws(first: int = 0, last: int = 16, *, seed: int = 0, step: int = 0, all_rows: int = 16) -> Draws:
    return Draws(seed=seed, step=step, rows=(first, last), all_rows=all_rows, device=CPU)


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_ranks_together_draw_what_one_rank_draws(ranks: int) -> None:
    whole = draws().rows("noise", 3, 5)
    rows = 16 // ranks
    parts = [draws(rank * rows, (rank + 1) * rows).rows("noise", 3, 5) for rank in range(ranks)]
    assert whole.shape == (16, 3, 5) and whole.dtype == torch.float64
    assert torch.equal(torch.cat(parts), whole)


def test_rows_differ() -> None:
    assert len(set(draws().rows("noise").tolist())) == 16


def test_shared_is_the_same_on_all_ranks_and_in_0_to_1() -> None:
    values = {draws(rank, rank + 1).shared("ratio") for rank in range(16)}
    assert len(values) == 1
    assert 0 <= values.pop() < 1


def test_seeds_steps_and_purposes_have_numbers_of_their_own() -> None:
    keys = list(itertools.product((0, 1), (0, 1), ("noise", "shift")))
    rows, shared = set(), set()
    for seed, step, purpose in keys:
        here = draws(seed=seed, step=step)
        rows |= set(here.rows(purpose, 4).flatten().tolist())
        shared.add(here.shared(purpose))
    assert len(rows) == len(keys) * 64
    assert len(shared) == len(keys)


def test_asking_twice_or_for_something_else_between_changes_nothing() -> None:
    one = draws()
    first = one.rows("noise", 2)
    one.rows("shift", 100)
    one.shared("noise")
    assert torch.equal(one.rows("noise", 2), first)
    assert one.shared("ratio") == draws().shared("ratio")


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draws().rows("noise")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draws().rows("noise"), first)


def test_numbers_are_uniform() -> None:
    assert kstest(draws(all_rows=5000, last=5000).rows("noise").numpy(), "uniform").pvalue > 1e-3
    shared = [draws(step=step).shared("ratio") for step in range(2000)]
    assert kstest(shared, "uniform").pvalue > 1e-3


def test_a_batch_keeps_its_content_on_the_way_to_a_device() -> None:
    batch = Batch(
        signal_BLT=torch.arange(24, dtype=torch.int16).reshape(2, 3, 4),
        microvolt_per_count_B=torch.tensor([1.0, 2.0]),
        database_B=torch.tensor([0, 1]),
    )
    moved = batch.to(CPU)
    assert torch.equal(moved.signal_BLT, batch.signal_BLT) and moved.signal_BLT.dtype == torch.int16
    assert torch.equal(moved.microvolt_per_count_B, batch.microvolt_per_count_B)
    assert torch.equal(moved.database_B, batch.database_B)


def test_many_and_normal_belong_to_rows_and_not_to_ranks() -> None:
    for draw in ("many", "normal"):
        whole = getattr(draws(), draw)("noise", 3, 501)
        assert whole.shape == (16, 3, 501) and whole.dtype == torch.float32
        parts = [getattr(draws(first, first + 4), draw)("noise", 3, 501) for first in range(0, 16, 4)]
        assert torch.equal(torch.cat(parts), whole)
        # Other rows of the step take no part.
        assert torch.equal(getattr(draws(4, 8, all_rows=8), draw)("noise", 3, 501), parts[1])


def test_many_numbers_are_those_of_splitmix64() -> None:
    def mixed(bits: int) -> int:
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
        return bits ^ (bits >> 31)

    # The first outputs from seed 1234567, as the reference implementations give them.
    golden = 0x9E3779B97F4A7C15
    assert [mixed((1234567 + (place + 1) * golden) % 2**64) for place in range(2)] == [
        6457827717110365317,
        3203168211198807973,
    ]
    start = derive(0, "noise", 0)
    found = draws(3, 5).many("noise", 7)
    for row in (3, 4):
        seed = mixed((start + (row + 1) * golden) % 2**64)
        for place in range(7):
            word = mixed((seed + (place // 2 + 1) * golden) % 2**64)
            half = (word >> (32 * (place % 2))) % 2**32
            # The upper 24 bits, counted from the middle as a signed number is.
            assert float(found[row - 3, place]) == ((half >> 8) + 2**23) % 2**24 / 2**24


def test_many_and_normal_have_their_distribution_and_neighbours_are_independent() -> None:
    many = draws().many("noise", 12, 2000)
    assert float(many.min()) >= 0 and float(many.max()) < 1
    assert kstest(many.flatten().numpy(), "uniform").pvalue > 1e-3
    normal = draws().normal("noise", 12, 2000)
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert float(normal.abs().max()) < 6.8
    for values in (many - 0.5, normal):
        unit = values / values.std()
        # Five standard errors of a correlation over 384,000 numbers.
        for other in (unit.roll(1, 0), unit.roll(1, 1), unit.roll(1, 2), unit.flip(2), unit.roll(1000, 2)):
            assert abs(float((unit * other).mean())) < 5 / unit.numel() ** 0.5


def test_steps_and_purposes_have_many_numbers_of_their_own() -> None:
    keys = itertools.product((0, 1), (0, 1), ("noise", "shift"))
    values = [draws(seed=seed, step=step).many(purpose, 64) for seed, step, purpose in keys]
    # 24 bits: of 8192 numbers some two agree by chance.
    assert len(set(torch.cat(values).flatten().tolist())) > 8180
