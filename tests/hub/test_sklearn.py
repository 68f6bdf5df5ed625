"""An encoder in scikit-learn's pipelines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from ecgfm import ECGEncoder, ECGFeatures
from ecgfm.errors import ContractError, SignalError
from ecgfm.leads import LEADS


@pytest.fixture
def folder(encoder: ECGEncoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture(scope="module")
def hearts() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """40 recordings of 2 s, half of them with waves three times as fast."""
    draw = np.random.default_rng(0)
    fast = np.arange(40) % 2
    time_s = np.arange(1000) / 500
    waves = np.sin(2 * np.pi * (1.5 + 3.0 * fast)[:, None] * time_s + draw.uniform(0, 6, (40, 1)))
    return waves[:, None] * draw.uniform(0.5, 1.5, (40, 12, 1)) + 0.05 * draw.normal(size=(40, 12, 1000)), fast


def test_a_pipeline_learns_to_tell_recordings_apart(folder: Path, hearts: Any) -> None:
    signals, fast = hearts
    model = make_pipeline(ECGFeatures(folder), StandardScaler(), LogisticRegression())
    assert cross_val_score(model, signals, fast, cv=4).mean() > 0.9
    search = GridSearchCV(model, {"logisticregression__C": [0.1, 1.0]}, cv=2).fit(signals, fast)
    assert search.best_score_ > 0.9


def test_features_are_those_of_embed(folder: Path, encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    wanted = encoder.embed(ecg, rate_hz=500, leads=LEADS, unit="mV").numpy()
    assert np.array_equal(ECGFeatures(folder).fit_transform(ecg[None]), wanted)
    order = np.random.default_rng(0).permutation(12)
    other = ECGFeatures(encoder, rate_hz=500, leads=[LEADS[lead] for lead in order], unit="uV", batch_size=2)
    # float32, and microvolt divided again
    np.testing.assert_allclose(other.fit_transform([1e3 * ecg[order]]), wanted, atol=2e-5, rtol=2e-5)
    assert list(other.get_feature_names_out()) == [f"ecg{number}" for number in range(16)]
    assert other.set_output(transform="pandas").transform([1e3 * ecg[order]]).shape == (1, 16)


def test_it_is_cloned_with_its_settings_and_without_its_weights(folder: Path) -> None:
    fitted = ECGFeatures(folder, unit="uV", rate_hz=250.0).fit(None)
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        again.transform(np.zeros((1, 12, 1000)))


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_set_params,
    ],
)
def test_scikit_learns_own_checks_pass(check: Any) -> None:
    # Of `check_estimator` those that give no table, which the tags say it does not take.
    check("ECGFeatures", ECGFeatures("someone/encoder"))


def test_mistakes_are_told_as_by_the_encoder(folder: Path, ecg: NDArray[np.float64]) -> None:
    with pytest.raises(SignalError, match="unit='uV' would fit"):
        ECGFeatures(folder).fit_transform(1e3 * ecg[None])
    with pytest.raises(ContractError, match="neither a folder nor a name"):
        ECGFeatures(folder / "none").fit(None)


def test_without_scikit_learn_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['sklearn.base'] = None\n"
        "import ecgfm\nfrom ecgfm.errors import ConfigError\nimport importlib\n"
        "try:\n    ecgfm.ECGFeatures\nexcept ConfigError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install scikit-learn" in done.stdout
