"""A published encoder: the same features however the recording comes, and refusals that say the fix."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ecgfm import ECGEncoder
from ecgfm.errors import ContractError, LeadError, SignalError
from ecgfm.leads import LEADS

MadeUp = Callable[[int, int], NDArray[np.float64]]
HOW: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}


def slow_features(encoder: ECGEncoder, signal_LT: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalise in float64, sample by sample of each lead, and run the bare encoder on one window."""
    contract = encoder.signal
    rows = []
    for lead in range(12):
        row = [(value - contract.mean_mv[lead]) / contract.std_mv[lead] for value in signal_LT[lead].tolist()]
        rows.append([min(max(value, -contract.clip), contract.clip) for value in row])
    with torch.no_grad():
        tokens = encoder.encoder(torch.tensor([rows], dtype=torch.float32))
        return encoder.encoder.pool(tokens)[0].double().numpy()


def close(got: torch.Tensor, wanted: Any) -> None:
    # float32 through two blocks; the order of summation differs with the batch.
    torch.testing.assert_close(got.double(), torch.as_tensor(wanted).double(), atol=2e-5, rtol=2e-5)


def test_features_are_those_of_a_signal_normalised_by_hand(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    ecg[0, 100] = 50.0  # beyond the clip
    close(encoder.embed(ecg, **HOW)[0], slow_features(encoder, ecg))


def test_lead_order_and_case_do_not_matter(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    order = np.random.default_rng(1).permutation(12)
    names = [LEADS[index].upper() if index % 2 else LEADS[index].lower() for index in order]
    wanted = encoder.embed(ecg, **HOW)
    torch.testing.assert_close(encoder.embed(ecg[order], rate_hz=500, leads=names, unit="mV"), wanted, atol=0, rtol=0)


def test_leads_that_i_and_ii_give_may_be_left_out(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    kept = [0, 1, 6, 7, 8, 9, 10, 11]
    got = encoder.embed(ecg[kept], rate_hz=500, leads=[LEADS[index] for index in kept], unit="mV")
    close(got, encoder.embed(ecg, **HOW))


@pytest.mark.parametrize(("unit", "factor"), [("uV", 1e3), ("V", 1e-3)])
def test_unit_does_not_matter(encoder: ECGEncoder, ecg: NDArray[np.float64], unit: str, factor: float) -> None:
    close(encoder.embed(ecg * factor, rate_hz=500, leads=LEADS, unit=unit), encoder.embed(ecg, **HOW))


def test_dtype_and_framework_do_not_matter(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    counts = np.rint(ecg * 1e3).astype(np.int16)
    wanted = encoder.embed(counts / 1e3, **HOW)
    for signal in (counts, torch.from_numpy(counts), counts.astype(np.float32), np.asfortranarray(counts)):
        close(encoder.embed(signal, rate_hz=500, leads=LEADS, unit="uV"), wanted)


def test_a_257_hz_shuffled_microvolt_copy_of_a_real_record_gives_its_features(
    encoder: ECGEncoder, real_ecgs: list[NDArray[np.float64]]
) -> None:
    # What lies above 128 Hz cannot survive 257 Hz, so it is taken out of the original first.
    low_pass = scipy.signal.butter(8, 90, fs=500, output="sos")
    originals = [scipy.signal.sosfiltfilt(low_pass, signal, axis=1) for signal in real_ecgs]
    order = np.random.default_rng(2).permutation(12)
    slower = scipy.signal.resample_poly(originals[0], 257, 500, axis=1, padtype="line")[order] * 1e3
    names = [LEADS[index].lower() for index in order]
    got = encoder.embed(slower, rate_hz=257, leads=names, unit="uV")
    same, other = encoder.embed(originals, **HOW)
    assert torch.dist(got[0], same) < 0.02 * torch.dist(same, other)


def test_a_batch_a_list_and_singles_agree(encoder: ECGEncoder, made_up: MadeUp) -> None:
    batch = np.stack([made_up(5000, seed) for seed in range(5)])
    singles = torch.cat([encoder.embed(signal, **HOW) for signal in batch])
    close(encoder.embed(batch, **HOW, batch_size=2), singles)
    close(encoder.embed(list(batch), **HOW), singles)
    close(encoder.embed(torch.from_numpy(batch), **HOW, batch_size=3), singles)
    assert torch.dist(singles[0], singles[1]) > 0.01


def test_a_list_of_several_lengths_keeps_its_order(encoder: ECGEncoder, made_up: MadeUp) -> None:
    signals = [made_up(samples, seed) for seed, samples in enumerate((5000, 12_345, 700, 5000, 5001, 700))]
    singles = torch.cat([encoder.embed(signal, **HOW) for signal in signals])
    close(encoder.embed(signals, **HOW, batch_size=2), singles)


def test_a_long_record_is_the_mean_over_evenly_spaced_windows(encoder: ECGEncoder, made_up: MadeUp) -> None:
    signal = made_up(12_000, 4)
    starts = [0, 3500, 7000]  # three windows of 5000 over 12,000 samples
    wanted = np.mean([slow_features(encoder, signal[:, start : start + 5000]) for start in starts], axis=0)
    close(encoder.embed(signal, **HOW)[0], wanted)


def test_a_short_record_is_taken_as_it_is_in_whole_patches(encoder: ECGEncoder, made_up: MadeUp) -> None:
    signal = made_up(777, 5)
    close(encoder.embed(signal, **HOW)[0], slow_features(encoder, signal[:, :750]))


def test_features_are_differentiable_and_those_of_embed(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    signal_BLT = torch.tensor(ecg[None], dtype=torch.float32, requires_grad=True)
    features = encoder.features(signal_BLT)
    close(features.detach(), encoder.embed(ecg, **HOW))
    torch.autograd.backward(features.sum())
    assert signal_BLT.grad is not None and signal_BLT.grad.abs().max() > 0
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_casting_to_bfloat16_leaves_the_scale_exact(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    wanted = encoder.normalise(torch.tensor(ecg[None]))
    torch.testing.assert_close(encoder.bfloat16().normalise(torch.tensor(ecg[None])), wanted.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"leads": LEADS[:11]}, SignalError, "11 lead names"),
        ({"leads": "I,II,III"}, LeadError, "list of names"),
        ({"leads": []}, LeadError, "empty"),
        ({"leads": ["foo", *LEADS[1:]]}, LeadError, "missing I "),
        ({"leads": ["V1", *LEADS[1:]]}, LeadError, "named twice"),
        ({"unit": "mm"}, SignalError, "give one of mV, uV, V"),
        ({"unit": "uV"}, SignalError, "unit='mV' would fit"),
        ({"unit": "V"}, SignalError, "unit='mV' would fit"),
        ({"rate_hz": 0.5}, SignalError, "samples per second"),
        ({"rate_hz": float("nan")}, SignalError, "out of range"),
        ({"rate_hz": 500_000}, SignalError, "out of range"),
    ],
)
def test_wrong_words_are_refused(
    encoder: ECGEncoder, ecg: NDArray[np.float64], change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.embed(ecg, **{**HOW, **change})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.T, "looks transposed"),
        (lambda x: np.stack([x] * 3, axis=1), "swapaxes\\(0, 1\\)"),
        (lambda x: x[None][:0], "batch is empty"),
        (lambda x: [], "list of signals is empty"),
        (lambda x: list(x), "leads or records"),
        (lambda x: x[0], "expected \\(leads, samples\\)"),
        (lambda x: x[:, :400], "0.8 s long"),
        (lambda x: x[:, :0], "0 s long"),
        (lambda x: np.zeros_like(x), "flat"),
        (lambda x: np.where(np.arange(x.shape[1]) == 9, np.nan, x), "12 samples that are NaN"),
        (lambda x: np.where(np.arange(x.shape[1]) == 9, np.inf, x), "NaN or infinite"),
        (lambda x: x * 1e3, "unit='uV' would fit"),
        (lambda x: x * 1e-3, "unit='V' would fit"),
        (lambda x: x.astype(complex), "complex128"),
        (lambda x: [x, x * 1e3], "record 1 of 2"),
        (lambda x: [x, x[:11]], "signal 1 of the list"),
    ],
)
def test_what_cannot_be_an_ecg_is_refused(
    encoder: ECGEncoder, ecg: NDArray[np.float64], spoil: Any, message: str
) -> None:
    with pytest.raises(SignalError, match=message):
        encoder.embed(spoil(ecg), **HOW)


def test_saved_and_loaded_is_the_same_to_the_last_bit(
    encoder: ECGEncoder, ecg: NDArray[np.float64], tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "out")
    before = torch.get_rng_state()
    again = ECGEncoder.from_pretrained(tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())
    assert not again.training
    assert again.signal == encoder.signal
    assert again.encoder.config == encoder.encoder.config
    assert again.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(weight, encoder.state_dict()[name]) for name, weight in again.state_dict().items())
    assert torch.equal(again.embed(ecg, **HOW), encoder.embed(ecg, **HOW))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "reference.safetensors",
    ]


