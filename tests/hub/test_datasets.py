"""Datasets: the same windows from arrays, WFDB files and shards, and every item a function of seed, epoch, record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ecgfm import ECGClassifier, ECGDataset, ECGEncoder, ECGPreprocessor
from ecgfm.errors import ConfigError, SignalError
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract

MadeUp = Callable[[int, int], NDArray[np.float64]]
HOW: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}


@pytest.fixture
def preprocessor(contract: SignalContract) -> ECGPreprocessor:
    return ECGPreprocessor(contract, patch_samples=50)


def test_items_are_windows_in_millivolt_and_targets(preprocessor: ECGPreprocessor, made_up: MadeUp) -> None:
    signals = [made_up(samples, seed) for seed, samples in enumerate((5000, 7000, 5001))]
    dataset = ECGDataset.from_arrays(
        [1e3 * signal for signal in signals],
        **{**HOW, "unit": "uV"},
        preprocessor=preprocessor,
        targets=[1, 0, np.nan],
        crop="centre",
    )
    assert len(dataset) == 3
    for number, start in enumerate((0, 1000, 0)):
        window_LT, target_C = dataset[number]
        np.testing.assert_allclose(window_LT, signals[number][:, start : start + 5000], atol=1e-6)  # float32
        assert window_LT.dtype == target_C.dtype == torch.float32
        assert target_C.shape == (1,)
    assert torch.isnan(dataset[-1][1])
    with pytest.raises(IndexError):
        dataset[3]


def test_random_windows_depend_on_seed_epoch_and_record_alone(preprocessor: ECGPreprocessor, made_up: MadeUp) -> None:
    signals = [made_up(6000, seed) for seed in range(8)]

    def items(seed: int, epoch: int, workers: int = 0, keep: bool = False) -> torch.Tensor:
        dataset = ECGDataset.from_arrays(signals, **HOW, preprocessor=preprocessor, window_s=2, seed=seed, keep=keep)
        dataset.set_epoch(epoch)
        return torch.cat(list(DataLoader(dataset, batch_size=3, num_workers=workers)))

    first = items(0, 0)
    assert first.shape == (8, 12, 1000)
    assert torch.equal(items(0, 0), first) and torch.equal(items(0, 0, keep=True), first)
    assert torch.equal(items(0, 0, workers=2), first)
    assert all(not torch.equal(one, other) for one, other in zip(items(0, 1), first, strict=True))
    assert not torch.equal(items(1, 0), first)


def test_windows_of_a_dataset_are_what_a_classifier_takes(encoder: ECGEncoder, made_up: MadeUp) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"])
    dataset = ECGDataset.from_arrays(np.stack([made_up(5000, 1)] * 2), **HOW, preprocessor=encoder.preprocessor)
    assert model(next(iter(DataLoader(dataset, batch_size=2)))).shape == (2, 1)
    windows_BLT, _ = encoder.preprocessor.windows(made_up(5000, 1), **HOW)
    assert torch.equal(dataset[0], torch.from_numpy(windows_BLT[0]))


def test_shards_give_their_signals_and_labels(preprocessor: ECGPreprocessor, training_shards: Path) -> None:
    shards = Shards([training_shards])
    label = "snomed:426783006"
    scheme, _, code = label.partition(":")
    assert code in shards.about(3)["labels"][scheme]
    dataset = ECGDataset.from_shards(
        training_shards, preprocessor=preprocessor, index=[3, 11], labels=[label], crop="start", keep=True
    )
    window_LT, target_C = dataset[1]
    np.testing.assert_allclose(window_LT, shards.sample(11).signal_LT[:, :5000], atol=1e-6)  # float32
    assert target_C.tolist() == [1.0]
    assert dataset.names == (shards.name(3), shards.name(11))
    assert torch.equal(dataset[1][0], window_LT)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader))[0][1], window_LT)


def test_labels_are_unknown_where_a_scheme_is_silent() -> None:
    from ecgfm.hub.datasets import _labelled

    known = [{"a": ["x"]}, {"a": ["y", "z"]}, {"b": ["x"]}]
    np.testing.assert_array_equal(_labelled(known, ["a:x", "a:z"]), [[1, 0], [0, 1], [np.nan, np.nan]])
    with pytest.raises(ConfigError, match=r"no record has the label 'a:q'.*of a, b"):
        _labelled(known, ["a:q"])


def test_wfdb_folders_are_read_by_their_headers(preprocessor: ECGPreprocessor, ecg_data: Path) -> None:
    pytest.importorskip("ecgfm.files")
    wfdb = pytest.importorskip("wfdb")
    paths = [ecg_data / "ludb" / "data" / name for name in ("1", "2")]
    if not paths[0].with_suffix(".hea").is_file():
        paths = sorted((ecg_data / "ludb").rglob("*.hea"))[:2]
    targets = {path.stem: [float(number)] for number, path in enumerate(paths)}
    dataset = ECGDataset.from_wfdb(paths, preprocessor=preprocessor, targets={**targets, "other": [9.0]}, crop="start")
    for number, path in enumerate(paths):
        record = wfdb.rdrecord(str(path.with_suffix("")))
        names = [name.lower() for name in record.sig_name]
        wanted = np.stack([record.p_signal[:5000, names.index(lead.lower())] for lead in LEADS])
        window_LT, target_C = dataset[number]
        np.testing.assert_allclose(window_LT, wanted, atol=1e-6)  # float32
        assert target_C.tolist() == [number]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": [1, 2, 3]}, ConfigError, r"shape \(3, 1\); 2 records"),
        ({"crop": "left"}, ConfigError, "none of random, centre"),
        ({"window_s": 0.01}, ConfigError, "at least 50"),
        ({"leads": LEADS[:3]}, SignalError, "3 lead names"),
    ],
)
def test_mistakes_are_refused_at_once(
    preprocessor: ECGPreprocessor, made_up: MadeUp, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ECGDataset.from_arrays(np.stack([made_up(1000, 0)] * 2), preprocessor=preprocessor, **{**HOW, **options})


def test_a_record_that_is_no_ecg_or_too_short_is_named(preprocessor: ECGPreprocessor, made_up: MadeUp) -> None:
    signals = [made_up(5000, 0), 1e3 * made_up(5000, 1), made_up(900, 2)]
    dataset = ECGDataset.from_arrays(signals, **HOW, preprocessor=preprocessor)
    with pytest.raises(SignalError, match=r"record 1 of 3: .*unit='uV' would fit"):
        dataset[1]
    with pytest.raises(SignalError, match=r"record 2 of 3 has 1\.8 s and a window 10 s"):
        dataset[2]


def test_folders_and_records_that_are_not_there_are_refused(preprocessor: ECGPreprocessor, tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="holds no WFDB header"):
        ECGDataset.from_wfdb(tmp_path, preprocessor=preprocessor)
    with pytest.raises(SignalError, match=r"a\.hea does not exist"):
        ECGDataset.from_wfdb([tmp_path / "a"], preprocessor=preprocessor)
    (tmp_path / "b.hea").touch()
    with pytest.raises(ConfigError, match="1 records have no target, the first is b"):
        ECGDataset.from_wfdb(tmp_path, preprocessor=preprocessor, targets={"c": 1.0})


def test_targets_of_a_table_go_by_its_index(contract: SignalContract, ecg_data: Path) -> None:
    pandas = pytest.importorskip("pandas")
    make = ECGPreprocessor(contract)
    paths = [ecg_data / "ludb" / "data" / name for name in ("10", "2", "1")]
    column = pandas.Series({1: 1.0, 2: 2.0, 10: 10.0, 11: 11.0})
    for targets in (column, column.to_dict(), column.to_frame()):
        data = ECGDataset.from_wfdb(paths, preprocessor=make, targets=targets)
        assert data.target_NC is not None and data.target_NC[:, 0].tolist() == [10.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match="its index"):
        ECGDataset.from_wfdb(paths, preprocessor=make, targets=column.reset_index(drop=True)[:3])


def test_targets_that_are_no_numbers_and_other_preprocessors_are_refused(contract: SignalContract) -> None:
    how: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}
    with pytest.raises(ConfigError, match="must be numbers"):
        ECGDataset.from_arrays(np.ones((1, 12, 5000)), **how, preprocessor=ECGPreprocessor(contract), targets=["AF"])
    with pytest.raises(ConfigError, match=r"give encoder\.preprocessor"):
        ECGDataset.from_arrays(np.ones((1, 12, 5000)), **how, preprocessor="out/encoder")  # type: ignore[arg-type]
