"""Cards: of recipes, with results, of classifiers; the Hub's own checks on each. About 6 s."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

from ecgfm import ECGClassifier, ECGEncoder, config
from ecgfm.errors import ConfigError
from ecgfm.hub.card import Provenance, model_card, with_fine_tuning, with_results
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.publish import prepare
from ecgfm.hub.recipe_notes import notes_of, pretraining_recipes, read_notes
from ecgfm.hub.results import METRICS, SUPERVISED, UNTRAINED, read_results, with_controls
from tests.hub.hub_server import HubServer, check_card
from tests.hub.test_export import SHARDS

ROOT = Path(__file__).resolve().parents[2]
PRETRAINING = pretraining_recipes(ROOT / "recipes")
RUN: dict[str, Any] = {
    "encoder": {"kind": "vit"},
    "objective": {"kind": "jepa"},
    "data": {"batch_size": 64},
    "optim": {},
    "engine": {},
    "out": "run",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def validator(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub's own validation ask this machine."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)


@pytest.fixture(scope="module")
def make_cards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cards", ROOT / "tools" / "make_cards.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cards(make_cards: ModuleType) -> dict[str, str]:
    return dict(make_cards.recipe_cards())


def card(encoder: ECGEncoder, **state: Any) -> str:
    """Return the card of an encoder that was pretrained on PTB-XL."""
    provenance = Provenance(run=RUN, state={"step": 1, "shards": SHARDS, **state})
    return model_card("x", config.to_dict(encoder.encoder.config), encoder.signal, 1, provenance)


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "draws": 1000}


def write_probe(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "label": "ludb:a | b",
        "records": 200,
        "patients": 190,
        "pretrained": figure(0.9),
        "untrained": figure(0.8),
    }
    content = {"encoder": "/home/somebody/e", "databases": ["ludb"], "folds": 5, "results": [result], **changes}
    (folder / "probe.json").write_text(json.dumps(content))
    return folder


def write_finetuned(folder: Path, *, init: str = "pretrained", auc: float = 0.9, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    macro = {name: figure(0.1) for name in ("ece", "brier")} | {"auc": figure(auc), "exact_match": figure(0.5)}
    content = {
        "task": {"name": "ptb-xl", "title": "Statements of PTB-XL"},
        "kind": "multilabel",
        "labels": ["a", "b"],
        "method": "after-probe",
        "head": "linear",
        "init": init,
        "seed": 0,
        "encoder": {"sha256": None},
        "shards": [{"folder": "/home/somebody/ptb-xl", "database": "ptb-xl"}],
        "scores": {"test": {"records": 2198, "patients": 1900, "macro": macro}},
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_the_cards_of_the_recipes_are_what_the_tool_writes(cards: dict[str, str], make_cards: ModuleType) -> None:
    assert list(cards) == [f"{path.stem}.md" for path in PRETRAINING]
    there = {path.name: path.read_text(encoding="utf-8") for path in make_cards.CARDS.glob("*.md")}
    for name in make_cards.KEPT:
        del there[name]
    assert there == cards, "run python tools/make_cards.py"


@pytest.mark.parametrize("name", [path.stem for path in PRETRAINING])
def test_the_hubs_validator_takes_each_card_of_a_recipe(cards: dict[str, str], validator: None, name: str) -> None:
    text = cards[f"{name}.md"]
    ModelCard(text).validate()
    assert "$" not in text and "model-index" not in text  # without weights there is no result
    assert "**No weights" in text and "Not a medical device" in text and "- **Here:**" in text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("license: apache-2.0", "license: mine"),
        ("pipeline_tag: feature-extraction", "pipeline_tag: feature-extract"),
        ("- ecg\n", "- {}\n"),
    ],
)
def test_the_validator_refuses_what_the_hub_would(
    cards: dict[str, str], validator: None, wrong: str, right: str
) -> None:
    text = cards["jepa_vit.md"]
    assert wrong in text
    with pytest.raises(ValueError, match="errors"):
        ModelCard(text.replace(wrong, right, 1), ignore_metadata_errors=True).validate()
    # The client leaves out an index that it cannot read, before the Hub sees it.
    index = "model-index:\n- name: x\n  results:\n  - task: {}\n    dataset: {type: a}\n    metrics: []"
    assert len(check_card(text.replace("library_name: ecgfm", index))) == 3


def test_a_recipes_parameters_are_those_of_the_encoder_that_it_builds(make_cards: ModuleType) -> None:
    # The papers' own sizes, see recipes/jepa_vit.py.
    runs = make_cards.presets(ROOT / "recipes" / "jepa_vit.py")
    millions = [make_cards.parameters(runs[name].encoder) / 1e6 for name in ("xs", "s", "b")]
    np.testing.assert_allclose(millions, [3.60, 14.28, 85.19], atol=0.005)


def test_notes_are_the_docstrings_words(tmp_path: Path) -> None:
    notes = read_notes(ROOT / "recipes" / "byol_resnet.py")
    assert notes.title == "BYOL on ResNet-18-1D"
    assert notes.source == "Grill et al. 2020, https://arxiv.org/abs/2006.07733"
    assert [who for who, _ in notes.items] == [
        "Paper says",
        "Mehari and Strodthoff 2022 (https://arxiv.org/abs/2103.12676) say, for the ECG",
        "Ours",
    ]
    docstring = " ".join((ROOT / "recipes" / "byol_resnet.py").read_text().split('"""')[1].split())
    for who, said in notes.items:
        assert f"{who}: {said}" in docstring
    assert docstring.endswith(notes.items[-1][1])
    (tmp_path / "odd.py").write_text('"""Something (Somebody 2020).\n\nPaper says: a.\n"""\n')
    with pytest.raises(ConfigError, match='"Ours:"'):
        read_notes(tmp_path / "odd.py")
    assert notes_of(ROOT / "recipes", "../tools/probe.py") is None and notes_of(ROOT / "recipes", None) is None


