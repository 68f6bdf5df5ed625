"""Figures of merit against slow versions, written from the definitions and drawing records one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval import weighted
from ecgfm.eval.bootstrap import patient_weights
from ecgfm.eval.metrics import (
    Criterion,
    Figures,
    Kind,
    Scores,
    answers,
    challenge_worth,
    choose_thresholds,
    evaluate,
    figures,
    with_the_data,
)
from ecgfm.labels import challenge

Floats = NDArray[np.float64]
LABELS = ("NSR", "AF", "CRBBB", "TAb")


def case(seed: int, records: int = 80, classes: int = 4) -> tuple[Floats, Floats, list[str]]:
    """Return answers (some records with none or all), probabilities with ties, and patients of several records."""
    draw = np.random.default_rng(seed)
    target = (draw.random((records, classes)) < np.linspace(0.6, 0.15, classes)).astype(np.float64)
    probability = np.clip(np.round(0.3 * target + 0.35 + 0.2 * draw.normal(size=target.shape), 2), 0, 1)
    return target, probability, [f"p{number}" for number in draw.integers(0, records // 2, records)]


def slow_f_max(target: Floats, probability: Floats) -> float:
    best = 0.0
    for threshold in range(101):
        precisions, recalls = [], []
        for truth, scores in zip(target, probability, strict=True):
            said = {c for c, score in enumerate(scores) if score >= threshold / 100}
            true = {c for c, value in enumerate(truth) if value == 1}
            if said:
                precisions.append(len(said & true) / len(said))
            if true:
                recalls.append(len(said & true) / len(true))
        if precisions and recalls:
            precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
            if precision + recall:
                best = max(best, 2 * precision * recall / (precision + recall))
    return best


def slow_beta(target: Floats, answer: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """F-beta and G-beta, beta 2, of each class: what a record adds is divided by its number of labels."""
    f, g = [], []
    for c in range(target.shape[1]):
        tp = fp = fn = 0.0
        for truth, said in zip(target, answer, strict=True):
            share = 1 / max(sum(truth), 1)
            if truth[c] == 1 and said[c]:
                tp += share
            elif truth[c] == 0 and said[c]:
                fp += share
            elif truth[c] == 1:
                fn += share
        f.append(5 * tp / (5 * tp + fp + 4 * fn) if tp + fp + fn else float("nan"))
        g.append(tp / (tp + fp + 2 * fn) if tp + fp + fn else float("nan"))
    return f, g


def slow_challenge(target: Floats, answer: NDArray[np.bool_], labels: tuple[str, ...]) -> float:
    """Score between sinus rhythm for everybody (0) and the truth (1)."""
    table = challenge.weights()

    def total(said_by_record: list[set[str]]) -> float:
        score = 0.0
        for truth, said in zip(target, said_by_record, strict=True):
            true = {label for label, value in zip(labels, truth, strict=True) if value == 1}
            for one, other in itertools.product(true, said):
                score += table[one][other] / max(len(true | said), 1)
        return score

    model = total([{label for label, yes in zip(labels, row, strict=True) if yes} for row in answer])
    perfect = total([{label for label, value in zip(labels, row, strict=True) if value == 1} for row in target])
    idle = total([{"NSR"} for _ in target])
    return (model - idle) / (perfect - idle) if perfect != idle else 0.0


def slow_ece(truth: Floats, probability: Floats) -> float:
    total = 0.0
    for k in range(15):
        inside = [
            (y, p) for y, p in zip(truth, probability, strict=True) if k / 15 < p <= (k + 1) / 15 or (k == 0 and p == 0)
        ]
        if inside:
            accuracy = sum(y for y, _ in inside) / len(inside)
            confidence = sum(p for _, p in inside) / len(inside)
            total += len(inside) / len(truth) * abs(accuracy - confidence)
    return total


def drawn(kind: Kind, seed: int) -> tuple[Figures, list[tuple[Floats, Floats]]]:
    """Return the figures of seven draws and the data, and the records of each drawn one by one."""
    target, probability, patients = case(seed)
    if kind == "multiclass":
        target = np.eye(4)[np.random.default_rng(seed).integers(0, 4, len(target))]
        probability = probability / probability.sum(axis=1, keepdims=True)
    weights = with_the_data(patient_weights(patients, 7, seed))
    found = figures(kind, target, probability, weights, LABELS)
    places = [np.repeat(np.arange(len(target)), row) for row in weights]
    return found, [(target[place], probability[place]) for place in places]


@pytest.mark.parametrize("seed", range(2))
def test_figures_of_whole_records_are_those_of_the_slow_version_in_every_draw(seed: int) -> None:
    found, draws = drawn("multilabel", seed)
    for row, (target, probability) in enumerate(draws):
        answer = probability >= 0.5
        assert found.whole["f_max"][row] == pytest.approx(slow_f_max(target, probability), abs=1e-12)
        assert found.whole["challenge_2021"][row] == pytest.approx(slow_challenge(target, answer, LABELS), abs=1e-12)
        assert found.whole["exact_match"][row] == pytest.approx(np.mean((answer == target).all(axis=1)), abs=1e-12)
        f, g = slow_beta(target, answer)
        np.testing.assert_allclose(found.by_class["f_beta"][row], f, atol=1e-12)
        np.testing.assert_allclose(found.by_class["g_beta"][row], g, atol=1e-12)
        assert found.whole["g_beta"][row] == pytest.approx(np.mean(g), abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_figures_of_a_class_are_those_of_scikit_learn_and_the_slow_version_in_every_draw(seed: int) -> None:
    found, draws = drawn("multilabel", seed)
    for row, (target, probability) in enumerate(draws):
        for c in range(4):
            truth, score = target[:, c], probability[:, c]
            each = {name: values[row, c] for name, values in found.by_class.items()}
            assert each["auc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
            assert each["average_precision"] == pytest.approx(average_precision_score(truth, score), abs=1e-12)
            assert each["ece"] == pytest.approx(slow_ece(truth, score), abs=1e-12)
            assert each["brier"] == pytest.approx(np.mean((truth - score) ** 2), abs=1e-12)
            said = score >= 0.5
            assert each["sensitivity"] == pytest.approx(said[truth == 1].mean(), abs=1e-12)
            assert each["specificity"] == pytest.approx(1 - said[truth == 0].mean(), abs=1e-12)
            assert each["precision"] == pytest.approx(truth[said].mean(), abs=1e-12)
            assert each["accuracy"] == pytest.approx((said == truth).mean(), abs=1e-12)
        assert found.whole["auc"][row] == pytest.approx(roc_auc_score(target, probability, average="macro"), abs=1e-12)


def test_classes_that_exclude_each_other_are_answered_by_the_likeliest() -> None:
    found, draws = drawn("multiclass", 0)
    assert "f_max" not in found.whole and "exact_match" not in found.whole
    for row, (target, probability) in enumerate(draws):
        right = probability.argmax(axis=1) == target.argmax(axis=1)
        assert found.whole["accuracy"][row] == pytest.approx(right.mean(), abs=1e-12)
        top = slow_ece(right.astype(np.float64), probability.max(axis=1))
        assert found.whole["ece"][row] == pytest.approx(top, abs=1e-12)
        answer = np.eye(4, dtype=bool)[probability.argmax(axis=1)]
        np.testing.assert_allclose(found.by_class["f_beta"][row], slow_beta(target, answer)[0], atol=1e-12)


def test_regression_is_that_of_numpy_and_scikit_learn_in_every_draw() -> None:
    draw = np.random.default_rng(5)
    truth = 60 + 15 * draw.normal(size=(90, 1))
    value = truth + 8 * draw.normal(size=truth.shape)
    weights = with_the_data(patient_weights([f"p{number // 2}" for number in range(90)], 7, 1))
    found = figures("regression", truth, value, weights, ["age"]).whole
    for row, counts in enumerate(weights):
        x, y = np.repeat(truth[:, 0], counts), np.repeat(value[:, 0], counts)
        assert found["mae"][row] == pytest.approx(np.abs(x - y).mean(), abs=1e-9)
        assert found["rmse"][row] == pytest.approx(np.sqrt(((x - y) ** 2).mean()), abs=1e-9)
        assert found["r2"][row] == pytest.approx(r2_score(x, y), abs=1e-9)
        assert found["pearson"][row] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)


def test_a_constant_has_no_correlation_and_a_constant_truth_no_r2() -> None:
    truth, constant = np.asarray([60.1, 61.7, 65.3]), np.full(3, 61.1)
    weights = np.ones((1, 3), dtype=np.int64)
    assert np.isnan(weighted.regression(truth, constant, weights)["pearson"][0])
    assert np.isnan(weighted.regression(constant, truth, weights)["r2"][0])


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_what_is_unknown_counts_nowhere(kind: Kind) -> None:
    target, probability, patients = case(3)
    if kind == "multiclass":
        target = np.eye(4)[np.arange(len(target)) % 4]
    target[:10] = np.nan
    before = evaluate(kind, target, probability, patients, labels=LABELS, draws=5)
    probability[:10] = 1 - probability[:10]
    after = evaluate(kind, target, probability, patients, labels=LABELS, draws=5)
    assert config.to_dict(before) == config.to_dict(after)
    alone = evaluate(kind, target[10:], probability[10:], patients[10:], labels=LABELS, draws=5)
    assert {name: value.value for name, value in before.macro.items()} == pytest.approx(
        {name: value.value for name, value in alone.macro.items()}, abs=1e-12
    )


def test_a_single_unknown_cell_does_not_hide_the_record_from_other_labels() -> None:
    target, probability, patients = case(4)
    target[5, 0] = np.nan
    scores = evaluate("multilabel", target, probability, patients, labels=LABELS, draws=3)
    kept = np.arange(len(target)) != 5
    assert scores.per_class["auc"]["NSR"].value == pytest.approx(roc_auc_score(target[kept, 0], probability[kept, 0]))
    assert scores.per_class["auc"]["AF"].value == pytest.approx(roc_auc_score(target[:, 1], probability[:, 1]))


def test_a_label_that_nobody_has_is_named_and_left_out_of_the_mean() -> None:
    target, probability, patients = case(6)
    target[:, 2] = 0
    scores = evaluate("multilabel", target, probability, patients, labels=LABELS, draws=20)
    assert scores.undefined == ("CRBBB",) and "CRBBB" not in scores.per_class["auc"]
    kept = [0, 1, 3]
    assert scores.macro["auc"].value == pytest.approx(roc_auc_score(target[:, kept], probability[:, kept]))
    assert scores.positives["CRBBB"] == 0
    assert config.from_dict(Scores, config.to_dict(scores)) == scores


def test_a_label_that_is_neither_there_nor_answered_is_no_part_of_f_beta() -> None:
    target, probability, patients = case(6)
    target[:, 2], probability[:, 2] = 0, 0.1
    scores = evaluate("multilabel", target, probability, patients, labels=LABELS, draws=3)
    f, _ = slow_beta(target, probability >= 0.5)
    assert np.isnan(f[2]) and scores.macro["f_beta"].value == pytest.approx(np.nanmean(f))


def test_whole_patients_are_drawn_unless_records_are_asked_for() -> None:
    target, probability, _ = case(8, records=40)
    many, values = np.repeat(target, 5, axis=0), np.repeat(probability, 5, axis=0)
    patients = [f"p{number // 5}" for number in range(200)]
    by_patient = evaluate("multilabel", many, values, patients, labels=LABELS, draws=400).macro["auc"]
    by_record = evaluate("multilabel", many, values, patients, labels=LABELS, draws=400, resample="record").macro["auc"]
    assert by_patient.value == pytest.approx(by_record.value)
    assert by_patient.low <= by_patient.value <= by_patient.high
    # Copies of records tell nothing new: the interval by record is narrower by the root of 5.
    assert (by_record.high - by_record.low) < 0.6 * (by_patient.high - by_patient.low)


def test_the_draws_are_those_of_the_seed() -> None:
    target, probability, patients = case(9)
    one, same, other = (
        evaluate("multilabel", target, probability, patients, labels=LABELS, draws=10, seed=seed).macro["auc"]
        for seed in (1, 1, 2)
    )
    assert one == same and one.low != other.low


def test_the_challenge_scores_the_truth_1_and_sinus_rhythm_0() -> None:
    labels = tuple(challenge.weights())
    draw = np.random.default_rng(2)
    target = (draw.random((50, 26)) < 0.1).astype(np.float64)
    worth = challenge_worth(labels)
    assert worth is not None
    normal = labels.index("NSR")
    idle = np.zeros_like(target, dtype=bool)
    idle[:, normal] = True
    weights = np.ones((1, 50), dtype=np.int64)
    for answer, score in ((target == 1, 1.0), (idle, 0.0)):
        got = weighted.challenge_2021(target, answer, weights, worth_CC=worth, normal=normal)[0]
        assert got == pytest.approx(score, abs=1e-12)
        assert slow_challenge(target, answer, labels) == pytest.approx(score, abs=1e-12)
    everything = np.ones_like(idle)
    got = weighted.challenge_2021(target, everything, weights, worth_CC=worth, normal=normal)[0]
    assert got == pytest.approx(slow_challenge(target, everything, labels), abs=1e-12) and got < 1


def test_the_challenge_score_is_there_for_its_classes_only() -> None:
    assert challenge_worth(("AF", "CRBBB")) is None and challenge_worth(("NSR", "sex")) is None
    worth = challenge_worth(("TAb", "NSR"))
    assert worth is not None and worth.tolist() == [[1.0, 0.25], [0.25, 1.0]]


@pytest.mark.parametrize("by", ["g_beta", "f_beta", "f1", "youden"])
def test_thresholds_are_the_best_of_all_that_could_be_chosen(by: Criterion) -> None:
    target, probability, _ = case(11)
    chosen = choose_thresholds(target, probability, by=by)

    def quality(truth: Floats, said: NDArray[np.bool_]) -> float:
        tp, fp, fn = ((said & (truth == 1)).sum(), (said & (truth == 0)).sum(), (~said & (truth == 1)).sum())
        tn = (~said & (truth == 0)).sum()
        return float(
            {
                "g_beta": tp / (tp + fp + 2 * fn),
                "f_beta": 5 * tp / (5 * tp + fp + 4 * fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "youden": tp / (tp + fn) + tn / (tn + fp) - 1,
            }[by]
        )

    for c in range(4):
        reached = quality(target[:, c], probability[:, c] >= chosen[c])
        tried = [quality(target[:, c], probability[:, c] >= number / 1000) for number in range(1001)]
        assert reached == pytest.approx(max(tried), abs=1e-12)


def test_a_label_without_contrast_keeps_its_threshold_and_the_benchmark_always_answers() -> None:
    target = np.asarray([[1.0, 0.0], [0.0, 0.0], [np.nan, 0.0]])
    probability = np.asarray([[0.4, 0.2], [0.1, 0.3], [0.9, 0.1]])
    chosen = choose_thresholds(target, probability)
    assert chosen.tolist() == [0.25, 0.5]  # midway between 0.4 and 0.1
    assert answers(probability, chosen).tolist() == [[True, False], [False, False], [True, False]]
    assert answers(probability, chosen, at_least_one=True).tolist() == [[True, False], [False, True], [True, False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_NC": np.zeros((3, 2))}, "must be .records, labels. both"),
        ({"probability_NC": np.full((4, 2), 3.0)}, r"\[0, 1\], got 3 to 3: logits"),
        ({"probability_NC": np.full((4, 2), np.nan)}, "not finite"),
        ({"patients": ["a"]}, "as many patients"),
        ({"labels": ("a", "a")}, "different labels"),
        ({"target_NC": np.full((4, 2), 0.5)}, "0, 1 or NaN"),
        ({"target_NC": np.asarray([[np.nan, 1.0]] * 4)}, "knows about a"),
        ({"kind": "multiclass", "target_NC": np.ones((4, 2))}, "exactly one"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "kind": "multilabel",
        "target_NC": np.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
        "probability_NC": np.full((4, 2), 0.5),
        "patients": list("abcd"),
        "labels": ("a", "b"),
        **change,
    }
    with pytest.raises(ConfigError, match=message):
        evaluate(**given, draws=3)  # type: ignore[arg-type]


def test_the_interval_of_the_calibration_error_holds_its_value_though_resamples_are_worse() -> None:
    draw = np.random.default_rng(0)
    probability = draw.random((300, 1))
    target = (draw.random((300, 1)) < probability).astype(np.float64)  # calibrated: the error is the bins' noise
    patients = [f"p{number}" for number in range(300)]
    draws = figures(
        "multilabel", target, probability, with_the_data(patient_weights(patients, 200, 0)), ("a",)
    ).by_class["ece"][:, 0]
    assert (draws[1:] > draws[0]).mean() > 0.8
    found = evaluate("multilabel", target, probability, patients, labels=("a",), draws=200).macro["ece"]
    shifted = np.sort(draws) - np.median(draws) + draws[0]
    assert found.value == draws[0] and found.low == pytest.approx(max(0, np.quantile(shifted, 0.025)))
    assert found.high == pytest.approx(np.quantile(shifted, 0.975)) and found.low < found.value < found.high
