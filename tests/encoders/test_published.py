"""Encoders of every kind on the way from a run's folder to features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from ecgfm import ECGEncoder, config, parts
from ecgfm.errors import ContractError, LeadError
from ecgfm.hub.export import export
from ecgfm.signal.contract import SignalContract
from tests.encoders.small import LEADS, small, stirred

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in parts.names("ecgfm.encoders")},
    "vit, rotary, attentive": ("vit", {"positions": "rotary", "pooling": "attentive"}),
    "vit, two registers, pooled": ("vit", {"num_registers": 2, "pooling": "register"}),
    "vit, no register": ("vit", {"num_registers": 0}),
    "vit_leadtime, rotary, attentive": (
        "vit_leadtime",
        {"positions": "rotary", "pooling": "attentive", "separators": True, "attention": "cross"},
    ),
    "resnet1d, group norm": ("resnet1d", {"norm": "group"}),
    "s4, causal": ("s4", {"causal": True}),
}
# At half the contract's rate: one second, which is the shortest, lengths that no step fills, and three windows.
SAMPLES = (250, 333, 2500, 5874)
HOW: dict[str, Any] = {"rate_hz": 250.0, "leads": ["V1", "II", "I", "V6"], "unit": "mV"}


def published(name: str, **options: Any) -> ECGEncoder:
    """Return an encoder as somebody builds it by hand: in training."""
    contract = SignalContract(
        rate_hz=500.0, leads=LEADS, mean_mv=(0.0, 0.01, 0.02), std_mv=(0.2, 0.3, 0.4), window_samples=5000
    )
    settings = small(name, **options)
    model = ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract))
    model.encoder.load_state_dict(stirred(settings).state_dict())
    return model


def recordings() -> list[NDArray[np.float64]]:
    draw = np.random.default_rng(0)
    return [draw.normal(0.0, 0.3, (4, samples)) for samples in SAMPLES]


def as_a_run(model: ECGEncoder, folder: Path) -> Path:
    """Write what `export` reads of a run."""
    checkpoint = folder / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    save_file(dict(model.encoder.state_dict()), checkpoint / "encoder.safetensors")
    (checkpoint / "contract.json").write_text(json.dumps(config.to_dict(model.signal)))
    (checkpoint / "state.json").write_text(json.dumps({"step": 7, "records_seen": 7, "shards": [], "versions": {}}))
    settings = {"encoder": config.to_dict(model.encoder.config), "objective": {"kind": "jepa"}, "data": {}, "seed": 0}
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_and_loaded_gives_the_same_features_at_any_length(kind: str, tmp_path: Path) -> None:
    name, options = KINDS[kind]
    model = published(name, **options)
    wanted = model.embed(recordings(), **HOW)
    again = ECGEncoder.from_pretrained(export(as_a_run(model, tmp_path / "run"), tmp_path / "out"))
    assert again.encoder.config == model.encoder.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(weight.numel() for weight in again.state_dict().values()), "an empty weight"
    assert torch.equal(again.embed(recordings(), **HOW), wanted)
    assert wanted.isfinite().all() and wanted.dtype == torch.float32
    assert (torch.pdist(wanted) > 1e-3).all()
    # And one by one, as tensors of float32 are summed in another order.
    alone = torch.cat([again.embed(signal, **HOW) for signal in recordings()])
    torch.testing.assert_close(alone, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet1d", "s4", "vit"])
def test_embedding_is_in_evaluation_and_leaves_mode_and_averages_as_they_were(name: str) -> None:
    model = published(name)
    frozen = next(module for module in model.modules() if not list(module.children()))
    frozen.eval()  # as somebody who fine-tunes the rest
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = model.embed(recordings(), **HOW)
    assert [module.training for module in model.modules()] == modes and {True, False} == set(modes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.eval().embed(recordings(), **HOW), found)
    model.train()
    with pytest.raises(LeadError):
        model.embed(recordings(), rate_hz=250.0, leads=["V1", "V2", "I", "V6"], unit="mV")
    assert model.training


def test_a_lead_that_is_missing_is_named_with_what_to_do_and_others_are_not_asked_for() -> None:
    model, (signal, *_) = published("vit"), recordings()
    # aVF follows from I and II; V6 is there and not asked for, V2 to V5 are not there and not asked for.
    whole = model.embed(np.stack([signal[0], signal[1], signal[1] - signal[2] / 2]), rate_hz=250.0,
                        leads=["V1", "II", "aVF"], unit="mV")  # fmt: skip
    torch.testing.assert_close(model.embed(signal, **HOW), whole, atol=2e-5, rtol=1e-4)
    with pytest.raises(
        LeadError,
        match=r"the signal: missing aVF.*takes II, V1, aVF, and no lead is made up: give recordings that have",
    ):
        model.embed(signal[:2], rate_hz=250.0, leads=["V1", "II"], unit="mV")


def test_another_pool_keeps_the_weights_and_a_trained_one_is_saved(tmp_path: Path) -> None:
    model = published("vit").eval()
    before = model.embed(recordings(), **HOW)
    model.requires_grad_(False)
    attentive, again, other = (model.with_pooling("attentive", seed=seed) for seed in (0, 0, 1))
    assert not attentive.training
    assert torch.equal(again.embed(recordings(), **HOW), attentive.embed(recordings(), **HOW))
    assert not torch.allclose(other.embed(recordings(), **HOW), again.embed(recordings(), **HOW), atol=1e-3)
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(weight, attentive.encoder.state_dict()[name])
    # The linear protocol: the pool learns on a frozen encoder.
    pooler = attentive.encoder.get_submodule("pooler")
    optimizer = torch.optim.Adam(pooler.parameters(), lr=0.02)
    signal_BLT = torch.randn(4, 3, 1000, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(20):
        loss = (attentive.features(signal_BLT)[:, 0] - torch.arange(4.0)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    attentive.save_pretrained(tmp_path)
    again = ECGEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.embed(recordings(), **HOW), attentive.embed(recordings(), **HOW))
    assert torch.equal(again.with_pooling("mean").embed(recordings(), **HOW), before)
    assert not torch.allclose(model.with_pooling("register").embed(recordings(), **HOW), before, atol=1e-2)
    with pytest.raises(ContractError, match="pooling: 'max' is none of"):
        model.with_pooling("max")
    with pytest.raises(ContractError, match="unknown entry 'pooling'"):
        published("s4").with_pooling("attentive")


@pytest.mark.parametrize("name", ["resnet1d", "vit"])
def test_weights_of_16_bits_come_close_and_leave_the_running_averages_exact(name: str) -> None:
    model = published(name).eval()
    wanted = model.embed(recordings(), **HOW)
    averages = {key: value.clone() for key, value in model.named_buffers()}
    found = model.bfloat16().embed(recordings(), **HOW)
    for key, value in model.named_buffers():
        assert torch.equal(value, averages[key]) and value.dtype == averages[key].dtype
    # Eight bits, through up to twenty layers.
    assert (found - wanted).norm() < 0.05 * wanted.norm()
