"""An encoder with a head: what trains, what stands still, and the same answers after saving and loading."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfm import ECGClassifier, ECGEncoder, config
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.errors import ConfigError, ContractError, SignalError
from ecgfm.hub.calibration import Calibration
from ecgfm.hub.classifier import ClassifierSettings
from ecgfm.hub.heads import Attentive, Concat, HeadKind, build_head
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract

MadeUp = Callable[[int, int], NDArray[np.float64]]
HOW: dict[str, Any] = {"rate_hz": 500, "leads": LEADS, "unit": "mV"}
HEADS: tuple[HeadKind, ...] = ("linear", "attentive", "mlp2", "concat")


def stir_(model: nn.Module) -> None:
    """Give all weights, of which a head's last begin at zero, values of some size."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))


def signal_BLT(rows: int = 3, samples: int = 1000) -> Tensor:
    return 0.3 * torch.randn(rows, 12, samples, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet(contract: SignalContract) -> ECGEncoder:
    """A small encoder with batch norm."""
    settings = ResNet1d.Config(width=16, layers=(1, 1), patch_samples=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract)).eval()


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_of_every_head_trains_and_the_first_logits_say_nothing(
    encoder: ECGEncoder, head: HeadKind
) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a", "b"], head=head, unfreeze="all", dropout=0.1)
    assert not model(signal_BLT()).any()
    stir_(model.head)
    model.train()
    logits_BC = model(signal_BLT())
    assert logits_BC.shape == (3, 2) and logits_BC.dtype == torch.float32
    torch.autograd.backward((logits_BC * torch.tensor([1.0, -2.0])).square().sum())
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_the_attentive_head_is_one_query_over_the_tokens_written_out() -> None:
    head = build_head("attentive", 6, 2, heads=2)
    assert isinstance(head, Attentive)
    stir_(head)
    tokens_BND = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    got = head.eval()(tokens_BND, torch.zeros(2, 6)).detach().numpy()
    weight = {name: value.detach().double().numpy() for name, value in head.named_parameters()}
    for row in range(2):
        tokens = tokens_BND[row].double().numpy()
        tokens = (tokens - tokens.mean(axis=1, keepdims=True)) / np.sqrt(tokens.var(axis=1, keepdims=True) + 1e-5)
        tokens = tokens * weight["norm.weight"] + weight["norm.bias"]
        ask, key, value = np.split(weight["attention.in_proj_weight"], 3)
        ask_bias, key_bias, value_bias = np.split(weight["attention.in_proj_bias"], 3)
        query = ask @ weight["query"][0, 0] + ask_bias
        gathered = []
        for part in (slice(0, 3), slice(3, 6)):  # two heads of three features
            score = np.array([query[part] @ (key @ token + key_bias)[part] / np.sqrt(3) for token in tokens])
            share = np.exp(score) / np.exp(score).sum()
            gathered.append(sum(s * (value @ token + value_bias)[part] for s, token in zip(share, tokens, strict=True)))
        out = weight["attention.out_proj.weight"] @ np.concatenate(gathered) + weight["attention.out_proj.bias"]
        np.testing.assert_allclose(got[row], weight["out.weight"] @ out + weight["out.bias"], atol=2e-5)  # float32


