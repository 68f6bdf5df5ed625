"""Calibrations against likelihoods that are searched by brute force, and against scikit-learn's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from ecgfm.errors import ConfigError, ContractError, SignalError
from ecgfm.eval.calibration import fit
from ecgfm.eval.metrics import evaluate
from ecgfm.hub.calibration import Calibration, Method, Outputs, log_odds, sigmoid, softmax

Floats = NDArray[np.float64]
METHODS: tuple[Method, ...] = ("platt", "temperature", "isotonic")


def multilabel(seed: int, records: int = 600, slope: float = 2.5) -> tuple[Floats, Floats]:
    """Return logits that are `slope` times too far from 0 (and shifted in one class), and answers."""
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(records, 3)) * 1.5 + np.asarray([0.0, -1.0, 0.5])
    answer = draw.random(true.shape) < 1 / (1 + np.exp(-true))
    return slope * true + np.asarray([0.0, 0.0, 1.0]), answer.astype(np.float64)


def multiclass(seed: int, records: int = 600, slope: float = 3.0) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(records, 4)) * 1.5
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    chosen = (shares.cumsum(axis=1) > draw.random((records, 1))).argmax(axis=1)
    # What is added to all logits of a record changes no softmax.
    return slope * true + draw.normal(size=(records, 1)) * 5, np.eye(4)[chosen]


def test_platt_is_the_maximum_of_the_likelihood_of_platts_targets() -> None:
    logits, target = multilabel(0)
    got = fit("platt", logits, target)
    for c in range(3):
        x, y = logits[:, c], target[:, c]
        up, down = y.sum(), (1 - y).sum()
        soft = np.where(y == 1, (up + 1) / (up + 2), 1 / (down + 2))

        def loss(line: Floats, x: Floats = x, soft: Floats = soft) -> float:
            z = line[0] * x + line[1]
            return float((np.logaddexp(0, z) - soft * z).sum())

        best = minimize(
            loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
        )
        # The search stops where the loss no longer falls by its rounding.
        assert (got.slope[c], got.offset[c]) == pytest.approx(tuple(best.x), abs=1e-4)
        assert got.apply(logits)[:, c] == pytest.approx(
            1 / (1 + np.exp(-(got.slope[c] * x + got.offset[c]))), abs=1e-12
        )


def test_platt_never_turns_the_order_of_the_records_round() -> None:
    # A model that validates below chance: its figures on the test part shall be its own.
    logits = np.linspace(-2, 2, 40)[:, None]
    target = (logits < 0.5).astype(np.float64)
    probability = fit("platt", logits, target).apply(logits)[:, 0]
    assert (np.diff(probability) > 0).all()
    np.testing.assert_allclose(probability, target.mean(), atol=0.02)  # the share, smoothed by Platt's targets


def test_platt_stays_finite_when_the_classes_are_apart() -> None:
    logits = np.linspace(-4, 4, 40)[:, None]
    got = fit("platt", logits, (logits > 0).astype(np.float64))
    probability = got.apply(logits)
    # The targets are 21/22 and 1/22: no probability is far beyond.
    assert got.slope[0] > 0 and 0.9 < probability.max() < 0.9999


@pytest.mark.parametrize("outputs", ["multilabel", "multiclass"])
def test_temperature_is_the_best_slope_of_a_fine_grid(outputs: Outputs) -> None:
    logits, target = multilabel(1) if outputs == "multilabel" else multiclass(1)
    got = fit("temperature", logits, target, outputs=outputs).slope[0]

    def loss(slope: float) -> float:
        z = slope * logits
        if outputs == "multilabel":
            return float((np.logaddexp(0, z) - target * z).sum())
        return float((np.log(np.exp(z).sum(axis=1)) - (target * z).sum(axis=1)).sum())

    grid = np.geomspace(0.05, 5, 4001)
    assert got == pytest.approx(grid[int(np.argmin([loss(slope) for slope in grid]))], rel=2e-3)
    # The logits were made 3 (and about 2.5) times too large.
    assert got == pytest.approx(1 / 3 if outputs == "multiclass" else 1 / 2.5, rel=0.15)


def test_temperature_of_a_faultless_model_ends_at_its_bound() -> None:
    logits = np.linspace(-4, 4, 41)[:, None]
    assert fit("temperature", logits, (logits > 0).astype(np.float64)).slope[0] == pytest.approx(100.0)
    assert fit("temperature", logits, (logits < 0).astype(np.float64)).slope[0] == pytest.approx(0.01)


def test_isotonic_is_scikit_learns_within_and_outside_of_what_it_saw() -> None:
    logits, target = multilabel(2)
    got = fit("isotonic", logits, target)
    new = np.linspace(-20, 20, 501)[:, None].repeat(3, axis=1)
    for c in range(3):
        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(logits[:, c], target[:, c])
        np.testing.assert_allclose(got.apply(new)[:, c], model.predict(new[:, c]), atol=1e-12)
        assert (np.diff(got.apply(new)[:, c]) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", ["multilabel", "multiclass"])
def test_calibration_lowers_the_error_on_other_records(method: Method, outputs: Outputs) -> None:
    make = multilabel if outputs == "multilabel" else multiclass
    logits, target = make(3, records=3000)
    new, truth = make(4, records=3000)
    calibration = fit(method, logits, target, outputs=outputs)
    labels = tuple("abcd"[: new.shape[1]])
    patients = [str(number) for number in range(len(new))]
    raw = sigmoid(new) if outputs == "multilabel" else softmax(new)
    before, after = (
        evaluate(outputs, truth, each, patients, labels=labels, draws=2).macro for each in (raw, calibration.apply(new))
    )
    # Temperature cannot mend the shift of one class of three.
    assert after["ece"].value < (0.6 if method == "temperature" else 0.4) * before["ece"].value
    assert after["brier"].value < before["brier"].value
    if outputs == "multiclass":
        np.testing.assert_allclose(calibration.apply(new).sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", ["multilabel", "multiclass"])
def test_a_calibration_is_plain_numbers_and_comes_back_from_json(method: Method, outputs: Outputs) -> None:
    logits, target = multilabel(5) if outputs == "multilabel" else multiclass(5)
    calibration = fit(method, logits, target, outputs=outputs)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    assert again == calibration
    np.testing.assert_array_equal(again.apply(logits), calibration.apply(logits))


@pytest.mark.parametrize("method", METHODS)
def test_unknown_targets_are_left_out(method: Method) -> None:
    logits, target = multilabel(6)
    target[:100, 1] = np.nan
    alone = fit(method, logits[100:, 1:2], target[100:, 1:2])
    got = fit(method, logits, target)
    if method != "temperature":
        assert got.apply(logits)[:, 1] == pytest.approx(alone.apply(logits[:, 1:2])[:, 0], abs=1e-9)
    changed = logits.copy()
    changed[:100, 1] = 7.0
    assert fit(method, changed, target) == got
    rows, classes = multiclass(6)
    classes[:100] = np.nan
    assert fit(method, rows, classes, outputs="multiclass") == fit(
        method, rows[100:], classes[100:], outputs="multiclass"
    )


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_class_without_contrast_keeps_its_probability(method: Method) -> None:
    logits, target = multilabel(7)
    target[:, 2] = 0
    np.testing.assert_allclose(fit(method, logits, target).apply(logits)[:, 2], sigmoid(logits[:, 2]), atol=1e-15)


def test_sigmoid_softmax_and_log_odds_hold_at_the_ends() -> None:
    assert sigmoid(np.asarray([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]
    logits = np.asarray([[1000.0, 999.0, 0.0]])
    shares = softmax(logits)[0]
    assert shares[:2] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.e)])
    few, _ = multiclass(8, records=20)
    p = softmax(few)
    np.testing.assert_allclose(log_odds(few, "multiclass"), np.log(p / (1 - p)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "outputs", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), "multilabel", "both, got"),
        (np.full((3, 2), np.inf), np.zeros((3, 2)), "multilabel", "not finite"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "multilabel", "nothing to fit"),
        (np.zeros((3, 1)), np.full((3, 1), 54.0), "multilabel", "regression has no probabilities"),
        (np.zeros((3, 2)), np.ones((3, 2)), "multiclass", "exactly one"),
        (np.zeros((3, 1)), np.ones((3, 1)), "multiclass", "two or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits: Floats, target: Floats, outputs: Outputs, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit("platt", logits, target, outputs=outputs)


@pytest.mark.parametrize(
    "data",
    [
        {"method": "platt", "outputs": "multilabel", "slope": [1.0]},
        {"method": "temperature", "outputs": "multilabel", "slope": [1.0, 2.0]},
        {"method": "isotonic", "outputs": "multilabel", "knots_logit": [[1.0, 0.0]], "knots_probability": [[0.1, 0.2]]},
        {"method": "isotonic", "outputs": "multilabel", "knots_logit": [[0.0]], "knots_probability": [[1.5]]},
        {"method": "isotonic", "outputs": "multilabel", "knots_logit": [[0.0]], "knots_probability": [[0.5, 0.6]]},
        {"method": "magic", "outputs": "multilabel"},
        {"method": "platt", "outputs": "multilabel", "slopes": [1.0]},
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ContractError):
        Calibration.from_dict(data)


def test_logits_of_another_model_are_refused() -> None:
    calibration = fit("platt", *multilabel(9))
    with pytest.raises(SignalError, match=r"\(records, 3\), got \(2, 5\)"):
        calibration.apply(np.zeros((2, 5)))
    with pytest.raises(SignalError, match="not finite"):
        calibration.apply(np.full((2, 3), np.nan))