def test_results_stand_in_metadata_and_text_beside_their_controls(
    encoder: ECGEncoder, tmp_path: Path, validator: None
) -> None:
    results = read_results(write_probe(tmp_path / "probe")) + read_results(write_finetuned(tmp_path / "tuned"))
    scratch = read_results(write_finetuned(tmp_path / "scratch", init="untrained", auc=0.7, method="direct"))
    text = with_results(card(encoder), "ecg", with_controls(results, {SUPERVISED: scratch}))
    ModelCard(text).validate()
    assert "| ludb:a \\| b | ludb, 5 folds of patients | 200, 190 | logistic regression" in text
    head = "| task | data | records, patients | method | figure | this model | untrained | supervised from scratch |"
    assert text.count(head) == 1
    assert "| AUROC | 0.900 (0.850 to 0.950) | 0.800 (0.750 to 0.850) | not measured |" in text
    assert "| AUROC | 0.900 (0.850 to 0.950) | not measured | 0.700 (0.650 to 0.750) |" in text
    assert "**Pretraining read ptb-xl too**" in text and "somebody" not in text
    results_section, calibration = (
        re.split(r"^## ", text, flags=re.MULTILINE)[place] for place in (4, 5)
    )  # Use, Signal contract, Architecture come first
    assert results_section.startswith("Results") and "calibration error" not in results_section
    assert calibration.startswith("Calibration") and "calibration error (ECE) | 0.100" in calibration
    data = ModelCard(text).data
    found = {(one.dataset_type, one.metric_type): one.metric_value for one in data["eval_results"]}
    assert data["model_name"] == "ecg" and len(found) == 4
    assert found["ludb", "roc_auc"] == 0.9 and found["ptb-xl", "expected_calibration_error"] == 0.1
    assert data["metrics"] == ["brier_score", "expected_calibration_error", "roc_auc"]
    # Others in their place, and nothing else moves.
    again = with_results(text, "ecg", results)
    assert again.count("## Results") == 1 and "supervised from scratch" not in again
    assert with_results(again, "ecg", results) == again
    assert again.partition("## Pretraining data")[2] == card(encoder).partition("## Pretraining data")[2]


