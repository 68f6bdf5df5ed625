"""Maps are what their papers say: against closed forms, other paths of the same library, and what is planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGEncoder, config
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.lstm import LSTM
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.s4 import S4
from ecgfm.encoders.ts_cnn import TSCNN
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError, ContractError, SignalError
from ecgfm.eval.saliency import Saliency, attention_probability, methods, saliency
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract
from tools import plot_saliency

SAMPLES, RATE_HZ = 1000, 500.0
VIT = ViT.Config(width=16, depth=2, num_heads=2, patch_samples=50, num_registers=2)
RESNET = ResNet1d.Config(width=16)
HOW: dict[str, Any] = {"rate_hz": RATE_HZ, "leads": LEADS, "unit": "mV"}


def encoder_of(settings: Encoder.Config) -> ECGEncoder:
    contract = SignalContract(
        rate_hz=RATE_HZ, mean_mv=(0.0,) * 12, std_mv=(0.5,) * 12, window_samples=SAMPLES, clip=10.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract))
    return model.eval()


def classifier_of(settings: Encoder.Config, **how: Any) -> ECGClassifier:
    """Return a classifier whose head has random weights: as it begins, all its gradients are 0."""
    model = ECGClassifier.from_pretrained(encoder_of(settings), labels=["a", "b"], unfreeze="none", **how)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(6)
        for weight in model.head.parameters():
            weight.normal_(std=0.5)
    return model


def signal_of(samples: int = SAMPLES) -> NDArray[np.float64]:
    draw = np.random.default_rng(1)
    smooth = np.cumsum(draw.normal(size=(12, samples)), axis=1)
    smooth -= np.linspace(0, 1, samples) * smooth[:, -1:]
    return np.asarray(smooth / np.abs(smooth).max(axis=1, keepdims=True))


def prepared(model: ECGClassifier, signal_LT: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(model.encoder.preprocessor(signal_LT, **HOW)[0])


def test_grad_cam_under_a_linear_head_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: of the mean of a map under one layer, the gradient is the layer's weight over the steps."""
    for settings in (RESNET, VIT):
        stop = SAMPLES // settings.patch_samples * settings.patch_samples  # one window of whole steps
        model, signal = classifier_of(settings), signal_of(stop)
        got = saliency(model, signal, label="b", **HOW)
        ready = prepared(model, signal)
        with torch.no_grad():
            tokens_ND = model.encoder(model.encoder.normalise(ready[None]))[0].double()
        weight_D = model.head.state_dict()["out.weight"][1].double()
        wanted_S = (tokens_ND @ weight_D / len(tokens_ND)).clamp(min=0).numpy()
        step = stop // len(wanted_S)
        assert got.step_s == step / RATE_HZ and not got.leads_apart and got.label == "b"
        assert got.highest == pytest.approx(wanted_S.max(), rel=1e-4) and wanted_S.max() > 0
        # float32 through the encoder.
        np.testing.assert_allclose(got.weight_LT[0, ::step], wanted_S / wanted_S.max(), atol=1e-4)
        assert (got.weight_LT == got.weight_LT[:1]).all()


def test_windows_of_a_long_recording_share_its_logit_and_overlap_in_their_mean() -> None:
    signal = signal_of(1500)
    for aggregate in ("mean", "max"):
        model = classifier_of(VIT, aggregate=aggregate)
        got = saliency(model, signal, label="a", **HOW)
        ready = prepared(model, signal)
        alone, logits = [], []
        for start in (0, 500):
            window = ready[:, start : start + SAMPLES]
            alone.append(saliency(model, window.numpy(), label="a", **HOW))
            logits.append(float(model(window[None])[0, 0].detach()))
        maps = [one.weight_LT.astype(np.float64) * one.highest for one in alone]
        share = (0.5, 0.5) if aggregate == "mean" else tuple(float(value == max(logits)) for value in logits)
        wanted = np.zeros((12, 1500))
        wanted[:, :SAMPLES] += share[0] * maps[0]
        wanted[:, 500:] += share[1] * maps[1]
        wanted[:, 500:SAMPLES] /= 2
        np.testing.assert_allclose(got.weight_LT * got.highest, wanted, atol=1e-4 * wanted.max())


