"""Tests of two models: DeLong against its definition over all pairs, McNemar against SciPy, and how often they err."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from ecgfm.errors import ConfigError
from ecgfm.eval.paired import compare, delong, mcnemar

Floats = NDArray[np.float64]


def scores(seed: int, records: int = 120, gap: float = 0.0) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Return who has a label, and two correlated scores, the first of them better by `gap`."""
    draw = np.random.default_rng(seed)
    positive = draw.random(records) < 0.35
    shared = draw.normal(size=records)
    first = np.round((1 + gap) * positive + shared + 0.7 * draw.normal(size=records), 1)
    return positive, first, np.round(positive + shared + 0.7 * draw.normal(size=records), 1)


def slow_delong(positive: NDArray[np.bool_], one: Floats, two: Floats) -> tuple[float, float]:
    """Return difference and variance, from the structural components over all pairs."""
    ill, well = np.flatnonzero(positive), np.flatnonzero(~positive)

    def psi(x: float, y: float) -> float:
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v10 = np.asarray([[np.mean([psi(s[i], s[j]) for j in well]) for i in ill] for s in (one, two)])
    v01 = np.asarray([[np.mean([psi(s[i], s[j]) for i in ill]) for j in well] for s in (one, two)])
    covariance = np.cov(v10) / len(ill) + np.cov(v01) / len(well)
    contrast = np.asarray([1, -1])
    return float(v10[0].mean() - v10[1].mean()), float(contrast @ covariance @ contrast)


@pytest.mark.parametrize("seed", range(3))
def test_delong_is_its_definition_over_all_pairs(seed: int) -> None:
    positive, one, two = scores(seed, records=60)
    got = delong(positive, one, two, [str(number) for number in range(60)])
    difference, variance = slow_delong(positive, one, two)
    assert got.first == pytest.approx(roc_auc_score(positive, one), abs=1e-12)
    assert got.difference == pytest.approx(difference, abs=1e-12)
    assert got.standard_error**2 == pytest.approx(variance, rel=1e-9)
    assert got.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)), rel=1e-9)
    assert (got.low, got.high) == pytest.approx(
        stats.norm.interval(0.95, loc=difference, scale=np.sqrt(variance)), abs=1e-12
    )


def test_copies_of_a_patients_record_do_not_make_delong_surer() -> None:
    positive, one, two = scores(4, gap=0.3)
    alone = delong(positive, one, two, [str(number) for number in range(120)])
    ill, first, second = np.repeat(positive, 5), np.repeat(one, 5), np.repeat(two, 5)
    again = delong(ill, first, second, [str(number // 5) for number in range(600)])
    assert again.standard_error == pytest.approx(alone.standard_error, rel=1e-9)
    naive = delong(ill, first, second, [str(number) for number in range(600)])
    assert naive.standard_error == pytest.approx(alone.standard_error / np.sqrt(5), rel=0.02)


def test_delong_with_patients_of_both_classes_is_near_the_bootstrap() -> None:
    draw = np.random.default_rng(8)
    patient = np.repeat(np.arange(150), 4)
    own = draw.normal(size=(150, 1)).repeat(4, axis=1).ravel()
    positive = draw.random(600) < 1 / (1 + np.exp(-own))
    one = positive + own + draw.normal(size=600)
    two = 0.5 * positive + 0.5 * own + draw.normal(size=600)
    names = [f"p{number}" for number in patient]
    got = delong(positive, one, two, names)
    ranked = [np.argsort(np.argsort(each)) / 600 for each in (one, two)]
    target = positive[:, None].astype(np.float64)
    drawn = compare("multilabel", target, ranked[0][:, None], ranked[1][:, None], names, labels=["a"], draws=1500)
    interval = drawn["auc"].difference
    # Both are approximations of one interval: a tenth apart at most here.
    assert interval.value == pytest.approx(got.difference, abs=1e-12)
    assert interval.high - interval.low == pytest.approx(got.high - got.low, rel=0.1)


def test_models_without_a_difference_are_told_apart_in_one_of_twenty() -> None:
    found = []
    for seed in range(300):
        positive, one, two = scores(seed)
        found.append(delong(positive, one, two, [str(number) for number in range(120)]).p_value < 0.05)
    # 300 draws of 0.05 have a standard deviation of 0.0126.
    assert 0.012 < np.mean(found) < 0.1
    positive, one, two = scores(1, records=800, gap=0.6)
    assert delong(positive, one, two, [str(number) for number in range(800)]).p_value < 1e-3


def test_delong_of_one_model_twice_and_of_too_few_patients() -> None:
    positive, one, _ = scores(0)
    got = delong(positive, one, one * 2, [str(number) for number in range(120)])
    assert got.p_value == 1.0 and got.difference == 0.0
    with pytest.raises(ConfigError, match="got 1 and 3"):
        delong(np.asarray([True, False, False, False]), np.arange(4.0), np.arange(4.0), list("abcd"))


@pytest.mark.parametrize(("one", "two"), [(0, 0), (3, 0), (5, 5), (12, 30), (700, 640)])
def test_mcnemar_is_scipys_binomial_test(one: int, two: int) -> None:
    first = np.asarray([True] * one + [False] * two + [True, False, True])
    second = np.asarray([False] * one + [True] * two + [True, False, True])
    got = mcnemar(first, second)
    assert (got.first_only, got.second_only) == (one, two)
    wanted = stats.binomtest(one, one + two, 0.5).pvalue if one + two else 1.0
    assert got.p_value == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ConfigError, match="same records"):
        mcnemar(first, second[1:])


def test_a_difference_is_paired_and_its_p_value_follows_the_draws() -> None:
    draw = np.random.default_rng(0)
    target = (draw.random((300, 2)) < 0.4).astype(np.float64)
    hard = draw.normal(size=(300, 1))
    first = 1 / (1 + np.exp(-(2.0 * target + hard - 1)))
    second = np.clip(first + 0.02 * draw.normal(size=first.shape), 0, 1)
    patients = [f"p{number // 2}" for number in range(300)]
    same = compare("multilabel", target, first, first, patients, labels=["a", "b"], draws=200)
    assert same["auc"].difference.low == same["auc"].difference.high == 0 and same["auc"].p_value == 1.0
    found = compare("multilabel", target, first, second, patients, labels=["a", "b"], draws=200)["auc"]
    assert found.difference.value == pytest.approx(found.first - found.second)
    # Nearly the same model: the interval of the difference is far narrower than that of either.
    assert found.difference.high - found.difference.low < 0.02
    worse = compare("multilabel", target, first, 1 - first, patients, labels=["a", "b"], draws=200)
    assert worse["auc"].p_value == pytest.approx(2 / 201) and worse["auc:a"].difference.low > 0


def test_errors_in_years_are_compared_too() -> None:
    draw = np.random.default_rng(0)
    truth = 60 + 10 * draw.normal(size=(80, 1))
    patients = [str(number) for number in range(80)]
    near, far = truth + draw.normal(size=truth.shape), truth + 5 * draw.normal(size=truth.shape)
    found = compare("regression", truth, near, far, patients, labels=["age"], draws=100)
    assert found["mae"].difference.high < 0 < found["r2"].difference.low
