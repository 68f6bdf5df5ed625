"""Schedules against slow formulas, in exact fractions where there are any."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm.schedules import cosine, linear, warmup_cosine

VALUE = st.floats(1e-6, 10.0)
STEPS = st.integers(1, 200_000)


@settings(deadline=None)
@given(step=st.integers(0, 400_000), steps=STEPS, start=VALUE, end=VALUE)
def test_linear_is_the_straight_line(step: int, steps: int, start: float, end: float) -> None:
    done = Fraction(min(step, steps), steps)
    exact = Fraction(start) * (1 - done) + Fraction(end) * done
    # Two roundings of values of the larger size.
    assert linear(step, steps, start, end) == pytest.approx(float(exact), abs=4e-16 * max(start, end))


@settings(deadline=None)
@given(step=st.integers(0, 400_000), steps=STEPS, start=VALUE, end=VALUE)
def test_cosine_is_half_a_wave(step: int, steps: int, start: float, end: float) -> None:
    # (1 + cos x) / 2 = cos^2(x / 2), and 1 less that is sin^2(x / 2).
    half = math.pi / 2 * min(step, steps) / steps
    exact = start * math.cos(half) ** 2 + end * math.sin(half) ** 2
    assert cosine(step, steps, start, end) == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_values_are_held_before_the_start_and_after_the_end(schedule: type) -> None:
    assert schedule(-5, 10, 3.0, 1.0) == 3.0
    assert schedule(0, 10, 3.0, 1.0) == 3.0
    assert schedule(10, 10, 3.0, 1.0) == pytest.approx(1.0, abs=1e-15)
    assert schedule(99, 10, 3.0, 1.0) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_no_steps_at_all_divide_by_nothing(schedule: type) -> None:
    assert schedule(0, 0, 3.0, 1.0) == 3.0
    assert schedule(1, 0, 3.0, 1.0) == pytest.approx(1.0, abs=1e-15)


def test_cosine_is_steepest_in_the_middle_and_flat_at_both_ends() -> None:
    values = [cosine(step, 100, 1.0, 0.0) for step in range(101)]
    falls = [before - after for before, after in itertools.pairwise(values)]
    assert max(falls) == pytest.approx(math.pi / 2 / 100, rel=1e-3)
    assert max(range(100), key=falls.__getitem__) in (49, 50)
    assert falls[0] < 1e-3 and falls[-1] < 1e-3


def test_warmup_rises_to_the_peak_and_then_falls() -> None:
    values = [warmup_cosine(step, 50, 10, 0.1, 1.0, 0.2) for step in range(51)]
    assert values[:11] == pytest.approx([0.1 + 0.09 * step for step in range(11)])
    assert max(values) == values[10] == 1.0
    for step in range(10, 51):
        assert values[step] == pytest.approx(0.2 + 0.8 * math.cos(math.pi / 2 * (step - 10) / 40) ** 2)
    assert values[30] == pytest.approx(0.6)  # half way between peak and end
    assert values[50] == pytest.approx(0.2)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert warmup_cosine(0, 50, 0, 0.1, 1.0, 0.2) == 1.0