def test_attention_is_what_the_layer_computes_by_its_other_path() -> None:
    encoder = encoder_of(VIT).encoder
    layer = encoder.blocks[0].attn  # type: ignore[index, union-attr]
    tokens = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    sees = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    sees |= torch.eye(7, dtype=torch.bool)
    seen: list[torch.Tensor] = []
    handle = layer.attn_drop.register_forward_hook(lambda _m, _i, output: seen.append(output))
    layer.fused_attn = False
    for mask in (None, sees):
        layer(tokens, attn_mask=mask)
        got = attention_probability(layer, tokens, mask)
        torch.testing.assert_close(got, seen[-1], atol=1e-6, rtol=0)
    assert (seen[1][~sees.expand(-1, 2, -1, -1)] == 0).all()
    handle.remove()


@pytest.mark.parametrize("settings", [VIT, LeadTimeViT.Config(width=16, depth=2, num_heads=2, separators=True)])
def test_rollout_is_the_product_of_half_attention_and_half_identity(settings: ViT.Config) -> None:
    model, signal = encoder_of(settings), signal_of()
    matrices: list[NDArray[np.float64]] = []
    for block in model.encoder.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(
            lambda _m, _i, output: matrices.append(output[0].double().detach().numpy().mean(axis=0))
        )
    tokens_1ND = model(model.normalise(torch.from_numpy(model.preprocessor(signal, **HOW)[0])[None]))
    number, tokens = len(matrices[0]), tokens_1ND.shape[1]
    product = np.eye(number)
    for matrix in list(matrices):
        product = (0.5 * matrix + 0.5 * np.eye(number)) @ product
    for method, whole in (("rollout", product), ("attention", matrices[1])):
        inner = whole[number - tokens :, number - tokens :]
        even_N = inner.mean(axis=0) / inner.mean()
        got = saliency(model, signal, method=method, **HOW)  # type: ignore[arg-type]
        assert got.lowest == pytest.approx(even_N.min(), rel=1e-4)
        assert got.highest == pytest.approx(even_N.max(), rel=1e-4)
        rows = 12 if settings.leads_apart else 1
        wanted = ((even_N - even_N.min()) / np.ptp(even_N)).reshape(rows, -1)
        got_LS = got.weight_LT[:, :: settings.patch_samples]
        np.testing.assert_allclose(got_LS, np.broadcast_to(wanted, got_LS.shape), atol=2e-3)
        assert got.label is None and got.leads_apart == settings.leads_apart


def test_an_attentive_heads_own_attention_weights_the_queries() -> None:
    model, signal = classifier_of(VIT, head="attentive"), signal_of()
    even, own = (saliency(one, signal, method="attention", **HOW) for one in (model.encoder, model))
    assert np.abs(even.weight_LT - own.weight_LT).max() > 0.01


def test_leads_have_their_own_map_where_the_encoder_keeps_them_apart() -> None:
    for settings in (TSCNN.Config(), LeadTimeViT.Config(width=16, depth=1, num_heads=2)):
        got = saliency(classifier_of(settings), signal_of(), **HOW)
        assert got.leads_apart and not np.allclose(got.weight_LT[0], got.weight_LT[7])


@pytest.mark.parametrize("settings", [LSTM.Config(width=16), S4.Config(width=16, depth=1), TSCNN.Config(), RESNET, VIT])
def test_explaining_changes_nothing_and_the_map_is_in_its_bounds(settings: Encoder.Config) -> None:
    model, signal = classifier_of(settings), signal_of(1100)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.train()
    got = saliency(model, signal, **HOW)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert got.weight_LT.shape == (12, 1100) and got.weight_LT.min() >= 0 and got.weight_LT.max() <= 1
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 0
    assert got.label == model.labels[int(model.predict_logits(signal, **HOW)[0].argmax())]


