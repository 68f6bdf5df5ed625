"""Reference tensors: a model that is what was saved passes its own test, and every fault of the chain fails it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ecgfm import ECGClassifier, ECGEncoder, ECGPreprocessor
from ecgfm.errors import ContractError
from ecgfm.hub import reference
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract


@pytest.fixture
def loaded(encoder: ECGEncoder, tmp_path: Path) -> ECGEncoder:
    encoder.save_pretrained(tmp_path / "encoder")
    return ECGEncoder.from_pretrained(tmp_path / "encoder", check=True)


def test_recordings_are_the_same_everywhere_and_keep_the_limb_leads_law() -> None:
    signal = dict(zip(LEADS[::-1], reference.recordings_RLT().transpose(1, 0, 2).astype(float), strict=True))
    np.testing.assert_allclose(signal["III"], signal["II"] - signal["I"], atol=1e-3)  # float32 of some 1000 uV
    np.testing.assert_allclose(signal["aVR"] + signal["aVL"] + signal["aVF"], 0, atol=1e-3)
    assert 500 < np.ptp(signal["II"]) < 10_000
    # A change here would change every published file.
    assert reference.recordings_RLT().shape == (2, 12, 750)
    assert np.array_equal(reference.recordings_RLT(), reference.recordings_RLT())


def test_a_loaded_model_is_the_same(loaded: ECGEncoder) -> None:
    found = loaded.self_test()
    assert found.difference <= 1e-6 < found.tolerance == reference.TOLERANCE
    loaded.train()
    loaded.self_test()
    assert loaded.training


def with_contract_(encoder: ECGEncoder, signal: SignalContract) -> None:
    encoder.signal = signal
    encoder.preprocessor = ECGPreprocessor(signal, patch_samples=encoder.encoder.config.patch_samples)


@pytest.mark.parametrize(
    "spoil_",
    [
        lambda e: with_contract_(e, replace(e.signal, std_mv=tuple(1.02 * std for std in e.signal.std_mv))),
        lambda e: with_contract_(e, replace(e.signal, leads=("II", "I", *LEADS[2:]))),
        lambda e: with_contract_(e, replace(e.signal, highpass_hz=0.5)),
        lambda e: with_contract_(e, replace(e.signal, rate_hz=480.0)),
        lambda e: with_contract_(e, replace(e.signal, clip=5.0)),
        lambda e: e.encoder.get_parameter("blocks.0.mlp.fc1.weight").data.mul_(1.02),
        lambda e: e.encoder.get_parameter("norm.weight").data.fill_(torch.nan),
    ],
    ids=["scale", "lead order", "filter", "rate", "clip", "weights", "nan"],
)
def test_every_fault_of_the_chain_is_found(loaded: ECGEncoder, spoil_: Callable[[ECGEncoder], None]) -> None:
    spoil_(loaded)
    with pytest.raises(ContractError, match="from its reference tensors"):
        loaded.self_test()


def test_weights_of_sixteen_bits_have_a_wider_tolerance(loaded: ECGEncoder) -> None:
    found = loaded.bfloat16().self_test()
    assert reference.TOLERANCE < found.difference < found.tolerance == reference.COARSE_TOLERANCE


def test_a_model_without_reference_says_so(encoder: ECGEncoder, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no reference\.safetensors"):
        encoder.self_test()
    encoder.save_pretrained(tmp_path)
    (tmp_path / "reference.safetensors").unlink()
    ECGEncoder.from_pretrained(tmp_path)  # encoders that were published without are still read
    with pytest.raises(ContractError, match=r"no reference\.safetensors"):
        ECGEncoder.from_pretrained(tmp_path, check=True)


def test_a_reference_of_something_else_is_refused(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "reference.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "features_RD": tensors["features_RD"][:, :3].contiguous()}, path)
    with pytest.raises(ContractError, match="does not give; they do not belong together"):
        ECGEncoder.from_pretrained(tmp_path, check=True)
    save_file({"features_RD": tensors["features_RD"]}, path)
    with pytest.raises(ContractError, match="does not hold recording_RLT"):
        ECGEncoder.from_pretrained(tmp_path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ContractError, match="not a safetensors file"):
        ECGEncoder.from_pretrained(tmp_path)


def test_a_classifier_checks_its_head_too(encoder: ECGEncoder, tmp_path: Path) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a", "b"], window_s=2.0)
    with torch.no_grad():
        model.head.get_parameter("out.weight").normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    again = ECGClassifier.from_pretrained(tmp_path, check=True)
    with torch.no_grad():
        again.head.get_parameter("out.bias").add_(0.1)
    with pytest.raises(ContractError, match="from its reference tensors"):
        again.self_test()
