"""The probe during a run: what tools/probe.py would say, of records that the run does not train on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.data.validation import hold_out_
from ecgfm.databases.base import load_database
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError, ShardError
from ecgfm.eval.labels import read_labels, target
from ecgfm.eval.probe import embed_shards, probe
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.contract import SignalContract
from ecgfm.train.plan import check_data
from ecgfm.train.probe_hook import ProbeConfig, ProbeHook
from ecgfm.train.run import Data, Run

LABEL = "snomed:164889003"
RECORDS = 60
ENCODER = ViT.Config(width=16, patch_samples=100, depth=1, num_heads=2)
CONTRACT = SignalContract(rate_hz=500.0, mean_mv=(0.0,) * 12, std_mv=(0.3,) * 12, window_samples=5000)


def beats(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return ten seconds of beats, of a shape of its own for each record."""
    time_s = np.arange(5000) / 500
    beat = np.exp(-(((time_s * rng.uniform(0.8, 2.0)) % 1 - 0.5) ** 2) / 0.001)
    return np.asarray(rng.uniform(-700, 700, (12, 1)) * beat + rng.normal(0, 50, (12, 5000)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_challenge: Callable[..., Path]) -> Path:
    """Return shards of 60 records, every third with a label that is all but invisible."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(5)
    for number in range(RECORDS):
        has = number % 3 == 0
        signal = beats(rng) + 60 * has * np.sin(np.arange(5000) / 10)
        comments = ("# Age: 50", "# Sex: Male", f"# Dx: {'164889003' if has else '426783006'}")
        write_challenge(root / "archive", f"E{number + 501:05d}", np.rint(signal).astype(np.int16), comments=comments)
    convert(load_database("georgia"), root / "archive", root / "shards", Options(records_per_shard=20))
    return root / "shards"


def hook(folder: Path, training: Path, share: float = 0.0, **settings: Any) -> ProbeHook:
    shards = Shards([training])
    hold_out_(shards, share)
    named = ProbeConfig(shards=folder, label=settings.pop("label", LABEL), **settings)
    return ProbeHook(named, shards, config.to_dict(ENCODER), CONTRACT)


class Held:
    """As much of an engine as a probe asks for."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.objective = build_objective(JEPA.Config(), ENCODER, 5000, 500.0)
        self.world: Any = self
        self.rank = 0
        self.device = torch.device("cpu")

    def collect(self) -> dict[str, torch.Tensor]:
        """Return the weights under their names in a checkpoint."""
        return {f"model.{name}": tensor.clone() for name, tensor in self.objective.state_dict().items()}

    def agree(self, error: Exception | None, *, patient: bool = False) -> None:
        """Raise this rank's error."""
        if error:
            raise error

    def from_first(self, value: Any) -> Any:
        """Return this rank's value."""
        return value


def test_the_figures_are_those_of_the_probe_of_an_exported_encoder(folder: Path, training_shards: Path) -> None:
    engine: Any = Held()
    state = {name: tensor.clone() for name, tensor in engine.objective.state_dict().items()}
    generator = torch.get_rng_state()
    here = hook(folder, training_shards)
    assert len(here.index_N) == RECORDS
    found = here.figures(engine)
    assert found == here.figures(engine)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, state[name]) for name, tensor in engine.objective.state_dict().items())
    encoder = ECGEncoder(encoder=config.to_dict(ENCODER), signal=config.to_dict(CONTRACT)).eval()
    encoder.encoder.load_state_dict(engine.objective.published().state_dict())
    shards = Shards([folder])
    features = embed_shards(encoder, shards)
    wanted = probe(features, [features], target(read_labels(shards), LABEL, 5), folds=5, seed=0).pretrained
    assert 0.05 < wanted.value < 0.95  # not all right, and so a figure that says something
    assert found == {"probe_auc": wanted.value, "probe_auc_low": wanted.low, "probe_auc_high": wanted.high}


def test_fewer_records_are_half_with_the_label_and_the_same_ones_each_time(folder: Path, training_shards: Path) -> None:
    here, again = (hook(folder, training_shards, records=50) for _ in range(2))
    assert here.index_N.tolist() == again.index_N.tolist()
    assert len(here.index_N) == 50
    assert here.target.positive_N.sum() == RECORDS // 3
    labels = [Shards([folder]).sample(int(index)).labels["snomed"] for index in here.index_N]
    assert [("164889003" in codes) for codes in labels] == here.target.positive_N.tolist()


def test_records_that_are_trained_on_are_refused_and_those_held_out_of_them_are_not(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"is trained on: .* --data\.validation-share"):
        hook(folder, folder)
    here = hook(folder, folder, share=0.6)
    shards = Shards([folder])
    hold_out_(shards, 0.6)
    assert set(shards.split_of[here.index_N].tolist()) == {"val"}


def test_a_copy_of_a_probes_record_under_another_name_stops_the_run(
    folder: Path, tmp_path: Path, write_challenge: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(9)
    for number in range(3):
        write_challenge(tmp_path / "archive", f"E{number + 1:05d}", np.rint(beats(rng)).astype(np.int16))
    for ending in ("hea", "mat"):
        copy = (folder.parent / "archive" / f"E00501.{ending}").read_bytes()
        (tmp_path / "archive" / f"E00009.{ending}").write_bytes(copy.replace(b"E00501", b"E00009"))
    convert(load_database("georgia"), tmp_path / "archive", tmp_path / "shards", Options())
    run = Run(
        encoder=ENCODER,
        objective=JEPA.Config(),
        data=Data(shards=(str(tmp_path / "shards"),)),
        probe=ProbeConfig(shards=folder, label=LABEL),
    )
    fault = check_data(run)[1]
    assert isinstance(fault, ShardError) and "E00009" in str(fault)
    assert check_data(replace(run, probe=ProbeConfig()))[1] is None


def test_test_records_are_never_looked_at(folder: Path, training_shards: Path) -> None:
    from ecgfm.train.probe_hook import _allowed

    shards, training = Shards([folder]), Shards([training_shards])
    shards.split_of = np.asarray(["train", "val", "test"] * (RECORDS // 3))
    assert set(shards.split_of[_allowed(shards, training)].tolist()) == {"val"}
    shards.split_of = np.asarray(["train", "test"] * (RECORDS // 2))
    with pytest.raises(ConfigError, match="a test split, which is not looked at"):
        _allowed(shards, training)


def test_a_label_that_nobody_has_is_refused_with_the_near_ones(folder: Path, training_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"--probe\.label snomed:164889004: no record has it; did you mean"):
        hook(folder, training_shards, label="snomed:164889004")


def test_without_scikit_learn_the_missing_package_is_named(
    folder: Path, training_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install \"ecgfm\[eval\]\""):
        hook(folder, training_shards)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": Path("x")}, "belong together"),
        ({"label": "a:b"}, "belong together"),
        ({"every": 0}, "at least 1"),
        ({"records": 10}, "at least 50"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProbeConfig(**settings)