def test_a_planted_spike_is_where_the_map_is_highest() -> None:
    """A convolution that only answers to a spike, and a head that only reads its channel."""
    model = classifier_of(ViT.Config(width=16, depth=1, num_heads=2, patch_samples=50, num_registers=0))
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if "blocks" in name:
                weight.zero_()
        model.encoder.encoder.patch.weight.zero_()  # type: ignore[union-attr, operator]
        model.encoder.encoder.patch.weight[0] = 1.0  # type: ignore[union-attr, operator]
        model.head.out.weight.zero_()  # type: ignore[union-attr, operator]
        model.head.out.weight[0, 0] = 1.0  # type: ignore[union-attr, operator]
    signal = 0.02 * signal_of()
    signal[:, 620:630] += 1.0
    got = saliency(model, signal, label="a", **HOW)
    assert int(got.weight_LT[0].argmax()) // 50 == 12


def test_a_map_is_put_on_the_recording_as_it_came() -> None:
    weight = np.zeros((2, 10), dtype=np.float32)
    weight[0, 5:], weight[1, :5] = 1, 0.5
    map_ = Saliency(
        method="rollout",
        label=None,
        signal_LT=weight,
        leads=("II", "V1"),
        rate_hz=100.0,
        weight_LT=weight,
        lowest=0.0,
        highest=1.0,
        step_s=0.05,
        leads_apart=True,
    )
    out = map_.on(LEADS, 200.0, 21)
    assert out.shape == (12, 21) and out[LEADS.index("I")].max() == 0
    np.testing.assert_array_equal(out[LEADS.index("II")], [0] * 10 + [1] * 11)
    np.testing.assert_array_equal(out[LEADS.index("V1")], [0.5] * 10 + [0] * 11)
    assert replace(map_, method="grad-cam", label="AF").title == "Grad-CAM of AF"
    assert map_.words == "one value for each 50 ms"
    empty = replace(map_, method="grad-cam", label="AF", weight_LT=0 * weight)
    assert empty.words == "empty, as nothing in the recording speaks for AF"


def test_what_cannot_be_explained_is_refused_with_the_fix() -> None:
    model, signal = classifier_of(RESNET), signal_of()
    assert methods(model.encoder.encoder) == ("grad-cam",)
    for named, words in (
        ({"method": "rollout"}, "resnet1d has none; use grad-cam"),
        ({"label": "c"}, "none of the classifier's: a, b"),
        ({"method": "x"}, "none of grad-cam, attention, rollout"),
    ):
        with pytest.raises(ConfigError, match=words):
            saliency(model, signal, **named, **HOW)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="knows no label"):
        saliency(classifier_of(VIT), signal, method="attention", label="a", **HOW)
    with pytest.raises(ConfigError, match="give a classifier"):
        saliency(encoder_of(VIT), signal, method="grad-cam", **HOW)
    with pytest.raises(SignalError, match="one recording at a time, got 2"):
        saliency(model, np.stack([signal, signal]), **HOW)


def test_a_real_recording_is_drawn(
    ecg_data: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, on the first records of LUDB, with a classifier and with an encoder alone. Takes 5 s."""
    from ecgfm.databases.base import load_database
    from ecgfm.shards.writer import Options, convert

    folder = tmp_path / "ludb"
    (folder / "data").mkdir(parents=True)
    source = ecg_data / "ludb"
    for path in source.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    for path in (source / "data").glob("1.*"):
        (folder / "data" / path.name).symlink_to(path)
    convert(load_database("ludb"), folder, tmp_path / "shards", Options(records_per_shard=8))
    classifier_of(VIT).save_pretrained(tmp_path / "classifier")
    encoder_of(VIT).save_pretrained(tmp_path / "encoder")
    out = tmp_path / "map.png"
    done = command("tools/plot_saliency.py", tmp_path / "classifier", tmp_path / "shards", "--label", "a", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Grad-CAM of a, one value for each 100 ms, shared by all leads" in " ".join(done.stdout.split())
    assert out.read_bytes().startswith(b"\x89PNG")
    # In this process: another one would spend its time on imports.
    words = ["plot_saliency.py", tmp_path / "encoder", tmp_path / "shards", "--out", out]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    with pytest.raises(ContractError, match="give a classifier, or --method rollout"):
        plot_saliency.main()
