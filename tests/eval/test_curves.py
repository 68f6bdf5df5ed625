"""Points of the curves, against the figures that they belong to."""

from __future__ import annotations

import numpy as np
import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval.curves import precision_recall, reliability, roc
from ecgfm.eval.metrics import evaluate


def case() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    draw = np.random.default_rng(0)
    probability = draw.random(500)
    target = (draw.random(500) < probability**2).astype(np.float64)
    target[:20] = np.nan
    return target, probability, tuple(f"p{number // 2}" for number in range(500))


def test_the_areas_under_the_curves_are_the_figures() -> None:
    target, probability, patients = case()
    scores = evaluate("multilabel", target[:, None], probability[:, None], patients, labels=["a"], draws=2).macro
    x, y = roc(target, probability)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(scores["auc"].value, abs=1e-12)
    recall, precision = precision_recall(target, probability)
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(scores["average_precision"].value, abs=1e-12)


def test_the_gaps_of_the_reliability_curve_are_the_calibration_error() -> None:
    target, probability, patients = case()
    scores = evaluate("multilabel", target[:, None], probability[:, None], patients, labels=["a"], draws=2).macro
    got = reliability(target, probability, patients)
    assert got.records_B.sum() == 480 and len(got.records_B) == 15
    gaps = np.abs(got.probability_B - got.frequency_B) * got.records_B / 480
    assert gaps.sum() == pytest.approx(scores["ece"].value, abs=1e-12)
    assert ((got.low_B <= got.frequency_B) & (got.frequency_B <= got.high_B)).all()
    assert (got.low_B < got.high_B).sum() >= 13


def test_empty_bins_are_left_out_and_a_bin_of_one_record_is_drawn() -> None:
    target, probability = np.asarray([0.0, 1.0, 1.0]), np.asarray([0.0, 1.0, 0.999])
    got = reliability(target, probability, ("a", "b", "c"))
    assert got.records_B.tolist() == [1, 2] and got.frequency_B.tolist() == [0.0, 1.0]
    assert got.probability_B == pytest.approx([0.0, 0.9995])


def test_a_curve_needs_both_answers() -> None:
    with pytest.raises(ConfigError, match="with the label and records without"):
        roc(np.asarray([1.0, np.nan]), np.asarray([0.1, 0.2]))
    with pytest.raises(ConfigError, match="no target is known"):
        reliability(np.asarray([np.nan]), np.asarray([0.1]), ("a",))