def test_a_card_that_was_edited_survives_loading_and_saving(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("# mine\n", encoding="utf-8")
    ECGEncoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text(encoding="utf-8") == "# mine\n"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_read(
    encoder: ECGEncoder, ecg: NDArray[np.float64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", forbidden)
    folder = tmp_path / "out"
    encoder.save_pretrained(folder)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    (folder / "pytorch_model.bin").write_bytes(bomb)
    ECGEncoder.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ContractError, match=r"model\.safetensors does not exist"):
        ECGEncoder.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(bomb)
    with pytest.raises(ContractError, match="not a safetensors file"):
        ECGEncoder.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("norm.weight"), r"lacks norm\.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "superfluous extra"),
        (lambda w: w.update({"norm.weight": torch.ones(5)}), r"norm\.weight has shape \(5,\)"),
        (lambda w: w.update({"norm.weight": torch.full((16,), torch.nan)}), "NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    encoder: ECGEncoder, tmp_path: Path, spoil: Any, message: str
) -> None:
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ContractError, match=message):
        ECGEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoder", {"kind": "mamba9"}, "'mamba9'.*upgrade"),
        ("encoder", {"rope": True}, "unknown entry 'rope'.*upgrade"),
        ("encoder", {"num_leads": 8}, "takes 8 leads"),
        ("signal", {"highpass_hz": 400.0}, "below half the rate"),
        ("signal", {"unit": "uV"}, "'uV'.*upgrade"),
        ("signal", {"leads": ["X", *LEADS[1:]]}, "lead 'X'"),
        ("signal", {"window_samples": 10}, "longer than the window"),
        ("signal", {"std_mv": [0.0] * 12}, "must be above 0"),
        ("ecgfm", {"format": 3}, "format 3, this version reads 2.*upgrade"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(
    encoder: ECGEncoder, tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    encoder.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content[part] |= change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match=message):
        ECGEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', '{"encoder": 1, "signal": {}, "ecgfm": {}}'])
def test_a_foreign_config_is_refused(encoder: ECGEncoder, tmp_path: Path, text: str) -> None:
    encoder.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ContractError, match=r"config\.json"):
        ECGEncoder.from_pretrained(tmp_path)


def test_a_folder_or_name_that_is_not_there_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"config\.json does not exist; give a folder"):
        ECGEncoder.from_pretrained(tmp_path)
    with pytest.raises(ContractError, match="neither a folder nor a name"):
        ECGEncoder.from_pretrained(tmp_path / "none")
    with pytest.raises(ContractError, match="not in the cache"):
        ECGEncoder.from_pretrained("someone/nothing", local_files_only=True, cache_dir=tmp_path)