def test_the_concat_head_takes_maximum_and_mean_of_the_tokens() -> None:
    head = build_head("concat", 4, 3, hidden=5, dropout=0.5)
    assert isinstance(head, Concat)
    stir_(head)
    assert [module.p for module in head.hidden if isinstance(module, nn.Dropout)] == [0.25, 0.5]
    tokens_BND = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(1))
    got = head.eval()(tokens_BND, torch.zeros(6, 4)).detach().numpy()
    weight = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    tokens = tokens_BND.double().numpy()

    def norm(number: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = weight[f"hidden.{number}.weight"] / np.sqrt(weight[f"hidden.{number}.running_var"] + 1e-5)
        shifted = (values - weight[f"hidden.{number}.running_mean"]) * scale + weight[f"hidden.{number}.bias"]
        return np.asarray(shifted)

    both = norm(0, np.concatenate([tokens.max(axis=1), tokens.mean(axis=1)], axis=1))
    hidden = norm(4, np.maximum(both @ weight["hidden.2.weight"].T + weight["hidden.2.bias"], 0))
    np.testing.assert_allclose(got, hidden @ weight["out.weight"].T + weight["out.bias"], atol=2e-5)  # float32


@pytest.mark.parametrize(("unfreeze", "training"), [("none", 0), ("head", 1), ("gradual", 1), ("all", 99)])
def test_what_is_frozen_gets_no_gradient(encoder: ECGEncoder, unfreeze: Any, training: int) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"], unfreeze=unfreeze)
    assert all(weight.requires_grad == (training > 0) for weight in model.head.parameters())
    assert all(weight.requires_grad == (training > 1) for weight in model.encoder.parameters())


def test_unfreezing_goes_on_from_the_head_to_the_first_layer(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"], unfreeze="gradual")
    seen = []
    for groups in range(model.num_groups() + 1):
        model.unfreeze_(groups)
        seen.append({name for name, weight in model.named_parameters() if weight.requires_grad})
    assert seen[0] == set() and all(before < after for before, after in itertools.pairwise(seen))
    assert seen[2] - seen[1] >= {"encoder.encoder.norm.weight", "encoder.encoder.blocks.1.attn.qkv.weight"}
    assert seen[-1] - seen[-2] == {"encoder.encoder.register", "encoder.encoder.patch.weight"}
    assert seen[-1] == {name for name, _ in model.named_parameters()}
    with pytest.raises(ConfigError, match="0 or more"):
        model.unfreeze_(-1)


def test_batch_norm_of_frozen_layers_keeps_its_averages(resnet: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(resnet, labels=["a"], unfreeze="gradual")

    def moved(groups: int) -> set[str]:
        model.unfreeze_(groups).train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        model(signal_BLT())
        return {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}

    assert moved(1) == set()
    only_last = moved(2)
    assert only_last and all(name.startswith("encoder.encoder.blocks.1") for name in only_last)
    assert any(name.startswith("encoder.encoder.stem") for name in moved(model.num_groups()))
    frozen = model.unfreeze_(1).train()(signal_BLT())
    torch.testing.assert_close(frozen, model.eval()(signal_BLT()), atol=0, rtol=0)


def test_rates_fall_with_depth_and_hold_every_weight_once(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"])
    groups = model.parameter_groups(1e-3, 0.5)
    assert [group["name"] for group in groups] == ["head", "blocks.1", "blocks.0", "stem"]
    assert [group["lr"] for group in groups] == [1e-3, 5e-4, 2.5e-4, 1.25e-4]
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    torch.optim.AdamW(groups)


def test_vectors_have_no_weight_decay(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"])
    decays = {
        id(weight): group["weight_decay"]
        for group in model.parameter_groups(1e-3, weight_decay=0.1)
        for weight in group["params"]
    }
    assert {name: decays[id(weight)] for name, weight in model.named_parameters()} == {
        name: 0.1 if weight.ndim > 1 else 0.0 for name, weight in model.named_parameters()
    }


def test_weights_that_are_frozen_stay_and_join_when_they_are_freed(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"], unfreeze="gradual")
    stir_(model.head)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2), weight_decay=0.1)

    def step() -> set[str]:
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        optimizer.zero_grad()
        torch.autograd.backward(model.train()(signal_BLT()).square().sum())
        optimizer.step()
        return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}

    assert step() == {"head.out.weight", "head.out.bias"}
    model.unfreeze_(2)
    assert {name.split(".")[2] for name in step() if name.startswith("encoder")} == {"blocks", "norm"}


def test_a_few_steps_tell_two_kinds_of_recordings_apart(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["slow", "fast"], kind="multiclass", unfreeze="all")
    time_s = torch.arange(1000) / 500
    target_B = torch.arange(32) % 2
    noise = torch.randn(32, 12, 1000, generator=torch.Generator().manual_seed(0))
    windows_BLT = torch.sin(6.28 * (2.0 + 6.0 * target_B[:, None, None]) * time_s) + 0.2 * noise
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2, 0.5))
    for _ in range(30):
        loss = nn.functional.cross_entropy(model.train()(windows_BLT), target_B)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        assert (model.eval()(windows_BLT).argmax(dim=1) == target_B).all()
    assert loss < 0.1 * np.log(2)


@pytest.fixture
def model(encoder: ECGEncoder) -> ECGClassifier:
    """A classifier whose logits differ, on windows of 2.5 s every 1.25 s."""
    made = ECGClassifier.from_pretrained(encoder, labels=["a", "b", "c"], head="attentive", window_s=2.5, stride_s=1.25)
    stir_(made.head)
    return made


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_a_records_logits_are_those_of_its_windows_put_together(
    model: ECGClassifier, made_up: MadeUp, aggregate: Any
) -> None:
    model.aggregate = aggregate
    signals = [made_up(samples, seed) for seed, samples in enumerate((5000, 800, 5000, 1600))]
    got = model.predict_logits(signals, **HOW, batch_size=3)
    for row, signal in enumerate(signals):
        samples = signal.shape[1]
        starts = [*range(0, samples - 1249, 625)]
        if starts and starts[-1] + 1250 < samples:
            starts.append(samples - 1250)
        cut = [signal[:, start : start + 1250] for start in starts] or [signal[:, :800]]
        with torch.no_grad():
            logits = np.stack([model(torch.tensor(window[None]).float())[0].numpy() for window in cut])
        wanted = logits.mean(axis=0) if aggregate == "mean" else logits.max(axis=0)
        # float32 through two blocks; the order of summation differs with the batch.
        np.testing.assert_allclose(got[row].numpy(), wanted, atol=2e-5, rtol=2e-5)
    assert torch.dist(got[0], got[2]) > 0.01


def test_probabilities_are_sigmoid_or_softmax_or_calibrated(
    model: ECGClassifier, encoder: ECGEncoder, ecg: Any
) -> None:
    logits = model.predict_logits(ecg, **HOW).double().numpy()
    np.testing.assert_allclose(model.predict_proba(ecg, **HOW).numpy(), 1 / (1 + np.exp(-logits)), atol=1e-6)
    model.calibration = Calibration(
        method="platt", outputs="multilabel", slope=(0.5, 2.0, 1.0), offset=(0.1, 0.2, -0.3)
    )
    wanted = 1 / (1 + np.exp(-(logits * [0.5, 2.0, 1.0] + [0.1, 0.2, -0.3])))
    np.testing.assert_allclose(model.predict_proba(ecg, **HOW).numpy(), wanted, atol=1e-6)
    one_of = ECGClassifier.from_pretrained(encoder, labels=["a", "b", "c"], kind="multiclass")
    stir_(one_of.head)
    raised = np.exp(one_of.predict_logits(ecg, **HOW).double().numpy())
    np.testing.assert_allclose(one_of.predict_proba(ecg, **HOW).numpy(), raised / raised.sum(), atol=1e-6)
    assert one_of.predict(ecg, **HOW) == [("a", "b", "c")[int(raised.argmax())]]


def test_labels_are_named_from_their_threshold_on(model: ECGClassifier, ecg: Any) -> None:
    a, b, c = model.predict_proba(ecg, **HOW)[0].tolist()
    model.thresholds = (a, np.nextafter(b, 2), c - 0.01)
    assert model.predict(ecg, **HOW) == [("a", "c")]
    model.thresholds = None
    assert model.predict(ecg, **HOW) == [tuple(name for name, p in (("a", a), ("b", b), ("c", c)) if p >= 0.5)]


def test_a_regression_tells_values_in_the_targets_unit(encoder: ECGEncoder, ecg: Any, tmp_path: Path) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["age"], kind="regression")
    stir_(model.head)
    plain = model.predict_logits(ecg, **HOW)
    model.standardise_([61.5], [17.0])
    torch.testing.assert_close(model.predict(ecg, **HOW), 61.5 + 17.0 * plain)
    with pytest.raises(ConfigError, match="no probabilities"):
        model.predict_proba(ecg, **HOW)
    model.save_pretrained(tmp_path)
    again = ECGClassifier.from_pretrained(tmp_path)
    assert torch.equal(again.predict_logits(ecg, **HOW), model.predict_logits(ecg, **HOW))
    with pytest.raises(ConfigError, match="2 numbers for 1"):
        model.standardise_([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_is_the_same_to_the_last_bit(
    resnet: ECGEncoder, ecg: NDArray[np.float64], tmp_path: Path, head: HeadKind
) -> None:
    model = ECGClassifier.from_pretrained(resnet, labels=["a", "b"], head=head, dropout=0.3, hidden=7, unfreeze="all")
    stir_(model)
    model.train()(signal_BLT())  # batch norm's averages move
    model.aggregate, model.window_s, model.thresholds = "max", 4.0, (0.25, 0.75)
    model.calibration = Calibration(method="temperature", outputs="multilabel", slope=(0.7,))
    model.save_pretrained(tmp_path / "out")
    before = torch.get_rng_state()
    again = ECGClassifier.from_pretrained(tmp_path / "out", check=True)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training and not again.training
    assert again.now() == model.now()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again.predict_proba(ecg, **HOW), model.predict_proba(ecg, **HOW))
    assert model.training
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "reference.safetensors"]


