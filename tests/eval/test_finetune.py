"""Fine-tuning runs of seconds: what they leave, going on after a stop, two processes, and that nothing looks ahead."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from ecgfm import config
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.errors import ConfigError
from ecgfm.eval.finetune import finetune, runs_of
from ecgfm.eval.finetune_config import Finetune, Input, Phase
from ecgfm.eval.finetune_data import Signals
from ecgfm.eval.finetune_result import write_summary
from ecgfm.eval.predictions import read_predictions
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards
from tests.eval.finetune_cases import settings_of, small_encoder, task_of_column, write_shards, write_table

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Finetune]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_challenge: Any) -> Path:
    """Return a folder with shards, a table, and two encoders."""
    folder = tmp_path_factory.mktemp("finetune")
    write_shards(folder, write_challenge)
    write_table(folder / "table.csv")
    small_encoder().save_pretrained(folder / "vit")
    small_encoder(ResNet1d.Config(width=16)).save_pretrained(folder / "resnet")
    return folder


@pytest.fixture
def make(place: Path, tmp_path: Path) -> Make:
    """Return a function that gives settings of a run into a folder below the test's."""

    def settings(name: str = "run", table: Path | None = None, encoder: str = "vit", **changes: Any) -> Finetune:
        where = table or place / "table.csv"
        return settings_of(place / "shards", where, place / encoder, tmp_path / name, **changes)

    return settings


