"""Diversity of an ensemble, against counts by hand, and what it gains."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ecgfm.errors import ConfigError
from ecgfm.eval.diversity import diversity


def members(seed: int, shared: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return answers and the probabilities of four members, whose errors have `shared` of their variance in common."""
    draw = np.random.default_rng(seed)
    target = (draw.random((400, 2)) < 0.4).astype(np.float64)
    common = draw.normal(size=target.shape)
    each = [np.sqrt(shared) * common + np.sqrt(1 - shared) * draw.normal(size=target.shape) for _ in range(4)]
    return target, [1 / (1 + np.exp(-(1.5 * target - 0.75 + error))) for error in each]


PATIENTS = [f"p{number // 2}" for number in range(400)]


def test_a_pair_is_what_counting_cells_gives() -> None:
    target, probabilities = members(0, 0.5)
    target[:7, 1] = np.nan
    got = diversity("multilabel", target, probabilities[:2], PATIENTS, labels=["a", "b"], draws=3).pairs["0-1"]
    count = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for n in range(400):
        for c in range(2):
            if not np.isnan(target[n, c]):
                one, two = ((each[n, c] >= 0.5) == (target[n, c] == 1) for each in probabilities[:2])
                count[bool(one), bool(two)] += 1
    cells = 793
    assert sum(count.values()) == cells
    assert got.disagreement == pytest.approx((count[True, False] + count[False, True]) / cells)
    assert got.double_fault == pytest.approx(count[False, False] / cells)
    up, down = count[True, True] * count[False, False], count[True, False] * count[False, True]
    assert got.q_statistic == pytest.approx((up - down) / (up + down))
    first, second = probabilities[:2]
    assert got.correlation == pytest.approx(
        np.mean([np.corrcoef(first[k:, c], second[k:, c])[0, 1] for c, k in ((0, 0), (1, 7))])
    )
    # A linear model with the answer takes the two means away.
    wanted = []
    for c, k in ((0, 0), (1, 7)):
        design = np.stack([np.ones(400 - k), target[k:, c]], axis=1)
        left = [each[k:, c] - design @ np.linalg.lstsq(design, each[k:, c])[0] for each in (first, second)]
        wanted.append(np.corrcoef(*left)[0, 1])
    assert got.error_correlation == pytest.approx(np.mean(wanted))


def test_members_that_err_apart_gain_more_and_copies_gain_nothing() -> None:
    found = [diversity("multilabel", *members(1, shared), PATIENTS, labels=["a", "b"], draws=50) for shared in (0, 0.9)]
    apart, alike = found
    assert apart.mean.disagreement > alike.mean.disagreement
    # Of 400 records a correlation's standard deviation is 0.05.
    assert apart.mean.error_correlation == pytest.approx(0, abs=0.1)
    assert alike.mean.error_correlation == pytest.approx(0.9, abs=0.05)
    assert apart.gain["auc"].low > alike.gain["auc"].high > 0
    target, probabilities = members(1, 0)
    wanted = np.mean([roc_auc_score(target, each) for each in probabilities])
    assert apart.member_mean["auc"] == pytest.approx(wanted)
    assert apart.ensemble["auc"] == pytest.approx(roc_auc_score(target, np.mean(probabilities, axis=0)))
    copies = diversity("multilabel", target, [probabilities[0]] * 3, PATIENTS, labels=["a", "b"], draws=5)
    assert copies.mean.disagreement == 0 and copies.gain["auc"].value == 0 and copies.mean.q_statistic == 1.0
    assert copies.members == 3 and set(copies.pairs) == {"0-1", "0-2", "1-2"}


def test_of_classes_that_exclude_each_other_a_record_is_right_or_wrong() -> None:
    target = np.eye(3)[[0, 1, 2, 0]]
    one, two = np.eye(3)[[0, 1, 0, 1]], np.eye(3)[[0, 2, 2, 2]]
    got = diversity("multiclass", target, [one, two], list("abcd"), labels=["x", "y", "z"], draws=3).pairs["0-1"]
    assert got.disagreement == 0.5 and got.double_fault == 0.25 and got.q_statistic == 0.0


def test_one_member_has_no_diversity() -> None:
    target, probabilities = members(0, 0)
    with pytest.raises(ConfigError, match="two or more classifiers, got 1"):
        diversity("multilabel", target, probabilities[:1], PATIENTS, labels=["a", "b"])