def test_the_first_weights_of_a_head_depend_on_the_seed_alone(encoder: ECGEncoder) -> None:
    def query(seed: int) -> Tensor:
        torch.manual_seed(seed + 7)
        before = torch.get_rng_state()
        model = ECGClassifier.from_pretrained(encoder, labels=["a"], head="attentive", seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return model.head.get_parameter("query")

    assert torch.equal(query(1), query(1))
    assert not torch.equal(query(1), query(2))


def test_what_a_saved_classifier_is_not_is_refused(model: ECGClassifier, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert ECGClassifier.from_pretrained(tmp_path, labels=["a", "b", "c"], head="attentive").labels == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"labels=\('a', 'b', 'c'\), not \('a',\).*new head"):
        ECGClassifier.from_pretrained(tmp_path, labels=["a"])
    with pytest.raises(ContractError, match="is a classifier"):
        ECGEncoder.from_pretrained(tmp_path)


def test_a_new_head_goes_on_a_folder_or_on_the_encoder_itself(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = ECGClassifier.from_pretrained(tmp_path, labels=["a"], check=True)
    assert torch.equal(loaded.encoder.features(signal_BLT()), encoder.features(signal_BLT()))
    assert ECGClassifier.from_pretrained(encoder, labels=["a"]).encoder is encoder
    with pytest.raises(ConfigError, match=r"give labels=\[\.\.\.\]"):
        ECGClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "at least one"),
        ({"labels": ["a", "a"]}, "different names"),
        ({"labels": "AF"}, "list of names"),
        ({"labels": ["a"], "kind": "multiclass"}, "at least two"),
        ({"labels": ["a"], "kind": "softmax"}, "none of multilabel"),
        ({"labels": ["a"], "head": "linaer"}, "none of linear, attentive"),
        ({"labels": ["a"], "unfreeze": "some"}, "none of none, head"),
        ({"labels": ["a"], "dropout": 1.0}, "below 1"),
        ({"labels": ["a"], "aggregate": "median"}, "neither mean nor max"),
        ({"labels": ["a"], "window_s": 0.0}, "above 0 seconds"),
        ({"labels": ["a"], "head": "mlp2", "hidden": 0}, "at least one label"),
    ],
)
def test_settings_that_cannot_work_are_refused(encoder: ECGEncoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ECGClassifier.from_pretrained(encoder, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "transformer"}, "cannot honour.*'transformer'"),
        ({"loss": "focal"}, "unknown entry 'loss'"),
        ({"labels": ["a", "b"]}, r"head\.out\.(weight|bias) has shape"),
        ({"thresholds": [0.5]}, "1 numbers for 3 labels"),
        ({"calibration": {"method": "platt", "outputs": "multilabel"}}, "no calibration by platt"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(
    model: ECGClassifier, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["classifier"] |= change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ContractError, match=message):
        ECGClassifier.from_pretrained(tmp_path)


def test_a_misspelt_option_is_refused_also_where_nothing_is_downloaded(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    for pretrained in (encoder, tmp_path):
        with pytest.raises(TypeError, match="'dropuot'"):
            ECGClassifier.from_pretrained(pretrained, labels=["a"], dropuot=0.1)  # type: ignore[call-arg]


def test_settings_survive_json() -> None:
    settings = ClassifierSettings(
        labels=("a", "b"), kind="regression", target_mean=(1.0, 2.0), target_std=(3.0, 4.0), hidden=9, stride_s=0.5
    )
    assert config.from_dict(ClassifierSettings, json.loads(json.dumps(config.to_dict(settings)))) == settings


def test_a_signal_that_is_no_ecg_is_refused_as_by_the_encoder(model: ECGClassifier, ecg: Any) -> None:
    with pytest.raises(SignalError, match="unit='uV' would fit"):
        model.predict_proba(ecg * 1e3, **HOW)


def test_the_loss_leaves_out_what_is_not_known(encoder: ECGEncoder, ecg: NDArray[np.float64]) -> None:
    windows_BLT = torch.from_numpy(np.stack([ecg, ecg[::-1].copy()])).float()
    nan = float("nan")
    model = ECGClassifier.from_pretrained(encoder, labels=["a", "b"])
    torch.nn.init.normal_(model.head.get_parameter("out.weight"), generator=torch.Generator().manual_seed(0))
    logits_BC = model(windows_BLT)
    one = torch.nn.functional.binary_cross_entropy_with_logits(logits_BC[0, 1], torch.tensor(1.0))
    torch.testing.assert_close(model.loss(windows_BLT, torch.tensor([[nan, 1.0], [nan, nan]])), one)
    nothing = model.loss(windows_BLT, torch.full((2, 2), nan))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert nothing == 0
    several = ECGClassifier.from_pretrained(encoder, labels=["a", "b"], kind="multiclass")
    several.head.load_state_dict(model.head.state_dict())
    wanted = torch.nn.functional.cross_entropy(logits_BC, torch.tensor([1, 0]))
    torch.testing.assert_close(several.loss(windows_BLT, torch.tensor([[1], [0]])), wanted)
    torch.testing.assert_close(several.loss(windows_BLT, torch.tensor([[0, 1], [1, 0]])), wanted)
    with pytest.raises(ConfigError, match="numbered 0 to 1"):
        several.loss(windows_BLT, torch.tensor([[2], [0]]))
    with pytest.raises(ConfigError, match="targets have shape"):
        model.loss(windows_BLT, torch.ones(2, 3))


@pytest.mark.parametrize("head", ["linear", "mlp2"])
def test_features_of_any_size_are_as_easy_to_learn_from(encoder: ECGEncoder, head: HeadKind) -> None:
    """Weights of an encoder whose features are a thousandth: what a layer on them learns must not be."""
    draw = torch.Generator().manual_seed(0)
    features = 3.0 + torch.randn(64, encoder.encoder.config.width, generator=draw)
    features[:, 1] = 0.25  # never varies
    target = (features[:, :1] > 3).float()
    losses = []
    for size in (1.0, 0.001):
        model = ECGClassifier.from_pretrained(encoder, labels=["a"], head=head, unfreeze="head")
        model.standardise_features_(size * features)
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
        for _ in range(30):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model.logits(torch.empty(64, 0, 0), size * features), target
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.5
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_features_of_another_width_are_refused(encoder: ECGEncoder) -> None:
    model = ECGClassifier.from_pretrained(encoder, labels=["a"])
    for features in (torch.zeros(5, 3), torch.zeros(1, encoder.encoder.config.width)):
        with pytest.raises(ConfigError, match="features must have shape"):
            model.standardise_features_(features)