@pytest.fixture(scope="module")
def straight(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetune:
    """Return the settings of a run of both phases that is finished."""
    out = tmp_path_factory.mktemp("straight") / "run"
    settings = settings_of(place / "shards", place / "table.csv", place / "vit", out, calibration="platt")
    assert finetune(settings)
    return settings


def arrays(run: Path) -> dict[str, NDArray[Any]]:
    with np.load(run / "predictions.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics without what depends on the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name not in ("time", "crops_per_s")} for each in found]


def test_a_label_that_can_be_learned_is_learned(straight: Finetune) -> None:
    result = json.loads((straight.out / "result.json").read_text())
    assert result["scores"]["test"]["macro"]["auc"]["value"] > 0.9
    assert result["examples"]["test"]["records"] == 8 and result["examples"]["train"]["records"] == 24
    assert result["splits_share_no_patient"] and result["refused"]["records"] == 0
    assert result["selected"]["by"] == "auc" and 1 <= result["selected"]["step"] <= result["selected"]["steps"] == 24
    losses = [line["loss"] for line in lines(straight.out) if "loss" in line]
    assert len(losses) == 24 and losses[-1] < losses[0]
    # A head of zeros says nothing: log 2, whatever the encoder gives.
    assert losses[0] == pytest.approx(np.log(2), rel=1e-6)


def test_scores_are_those_of_the_predictions_file(straight: Finetune) -> None:
    result = json.loads((straight.out / "result.json").read_text())
    found = read_predictions(straight.out)
    assert found.kind == "multilabel" and found.is_calibrated and found.labels == ("turned",)
    for part in ("validation", "test"):
        rows = found.rows(part)
        auc = roc_auc_score(found.target_NC[rows, 0], found.probability_NC[rows, 0])
        assert result["scores"][part]["macro"]["auc"]["value"] == pytest.approx(auc, abs=1e-12)
    assert set(found.split_N) == {"train", "validation", "test"} and len(found.record_N) == 40
    assert result["scores"]["test"]["thresholds"] == result["scores"]["validation"]["thresholds"]


def test_the_saved_classifier_gives_the_predictions_from_raw_signals(straight: Finetune) -> None:
    model = ECGClassifier.from_pretrained(straight.out / "classifier", check=True)
    found, shards = arrays(straight.out), Shards(straight.shards)
    raw = [shards.sample(int(index)).signal_LT[::-1] * 1000 for index in found["record_N"]]
    how: dict[str, Any] = {"rate_hz": 500.0, "leads": LEADS[::-1], "unit": "uV"}
    # Millivolt by another way, and other batches.
    np.testing.assert_allclose(model.predict_logits(raw, **how).numpy(), found["logit_NC"], atol=2e-4)
    np.testing.assert_allclose(model.predict_proba(raw, **how).numpy(), found["probability_NC"], atol=2e-4)
    np.testing.assert_allclose(model.encoder.embed(raw, **how).numpy(), found["feature_ND"], atol=2e-4)
    assert [str(name) for name in found["name_N"]] == [shards.sample(int(index)).record for index in found["record_N"]]
    chosen = model.predict(raw, **how)
    answered = found["probability_NC"][:, 0] >= np.asarray(model.thresholds)[0]
    assert [bool(each) for each in chosen] == answered.tolist()


def test_what_a_run_would_say_of_the_test_part_changes_nothing(straight: Finetune, make: Make, tmp_path: Path) -> None:
    other = make(table=write_table(tmp_path / "flipped.csv", flip="test"), calibration="platt")
    assert finetune(other)
    one, two = arrays(straight.out), arrays(other.out)
    for name in ("logit_NC", "probability_NC", "feature_ND"):
        assert np.array_equal(one[name], two[name]), name
    test = one["split_N"] == "test"
    assert np.array_equal(one["target_NC"][test], 1 - two["target_NC"][test])


def stop_after(asks: int) -> Callable[[], str | None]:
    """Return what stops a run when it is asked so often; it is after every step but the last of a phase."""
    left = iter([None] * (asks - 1))
    return lambda: next(left, "told")


@pytest.mark.parametrize("asks", [(3, 6), (12, 4)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(straight: Finetune, make: Make, asks: tuple[int, ...]) -> None:
    settings = make(calibration="platt")
    for number in asks:
        assert not finetune(settings, stop_after(number)) and not (settings.out / "result.json").exists()
    # What a kill leaves: lines beyond the checkpoint, and half of a checkpoint.
    with (settings.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 23, "loss": 9.0}\n{"st')
    (settings.out / "checkpoints" / "step-00000099.tmp").mkdir()
    assert finetune(settings)
    one, two = arrays(straight.out), arrays(settings.out)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert lines(straight.out) == lines(settings.out)
    weights = [load_file(run / "classifier" / "model.safetensors") for run in (straight.out, settings.out)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_a_run_with_other_settings_is_refused_and_begins_anew_on_request(straight: Finetune, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(straight.out, out)
    other = replace(straight, out=out, batch_size=4)
    with pytest.raises(ConfigError, match="batch_size was 8, is now 4"):
        finetune(other)
    write_table(tmp_path / "flipped.csv", flip="train")
    table = replace(straight.task, table=tmp_path / "flipped.csv")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="examples_sha256"):
        finetune(replace(straight, out=out, task=table))


def test_run_json_repeats_the_run(straight: Finetune, tmp_path: Path) -> None:
    found = config.from_dict(Finetune, json.loads((straight.out / "run.json").read_text()), "run")
    assert found == straight


def test_frozen_phases_leave_the_encoder_alone_and_the_last_weights_are_kept_on_request(
    make: Make, place: Path
) -> None:
    settings = make(method="probe", head="attentive", keep="last", frozen=Phase(steps=3, lr=1e-2))
    assert finetune(settings)
    encoder = ECGEncoder.from_pretrained(place / "vit")
    model = ECGClassifier.from_pretrained(settings.out / "classifier")
    assert weights_sha256(model.encoder) == weights_sha256(encoder)
    assert json.loads((settings.out / "result.json").read_text())["selected"]["step"] == 3


def test_gradual_unfreezing_with_batch_norm_begins_at_the_head(make: Make, place: Path) -> None:
    short = Phase(steps=2, lr=1e-3)
    settings = make(
        encoder="resnet",
        method="gradual",
        head="concat",
        keep="last",
        groups=2,
        frozen=short,
        gradual=short,
        full=short,
    )
    phases: list[str] = []

    def look() -> str | None:
        # The first ask is after step 1 of a phase of two steps.
        phases.append("asked")
        return None

    assert finetune(settings, look)
    trained = [line["phase"] for line in lines(settings.out) if "phase" in line]
    assert trained == ["frozen"] * 2 + ["gradual"] * 2 + ["full"] * 2 and len(phases) == 3
    first = ECGEncoder.from_pretrained(place / "resnet").state_dict()
    model = ECGClassifier.from_pretrained(settings.out / "classifier").encoder.state_dict()
    assert any(not first[name].equal(model[name]) for name in first)


def test_patience_ends_a_phase_and_the_rates_are_the_schedules(make: Make) -> None:
    phase = Phase(steps=100, lr=1e-9, patience=4)
    settings = make(method="probe", frozen=phase)
    assert finetune(settings)
    found = lines(settings.out)
    # Nothing gets better after the first validation, at step 4.
    assert found[-1]["step"] == 8 and all(line["lr"] == 1e-9 for line in found if "lr" in line)


@pytest.mark.parametrize(
    ("column", "targets", "figure"), [("group", "multiclass", "auc"), ("number", "regression", "r2")]
)
def test_classes_and_numbers(make: Make, place: Path, column: str, targets: str, figure: str) -> None:
    settings = make(task=task_of_column(place / "table.csv", column, targets), calibration="none")
    assert finetune(settings)
    result = json.loads((settings.out / "result.json").read_text())
    assert result["scores"]["test"]["macro"][figure]["value"] > 0.5
    found = arrays(settings.out)
    if targets == "regression":
        # Targets are 10 and 13: answers come in their unit.
        assert found["probability_NC"].min() > 9 and found["probability_NC"].max() < 14
    else:
        np.testing.assert_allclose(found["probability_NC"].sum(axis=1), 1.0, atol=1e-9)
        assert found["labels_C"].tolist() == ["a", "b"]


def test_the_nearest_records_are_a_probe(make: Make) -> None:
    settings = make(method="probe", head="knn", knn_neighbours=(3, 5))
    assert finetune(settings)
    result = json.loads((settings.out / "result.json").read_text())
    assert result["scores"]["test"]["macro"]["auc"]["value"] > 0.9 and result["selected"]["neighbours"] in (3, 5)
    assert not (settings.out / "classifier").exists() and len(arrays(settings.out)["feature_ND"]) == 40


def test_the_untrained_control_has_weights_of_its_own(make: Make, place: Path) -> None:
    short = Phase(steps=2, lr=1e-3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert finetune(make(name, method="probe", init="untrained", frozen=short, seed=seed, keep="last"))
    models = [ECGClassifier.from_pretrained(make(name).out / "classifier") for name in "abc"]
    hashes = [weights_sha256(model.encoder) for model in models]
    pretrained = weights_sha256(ECGEncoder.from_pretrained(place / "vit"))
    assert hashes[0] == hashes[1] and len({*hashes, pretrained}) == 3


def test_studies_change_the_input_and_leave_no_classifier(make: Make) -> None:
    short = Phase(steps=2, lr=1e-3)
    for name, study in (("leads", Input(leads=("2",))), ("band", Input(rate_hz=50.0)), ("fft", Input(spectrum="real"))):
        settings = make(name, method="probe", frozen=short, input=study)
        assert finetune(settings)
        assert not (settings.out / "classifier").exists() and (settings.out / "result.json").exists()
    native = make("native", method="direct", init="untrained", full=short, input=Input(rate_hz=100.0, native_rate=True))
    assert finetune(native)
    model = ECGClassifier.from_pretrained(native.out / "classifier")
    assert model.encoder.signal.rate_hz == 100.0 and model.encoder.signal.window_samples == 200


def test_a_lower_rate_takes_away_what_is_above_its_half(place: Path) -> None:
    encoder = ECGEncoder.from_pretrained(place / "vit")
    shards = Shards([place / "shards"])
    time_s = np.arange(2500) / 500
    for frequency, kept in ((20.0, 1.0), (80.0, 0.0)):
        wave = np.tile(np.sin(2 * np.pi * frequency * time_s), (12, 1))
        signals = Signals(shards, np.arange(1), encoder.preprocessor, Input(rate_hz=100.0), 0.0)
        sample = replace(shards.sample(0), counts_LT=np.rint(1000 * wave).astype(np.int16), microvolt_per_count=1.0)
        shards.sample = lambda index, sample=sample: sample  # type: ignore[method-assign,misc]
        found = signals[0]
        assert found.shape == (12, 2500)
        inner = slice(500, 2000)
        np.testing.assert_allclose(found[:, inner], kept * wave[:, inner], atol=0.02)


def test_runs_of_seeds_and_rates_are_summed_up_by_validation(make: Make, tmp_path: Path) -> None:
    settings = make(seeds=2, seed=5, lrs=(1e-3, 1e-2), method="direct")
    runs = runs_of(settings)
    assert [(run.seed, lr, run.full.lr) for run, lr in runs] == [
        (5, 1e-3, 1e-3), (5, 1e-2, 1e-2), (6, 1e-3, 1e-3), (6, 1e-2, 1e-2)
    ]  # fmt: skip
    assert len({run.out for run, _ in runs}) == 4 and all(not run.lrs and run.seeds == 1 for run, _ in runs)

    def result(seed: int, validation: float, test: float) -> dict[str, Any]:
        macro = {"auc": {"value": test}}
        return {"seed": seed, "selected": {"by": "auc", "value": validation}, "scores": {"test": {"macro": macro}}}

    worth = [(0.7, 0.6), (0.8, 0.5), (0.9, 0.7), (0.6, 0.99)]
    found = [(run.out, lr, result(run.seed, *each)) for (run, lr), each in zip(runs, worth, strict=True)]
    settings.out.mkdir()
    summary = write_summary(settings.out, found)
    # The better ones in validation: 0.5 and 0.7, whatever the others have in the test part.
    assert summary["test"]["auc"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.1 * 2**0.5),
        "values": [0.5, 0.7],
    }
    assert [run["chosen"] for run in summary["runs"]] == [False, True, True, False]


def test_mistakes_are_answered_before_the_time_is_spent(make: Make, place: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "none.csv")
    table.write_text("\n".join(line.replace(",1,", ",,").replace(",0,", ",,") if line.endswith("test") else line
                               for line in table.read_text().splitlines()))  # fmt: skip
    with pytest.raises(ConfigError, match="test part"):
        finetune(make(table=table))
    with pytest.raises(ConfigError, match="--encoder is missing"):
        finetune(replace(make(), encoder=""))
    with pytest.raises(ConfigError, match="shorter than a crop"):
        finetune(make(crop_s=60.0))
    with pytest.raises(ConfigError, match=r"--crop-s 0.01 is shorter"):
        finetune(make(crop_s=0.01))
    wrong = make("wrong", select="mae")
    with pytest.raises(ConfigError, match=r"--select mae has no value"):
        finetune(wrong)
    assert not wrong.out.exists()  # before the first step


def test_two_processes_give_what_one_gives(make: Make, tmp_path: Path) -> None:
    # Batch norm over all rows, a query over tokens, and windows that are put together from both.
    short = Phase(steps=3, lr=1e-3)
    settings = make("two", head="concat", frozen=short, full=short, keep="last", stride_s=1.0, validate_every=2)
    words = [
        *("--encoder", settings.encoder, "--shards", str(settings.shards[0]), "--out", str(settings.out)),
        *("--task", "table", "--task.table", str(settings.task.table), "--task.columns", "turned"),  # type: ignore[attr-defined]
        *("--task.split-column", "part", "--batch-size", "8", "--validate-every", "2", "--log-every", "1"),
        *("--frozen.steps", "3", "--frozen.lr", "1e-3", "--frozen.weight-decay", "0", "--full.steps", "3"),
        *("--full.lr", "1e-3", "--full.final-lr", "0", "--full.warmup-steps", "0", "--full.schedule", "constant"),
        *("--head", "concat", "--keep", "last", "--stride-s", "1.0", "--draws", "20", "--checkpoint-every", "5"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # What torchrun says to its processes; on a CPU `accelerate launch` starts one alone.
    ranks = [
        subprocess.Popen(
            [sys.executable, "recipes/finetune.py", *words],
            cwd=ROOT,
            env={**os.environ, **world, "PYTHONPATH": path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert "test records" in said[0] and "test records" not in said[1]
    assert json.loads((settings.out / "result.json").read_text())["processes"] == 2
    one = replace(settings, out=tmp_path / "one")
    assert finetune(one)
    two, alone = arrays(settings.out), arrays(one.out)
    # Sums of float32 in another order, over six steps of Adam, which divides by small second moments.
    np.testing.assert_allclose(two["logit_NC"], alone["logit_NC"], atol=2e-3)
    np.testing.assert_allclose(two["feature_ND"], alone["feature_ND"], atol=2e-3)
    losses = [[line["loss"] for line in lines(run) if "loss" in line] for run in (settings.out, one.out)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
