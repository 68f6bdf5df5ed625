"""The linear probe: no patient on two sides, honest on noise, and it finds what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGEncoder, config
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.eval.labels import Target
from ecgfm.eval.probe import embed_shards, out_of_fold_scores, patient_folds, probe, untrained
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract


def cohort(seed: int, patients: int = 40, records_each: int = 3) -> tuple[NDArray[np.bool_], list[str]]:
    """Return answers (the same for a patient's records) and patients, in random order."""
    draw = np.random.default_rng(seed)
    ill = draw.random(patients) < 0.4
    order = draw.permutation(patients * records_each)
    who = np.repeat(np.arange(patients), records_each)[order]
    return ill[who], [f"p{number}" for number in who]


@pytest.mark.parametrize("seed", range(4))
def test_a_patient_is_never_on_both_sides_and_every_record_is_tested_once(seed: int) -> None:
    positive, patients = cohort(seed)
    names = np.asarray(patients)
    pairs = patient_folds(positive, patients, 5, seed)
    assert sorted(np.concatenate([test for _, test in pairs])) == list(range(len(positive)))
    for train, test in pairs:
        assert not set(names[train]) & set(names[test])
        assert positive[test].any() and not positive[test].all()


def test_features_that_only_tell_patients_apart_are_worth_nothing() -> None:
    # With folds over records this probe would reach 1.0: each patient has features of its own.
    # One cohort's value is +-0.12, so the mean of twelve is +-0.036.
    values = []
    for seed in range(12):
        positive, patients = cohort(seed)
        names = sorted(set(patients))  # a set's own order of strings is another one in every process
        own = {name: np.random.default_rng([seed, number]).normal(size=30) for number, name in enumerate(names)}
        features = np.stack([own[name] for name in patients]).astype(np.float32)
        scores = out_of_fold_scores(features, positive, patients, 3, seed)
        values.append(scores[positive].mean() - scores[~positive].mean())
    assert abs(np.mean(values)) < 0.1


def test_a_planted_label_is_found_and_told_from_noise() -> None:
    positive, patients = cohort(3, patients=60, records_each=2)
    draw = np.random.default_rng(0)
    noise = [draw.normal(size=(len(positive), 20)).astype(np.float32) for _ in range(2)]
    planted = noise[0].copy()
    planted[:, 4] += 3.0 * positive
    index = np.arange(len(positive))
    target = Target(label="a:b", index_N=index, positive_N=positive, patients=tuple(patients), unknown=0)
    result = probe(planted, noise[1:], target, folds=2, seed=1, draws=300)
    assert result.pretrained.value > 0.85 and result.pretrained.low > 0.75
    assert 0.3 < result.untrained.value < 0.7
    assert result.difference.value == pytest.approx(result.pretrained.value - result.untrained.value)
    assert result.difference.low > 0.1
    again = probe(planted, noise[1:], target, folds=2, seed=1, draws=300)
    assert config.to_dict(again) == config.to_dict(result)
    assert json.loads(json.dumps(config.to_dict(result)))["patients"] == 60


def test_a_fold_with_one_class_is_refused() -> None:
    positive = np.asarray([True, False, False, False] * 2)
    with pytest.raises(ConfigError, match="fewer --folds"):
        patient_folds(positive, ["a", "b", "c", "d"] * 2, 2, 0)


@pytest.fixture
def encoder() -> ECGEncoder:
    contract = SignalContract(rate_hz=500.0, mean_mv=(0.0,) * 12, std_mv=(0.2,) * 12, window_samples=5000)
    settings = ViT.Config(width=16, depth=1, num_heads=2, patch_samples=100)
    return ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract)).eval()


def test_untrained_weights_depend_on_the_seed_alone_and_move_no_generator(encoder: ECGEncoder) -> None:
    before = torch.get_rng_state()
    first, same, other = (untrained(encoder, seed).encoder.state_dict()["patch.weight"] for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert not torch.equal(first, encoder.encoder.state_dict()["patch.weight"])


def test_features_of_shards_are_those_of_each_record(ecg_data: Path, tmp_path: Path, encoder: ECGEncoder) -> None:
    from ecgfm.databases.base import load_database
    from ecgfm.shards.writer import Options, convert

    source = ecg_data / "challenge-2021" / "training" / "georgia"
    convert(load_database("georgia"), source, tmp_path, Options(records_per_shard=4))
    shards = Shards([tmp_path])
    assert len(shards) >= 8
    got = embed_shards(encoder, shards)
    for index in range(len(shards)):
        signal = shards.sample(index).signal_LT
        wanted = encoder.embed(signal, rate_hz=500, leads=LEADS, unit="mV")[0].numpy()
        np.testing.assert_allclose(got[index], wanted, atol=1e-5)
