"""The table of recipes: means over seeds, paired differences, and what becomes of runs that failed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.eval.recipe_table import MEAN, Collapse, Outcome, Row, Score, as_markdown, plot_recipes, summarise

LABELS = ("a:x", "b:y")
LOOK = Collapse(feature_rank=10.0, token_rank=20.0, spread=0.5, uniformity=-1.0)


def score(rng: np.random.Generator, gain: float) -> Score:
    """Return a probe whose draws have a missing value of their own."""
    untrained_R = rng.uniform(0.5, 0.7, 200)
    pretrained_R = untrained_R + rng.normal(gain, 0.02, 200)
    pretrained_R[rng.integers(200)] = np.nan
    untrained = float(rng.uniform(0.4, 0.6))
    pretrained = untrained + gain + float(rng.normal(0, 0.02))
    return Score(pretrained=pretrained, untrained=untrained, pretrained_R=pretrained_R, untrained_R=untrained_R)


@pytest.fixture
def outcomes() -> list[Outcome]:
    """Return two seeds each of a recipe that gains and one that loses, and a seed of one that failed."""
    rng = np.random.default_rng(3)
    made = [
        Outcome(
            recipe=recipe,
            seed=seed,
            scores={label: score(rng, gain) for label in LABELS},
            pretrained=LOOK,
            untrained=LOOK,
        )
        for recipe, gain in (("loses", -0.3), ("gains", 0.3))
        for seed in (0, 1)
    ]
    return [*made, Outcome(recipe="fails", seed=0, reason="status 1: no | label", scores={})]


def rows_of(outcomes: list[Outcome]) -> dict[str, Row]:
    encoders = {"loses": "vit", "gains": "vit", "fails": "lstm"}
    return {row.recipe: row for row in summarise(outcomes, encoders, {"loses": ("b:y",)})}


def slow_interval(outcomes: list[Outcome], labels: tuple[str, ...]) -> tuple[float, float]:
    """Return the interval of the mean difference, draw by draw."""
    values = []
    for draw in range(200):
        each = [
            float(run.scores[label].pretrained_R[draw]) - float(run.scores[label].untrained_R[draw])
            for run in outcomes
            for label in labels
        ]
        if not any(np.isnan(each)):
            values.append(sum(each) / len(each))
    ordered: NDArray[np.float64] = np.sort(values)

    def quantile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))

    return quantile(0.025), quantile(0.975)


@pytest.mark.parametrize(("place", "labels"), [(0, LABELS), (1, LABELS[:1]), (2, LABELS[1:])])
def test_figures_are_means_over_seeds_and_intervals_those_of_the_mean_difference(
    outcomes: list[Outcome], place: int, labels: tuple[str, ...]
) -> None:
    runs = [one for one in outcomes if one.recipe == "gains"]
    found = rows_of(outcomes)["gains"].figures[place]
    assert found.label == (MEAN if place == 0 else labels[0])
    seeds = [sum(run.scores[label].pretrained for label in labels) / len(labels) for run in runs]
    untrained = [sum(run.scores[label].untrained for label in labels) / len(labels) for run in runs]
    assert found.pretrained == pytest.approx(sum(seeds) / 2)
    assert found.untrained == pytest.approx(sum(untrained) / 2)
    assert found.difference.value == pytest.approx((sum(seeds) - sum(untrained)) / 2)
    # Of two values the standard deviation is their distance over the square root of two.
    assert found.deviation == pytest.approx(abs(seeds[0] - seeds[1]) / 2**0.5)
    assert (found.difference.low, found.difference.high) == pytest.approx(slow_interval(runs, labels))


def test_the_best_difference_comes_first_and_what_failed_last_with_its_reason(outcomes: list[Outcome]) -> None:
    rows = rows_of(outcomes)
    assert list(rows) == ["gains", "loses", "fails"]
    assert rows["fails"].seeds == 0 and not rows["fails"].figures
    text = as_markdown(list(rows.values()), ["what was done"])
    lines = text.splitlines()
    assert lines[0] == "- what was done"
    assert "| fails | lstm | 0 | - | - | - | status 1: no \\| label |" in lines
    verdicts = {line.split(" | ")[0][2:]: line.split(" | ")[-1] for line in lines if line.count(" | ") == 6}
    assert verdicts["gains"] == "better |" and verdicts["loses"] == "worse |"
    assert "| gains | 10 (10) | 20 (20) | 0.5 (0.5) | -1 (-1) |" in lines


def test_a_recipe_with_a_failed_seed_keeps_the_others_and_says_so(outcomes: list[Outcome]) -> None:
    again = [*outcomes, Outcome(recipe="gains", seed=2, reason="status 137: killed", scores={})]
    row = rows_of(again)["gains"]
    assert row.seeds == 2 and row.figures == rows_of(outcomes)["gains"].figures
    assert "| better; status 137: killed |" in as_markdown([row], [])


def test_a_label_that_pretraining_was_given_is_marked(outcomes: list[Outcome]) -> None:
    rows = rows_of(outcomes)
    assert [figure.learnt for figure in rows["loses"].figures] == [True, False, True]
    assert not any(figure.learnt for figure in rows["gains"].figures)
    section = as_markdown([rows["loses"]], []).split("## b:y")[1]
    assert "(learnt)" in section and "(learnt)" not in as_markdown([rows["gains"]], [])


def test_the_picture_has_two_panels_a_label_and_a_line_of_intervals_a_recipe(outcomes: list[Outcome]) -> None:
    rows = list(rows_of(outcomes).values())
    axes = plot_recipes(rows).axes
    assert [one.get_title(loc="left") for one in axes[:3]] == [MEAN, "a: x", "b: y"]
    for place, lower in enumerate(axes[3:]):
        spans = [np.asarray(line.get_xdata(), dtype=float).tolist() for line in lower.lines if line.get_linewidth() > 1]
        wanted = [row.figures[place].difference for row in rows if row.figures]
        assert spans[::2] == [[one.low, one.high] for one in wanted]
    assert not plot_recipes([rows[-1]]).axes[0].lines  # nothing was probed yet