def test_loading_an_encoder_needs_no_training_or_conversion_package() -> None:
    heavy = ["deepspeed", "webdataset", "wfdb", "h5py", "sklearn", "matplotlib", "pandas", "scipy", "tyro"]
    heavy += ["ecgfm.train", "ecgfm.eval", "ecgfm.databases"]
    code = f"import sys, ecgfm; ecgfm.ECGEncoder; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(encoder: ECGEncoder, tmp_path: Path, device: str) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ContractError, match=f"device '{device}' cannot be used: .*; 'cpu' always can"):
        ECGEncoder.from_pretrained(tmp_path / "encoder", map_location=device)


def test_lead_names_may_be_an_array_and_records_an_array_of_objects(
    encoder: ECGEncoder, ecg: NDArray[np.float64]
) -> None:
    ragged = np.empty(2, dtype=object)
    ragged[:] = [ecg, ecg[:, :3000]]
    features_BD = encoder.embed(ragged, rate_hz=500.0, leads=np.array(LEADS), unit="mV")  # type: ignore[arg-type]
    as_list_BD = encoder.embed(list(ragged), rate_hz=500.0, leads=LEADS, unit="mV")
    torch.testing.assert_close(features_BD, as_list_BD, rtol=0, atol=0)


def test_a_name_that_the_hub_cannot_have_is_refused_without_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecgfm.hub.fetch.hf_hub_download", lambda *words, **options: pytest.fail("the Hub was asked"))
    for name in ("encoder", "out/runs/encoder", "./encoder"):
        with pytest.raises(ContractError, match="neither a folder nor a name on the Hub"):
            ECGEncoder.from_pretrained(name)
