"""The vectorised AUROC and bootstrap against scikit-learn, one draw at a time."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ecgfm.eval import bootstrap
from ecgfm.eval.bootstrap import auroc, interval, patient_weights, weighted_auroc


def case(seed: int, records: int = 60) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return answers, scores with ties, and patients of several records."""
    draw = np.random.default_rng(seed)
    positive = draw.random(records) < 0.3
    scores = np.round(positive * 0.5 + draw.normal(size=records), 1)
    return positive, scores, [f"p{number}" for number in draw.integers(0, records // 3, records)]


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn_with_ties(seed: int) -> None:
    positive, scores, _ = case(seed)
    assert auroc(positive, scores) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("block", [1, 500, 10**7])
def test_every_draw_is_the_auroc_of_the_records_drawn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LARGEST_BLOCK", block)
    positive, scores, patients = case(7)
    weights = patient_weights(patients, 40, seed=3)
    got = weighted_auroc(positive, scores, weights)
    for row, value in zip(weights, got, strict=True):
        drawn = np.repeat(np.arange(len(scores)), row)
        assert value == pytest.approx(roc_auc_score(positive[drawn], scores[drawn]), abs=1e-12)


def test_whole_patients_are_drawn_as_many_as_there_are() -> None:
    _, _, patients = case(1)
    names = np.asarray(patients)
    weights = patient_weights(patients, 200, seed=0)
    for name in set(patients):
        of_patient = weights[:, names == name]
        assert (of_patient == of_patient[:, :1]).all()
    first = [patients.index(name) for name in sorted(set(patients))]
    assert (weights[:, first].sum(axis=1) == len(first)).all()
    assert abs(weights.mean() - 1.0) < 0.05


def test_the_draws_depend_on_the_seed_alone() -> None:
    _, _, patients = case(1)
    assert (patient_weights(patients, 5, 1) == patient_weights(patients, 5, 1)).all()
    assert (patient_weights(patients, 5, 1) != patient_weights(patients, 5, 2)).any()


def test_copies_of_a_patients_record_do_not_narrow_the_interval() -> None:
    positive, scores, _ = case(2)
    alone = [f"p{number}" for number in range(len(scores))]
    once = interval(0.5, weighted_auroc(positive, scores, patient_weights(alone, 1000, 0)))
    many, values = np.repeat(positive, 5), np.repeat(scores, 5)
    again = interval(0.5, weighted_auroc(many, values, patient_weights(np.repeat(alone, 5).tolist(), 1000, 0)))
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-12)
    by_record = patient_weights([f"r{number}" for number in range(5 * len(scores))], 1000, 0)
    naive = interval(0.5, weighted_auroc(many, values, by_record))
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_a_draw_without_a_class_counts_for_nothing() -> None:
    positive = np.asarray([True, False])
    draws = weighted_auroc(positive, np.asarray([0.9, 0.1]), np.asarray([[2, 0], [1, 1], [0, 2]]))
    assert np.isnan(draws[[0, 2]]).all() and draws[1] == 1.0
    assert interval(1.0, draws).draws == 1
