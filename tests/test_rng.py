"""Random numbers depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm.rng import derive, generator

NUMBERS = st.lists(st.integers(0, 2**63), max_size=4)
# A purpose that ends in a digit could be taken for a purpose and a number, and is refused.
PURPOSES = st.text(max_size=12).filter(lambda purpose: not purpose[-1:].isdigit())


def test_seeds_are_the_same_on_every_machine() -> None:
    # Written down from BLAKE2b of "0 order" and "7 masks 3 -1": a change makes every run another one.
    assert derive(0, "order") == 7218678866494661491
    assert derive(7, "masks", 3, -1) == 5073945891168898497


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), purpose=PURPOSES, numbers=NUMBERS)
def test_seeds_are_63_bits_of_a_hash_of_the_words(seed: int, purpose: str, numbers: list[int]) -> None:
    text = f"{seed} {purpose}" + "".join(f" {number}" for number in numbers)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    slow = sum(byte << (8 * place) for place, byte in enumerate(digest)) // 2
    assert derive(seed, purpose, *numbers) == slow
    assert 0 <= slow < 2**63


def test_seed_purpose_and_each_number_change_the_seed() -> None:
    keys: list[tuple[int, str, tuple[int, ...]]] = [
        (seed, purpose, numbers)
        for seed in (0, 1, 10)
        for purpose in ("order", "masks")
        for numbers in ((), (0,), (1,), (10,), (0, 0), (0, 1), (1, 0), (1, 1, 0))
    ]
    seeds = [derive(seed, purpose, *numbers) for seed, purpose, numbers in keys]
    assert len(set(seeds)) == len(keys)


def test_joined_digits_are_not_taken_for_one_another() -> None:
    splits = [(123,), (12, 3), (1, 23), (1, 2, 3)]
    assert len({derive(0, "masks", *numbers) for numbers in splits}) == len(splits)
    assert derive(1, "masks", 2) != derive(12, "masks")


def test_numpy_integers_give_the_seed_of_their_value() -> None:
    assert derive(int(np.int64(3)), "order", int(np.int64(4))) == derive(3, "order", 4)
    assert derive(np.int64(3), "order", np.int32(4)) == derive(3, "order", 4)  # type: ignore[arg-type]


def test_generators_repeat_and_differ_by_purpose() -> None:
    first = generator(5, "order", 1).random(100)
    np.testing.assert_array_equal(first, generator(5, "order", 1).random(100))
    others = [generator(5, "order", 2), generator(6, "order", 1), generator(5, "masks", 1)]
    for one, other in itertools.combinations([first, *(each.random(100) for each in others)], 2):
        assert not np.isin(one, other).any()


def test_orders_and_numbers_are_those_of_every_numpy() -> None:
    # NumPy keeps the streams of its bit generators but not those of the methods on top (NEP 19): where it
    # changes these two, a run does not go on with the order that it began with, and we want to know.
    stream = generator(0, "order")
    assert stream.permutation(8).tolist() == [1, 7, 6, 3, 2, 5, 4, 0]
    assert stream.random(2).tolist() == [0.37241399173273815, 0.3711254950866173]


def test_global_generators_are_neither_read_nor_moved() -> None:
    def next_numbers() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002 - what must stay untouched

    def seed_all(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)

    seed_all(1)
    untouched = next_numbers()
    seed_all(1)
    drawn = generator(0, "order").random(10)
    assert next_numbers() == untouched
    seed_all(2)
    np.testing.assert_array_equal(drawn, generator(0, "order").random(10))
