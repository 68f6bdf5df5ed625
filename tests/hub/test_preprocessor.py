"""The signal contract alone: the same windows as the encoder takes, with no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGClassifier, ECGEncoder, ECGPreprocessor
from ecgfm.errors import ConfigError, ContractError, LeadError, SignalError
from ecgfm.leads import LEADS
from ecgfm.signal.contract import LEAST_STD_MV, SignalContract

MadeUp = Callable[[int, int], NDArray[np.float64]]
HOW: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}


def test_its_windows_give_the_features_of_embed(encoder: ECGEncoder, made_up: MadeUp) -> None:
    signals = [made_up(12_000, 1), made_up(5000, 2)]
    order = np.random.default_rng(1).permutation(12)
    how: dict[str, Any] = {"rate_hz": 500, "leads": [LEADS[lead] for lead in order], "unit": "uV"}
    mixed = [1e3 * signal[order] for signal in signals]
    windows_BLT, row_B = encoder.preprocessor.windows(mixed, **how)
    assert windows_BLT.shape == (4, 12, 5000) and windows_BLT.dtype == np.float32
    assert row_B.tolist() == [0, 0, 0, 1]
    with torch.no_grad():
        features_BD = encoder.features(torch.from_numpy(windows_BLT))
    wanted = torch.stack([features_BD[:3].mean(dim=0), features_BD[3]])
    torch.testing.assert_close(encoder.embed(mixed, **how), wanted, atol=2e-5, rtol=2e-5)  # as in test_encoder


def test_records_keep_their_length_and_come_in_millivolt(encoder: ECGEncoder, made_up: MadeUp) -> None:
    ready = encoder.preprocessor([made_up(5003, 1) * 1e3, made_up(700, 2) * 1e3], **{**HOW, "unit": "uV"})
    assert [record.shape for record in ready] == [(12, 5003), (12, 700)]
    np.testing.assert_allclose(ready[0], made_up(5003, 1), atol=1e-6)  # float32 of some mV


@pytest.mark.parametrize("stride", [None, 1, 70, 250, 10_000])
@pytest.mark.parametrize("samples", [300, 500, 501, 999, 1000, 5000, 5030])
def test_windows_lie_in_the_record_and_miss_nothing_that_their_stride_allows(
    contract: SignalContract, samples: int, stride: int | None
) -> None:
    places = ECGPreprocessor(contract, patch_samples=50).places(samples, length=520, stride=stride)
    length = 500 if samples >= 500 else samples // 50 * 50
    assert all(start >= 0 and stop <= samples and stop - start == length for start, stop in places)
    assert places == sorted(set(places))
    seen = np.zeros(samples, dtype=bool)
    for start, stop in places:
        seen[start:stop] = True
    if samples >= 500 and (stride is None or stride <= 500):
        assert seen.all()
    if stride is not None and samples >= 500:
        assert {start for start, _ in places} == {*range(0, samples - 499, stride), samples - 500}


def test_the_seven_crops_of_the_jepa_paper(contract: SignalContract) -> None:
    starts = [start for start, _ in ECGPreprocessor(contract, patch_samples=25).places(5000, length=1250, stride=625)]
    assert starts == [0, 625, 1250, 1875, 2500, 3125, 3750]


@pytest.mark.parametrize("scale", ["fixed", "record"])
def test_normalising_is_what_the_contract_says_lead_by_lead(contract: SignalContract, scale: Any) -> None:
    contract = replace(contract, scale=scale)
    signal_BLT = np.random.default_rng(0).normal(0.1, 1.5, (2, 12, 40))
    signal_BLT[1, 3] = 0.7 + 1e-4 * np.arange(40)  # a flat lead, whose noise must not be blown up
    got = ECGPreprocessor(contract).normalise(torch.from_numpy(signal_BLT))
    for row in range(2):
        for lead in range(12):
            values = signal_BLT[row, lead].tolist()
            mean, std = contract.mean_mv[lead], contract.std_mv[lead]
            if scale == "record":
                mean = sum(values) / 40
                std = max((sum((value - mean) ** 2 for value in values) / 40) ** 0.5, LEAST_STD_MV)
            wanted = [min(max((value - mean) / std, -contract.clip), contract.clip) for value in values]
            # float32 of values up to 3, and of 0.7 mV that stand 0.005 mV apart
            np.testing.assert_allclose(got[row, lead].numpy(), wanted, atol=2e-4 if (row, lead) == (1, 3) else 2e-6)


def test_it_is_part_of_a_published_model_and_needs_no_weights(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    ECGClassifier.from_pretrained(encoder, labels=["AF"]).save_pretrained(tmp_path / "classifier")
    for name in ("encoder", "classifier"):
        (tmp_path / name / "model.safetensors").unlink()
        again = ECGPreprocessor.from_pretrained(tmp_path / name)
        assert (again.contract, again.patch_samples) == (encoder.signal, 50)


def test_it_is_saved_and_loaded_alone(contract: SignalContract, tmp_path: Path) -> None:
    contract = replace(contract, highpass_hz=0.5, leads=LEADS[::-1])
    ECGPreprocessor(contract, patch_samples=25).save_pretrained(tmp_path / "alone")
    again = ECGPreprocessor.from_pretrained(tmp_path / "alone")
    assert (again.contract, again.patch_samples) == (contract, 25)
    text = (tmp_path / "alone" / "preprocessor_config.json").read_text()
    (tmp_path / "alone" / "preprocessor_config.json").write_text(text.replace('"patch_samples": 25', '"patch": 25'))
    with pytest.raises(ContractError, match="does not say patch_samples"):
        ECGPreprocessor.from_pretrained(tmp_path / "alone")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": 20}, ConfigError, "at least 50"),
        ({"length": 2.5}, ConfigError, "give samples at 500 Hz"),
        ({"stride": 0}, ConfigError, "at least one sample"),
        ({"leads": LEADS[:11]}, SignalError, "11 lead names"),
        ({"leads": "I II"}, LeadError, "list of names"),
    ],
)
def test_what_cannot_work_is_refused(
    encoder: ECGEncoder, ecg: NDArray[np.float64], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.preprocessor.windows(ecg, **{**HOW, **options})


def test_windows_of_different_lengths_make_no_array(encoder: ECGEncoder, made_up: MadeUp) -> None:
    with pytest.raises(SignalError, match=r"700 to 5000 samples.*give length=700"):
        encoder.preprocessor.windows([made_up(5000, 1), made_up(710, 2)], **HOW)


def test_a_contract_with_an_unknown_lead_is_refused(contract: SignalContract) -> None:
    with pytest.raises(ContractError, match="lead 'V7'"):
        ECGPreprocessor(replace(contract, leads=("V7", *LEADS[1:])))