def test_a_control_must_be_one_and_be_of_the_same_records(tmp_path: Path) -> None:
    results = read_results(write_finetuned(tmp_path / "a"))
    other = read_results(write_finetuned(tmp_path / "b"))
    with pytest.raises(ConfigError, match="measured with pretrained weights"):
        with_controls(results, {UNTRAINED: other})
    untrained = read_results(write_finetuned(tmp_path / "c", init="untrained", labels=["a", "b", "c"]))
    with pytest.raises(ConfigError, match="same task and records"):
        with_controls(results, {UNTRAINED: untrained})
    with pytest.raises(ConfigError, match="random weights"):
        with_controls(untrained, {})
    with pytest.raises(ConfigError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "a" / "result.json").write_text('{"task": {}}')
    with pytest.raises(ConfigError, match="not what this version writes"):
        read_results(tmp_path / "a")


def test_figures_of_a_card_are_figures_that_evaluations_write() -> None:
    weighted = (ROOT / "ecgfm" / "eval" / "metrics.py").read_text() + (
        ROOT / "ecgfm" / "eval" / "weighted.py"
    ).read_text()
    assert [name for name in METRICS if f'"{name}"' not in weighted] == []


def test_results_of_other_weights_are_refused(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    own = read_results(write_probe(tmp_path / "own", encoder_sha256=weights_sha256(encoder)))
    prepare(tmp_path / "encoder", tmp_path / "ready", "me/ecg", results=own)
    assert "0.900 (0.850 to 0.950)" in (tmp_path / "ready" / "README.md").read_text()
    other = read_results(write_probe(tmp_path / "other", encoder_sha256="0" * 64))
    with pytest.raises(ConfigError, match="measured with other weights"):
        prepare(tmp_path / "encoder", tmp_path / "again", "me/ecg", results=other)


def test_a_classifiers_card_says_what_its_encoder_saw(
    encoder: ECGEncoder, tmp_path: Path, validator: None, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.card = card(encoder)
    classifier = ECGClassifier.from_pretrained(encoder, labels=["AF", "LBBB"])
    classifier.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    ModelCard(text).validate()
    assert "`AF`, `LBBB`" in text and "Its probabilities are not calibrated" in text
    assert "9 of 21,799 (7 flat, 2 too-short)" in text and "48% female" in text
    assert "no label of ptb-xl" in text and "Fine-tuning read signals and labels" in text
    assert ModelCard(text).data["datasets"] == ["ptb-xl"]
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(example.replace('"out"', repr(str(tmp_path / "out"))), {})
    assert "tensor([[" in capsys.readouterr().out
    unknown = ECGClassifier.from_pretrained(ECGEncoder(**_settings(encoder)), labels=["AF"])._card_text("x")
    assert "What it saw in pretraining is not recorded" in unknown


def test_a_published_classifiers_card_says_what_it_was_fine_tuned_on(
    encoder: ECGEncoder, tmp_path: Path, validator: None
) -> None:
    encoder.card = card(encoder)
    ECGClassifier.from_pretrained(encoder, labels=["a", "b"]).save_pretrained(tmp_path / "out" / "classifier")
    write_finetuned(
        tmp_path / "out",
        shards=[
            {"folder": "/home/somebody/ludb", "database": "ludb", "licence": "ODC-By-1.0", "manifest_sha256": "ab"}
        ],
        examples={"train": {"records": 1200, "patients": 900, "a": 30, "b": 4}},
        splits_share_no_patient=True,
    )
    result = tmp_path / "out" / "result.json"
    prepare(
        tmp_path / "out" / "classifier", tmp_path / "ready", "me/ecg", results=read_results(result), fine_tuning=result
    )
    text = (tmp_path / "ready" / "README.md").read_text(encoding="utf-8")
    ModelCard(text).validate()
    assert ModelCard(text).data["datasets"] == ["ludb", "ptb-xl"]  # the encoder's, and its own
    assert "| train | 1,200 | 900 | 30 a, 4 b |" in text and "| ludb | ODC-By-1.0 | ab |" in text
    assert "| patients of two parts | none |" in text and "somebody" not in text
    again = with_fine_tuning(text, json.loads(result.read_text()))
    assert again == text and text.count("## Fine-tuning") == 1


def test_pretraining_databases_of_a_classifier_are_not_taken_from_its_fine_tuning(
    encoder: ECGEncoder, tmp_path: Path
) -> None:
    ECGClassifier.from_pretrained(encoder, labels=["a", "b"]).save_pretrained(tmp_path / "out" / "classifier")
    result = write_finetuned(tmp_path / "out") / "result.json"
    prepare(
        tmp_path / "out" / "classifier", tmp_path / "ready", "me/ecg", results=read_results(result), fine_tuning=result
    )
    text = (tmp_path / "ready" / "README.md").read_text(encoding="utf-8")
    assert "0.900 (0.850 to 0.950)" in text and "Pretraining read ptb-xl" not in text


def _settings(encoder: ECGEncoder) -> dict[str, Any]:
    return {"encoder": config.to_dict(encoder.encoder.config), "signal": config.to_dict(encoder.signal)}


def test_a_supervised_encoders_card_says_that_it_read_labels(encoder: ECGEncoder) -> None:
    provenance = Provenance(run=RUN | {"objective": {"kind": "supervised"}}, state={"step": 1, "shards": SHARDS})
    text = model_card("x", config.to_dict(encoder.encoder.config), encoder.signal, 1, provenance)
    assert "Pretraining read signals and labels of ptb-xl" in text
    assert "It was trained on labels" in text and "It was not trained to name" not in text


def test_compute_is_added_up_from_the_speeds_that_were_logged(encoder: ECGEncoder) -> None:
    # Two steps at 32 windows a second, then eight at 256: 64 windows a step.
    metrics = [
        {"step": 2, "records_per_s": 32.0, "tflops": 0.5, "memory_gb": 3.0},
        {"step": 10, "records_per_s": 256.0, "tflops": 2.0, "memory_gb": 2.0},
    ]
    provenance = Provenance(run=RUN, state={"step": 10, "shards": SHARDS, "world_size": 8}, metrics=metrics)
    text = model_card("x", config.to_dict(encoder.encoder.config), encoder.signal, 1, provenance)
    seconds = 2 * 64 / 32 + 8 * 64 / 256  # 4 and 2
    assert f"| time in training steps | {seconds:.1f} s |" in text
    assert f"| operations | {(4 * 0.5 + 2 * 2.0) * 1e12:.2e} floating-point" in text
    assert "| memory of a process, at most | 3.00 GB |" in text
    assert "| processes | 8 |" in text


def test_ages_are_the_percentiles_of_the_people(encoder: ECGEncoder) -> None:
    draw = np.random.default_rng(0)
    years = draw.integers(18, 90, size=999)
    counts = {str(year): int(count) for year, count in zip(*np.unique(years, return_counts=True), strict=True)}
    shard = SHARDS[0] | {"ages": counts, "sex": {}}
    provenance = Provenance(run=RUN, state={"step": 1, "shards": [shard]})
    text = model_card("x", config.to_dict(encoder.encoder.config), encoder.signal, 1, provenance)
    low, middle, high = np.quantile(years, [0.05, 0.5, 0.95], method="inverted_cdf")
    assert f"| ptb-xl | not stated | median {middle}, 90 % from {low} to {high} |" in text


def test_what_an_older_run_did_not_write_down_is_said_to_be_unknown(encoder: ECGEncoder) -> None:
    shard = {"database": "ptb-xl"}
    provenance = Provenance(run=RUN, state={"step": 1, "shards": [shard]})
    text = model_card("x", config.to_dict(encoder.encoder.config), encoder.signal, 1, provenance)
    assert "| ptb-xl | not stated | not stated | not stated | not stated | not stated |" in text
    assert "| processes | not stated |" in text and "| time in training steps | not stated |" in text
    assert "Not recorded: the model was saved without its run." in text  # the recipe
