"""The parts of fine-tuning against slow versions: schedules, crops, loss, inputs, neighbours, checkpoints."""

from __future__ import annotations

import dataclasses
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.vit import ViT
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.eval import finetune_state as states
from ecgfm.eval.finetune_config import Finetune, Input, Phase, command_line
from ecgfm.eval.finetune_data import Crops
from ecgfm.eval.finetune_loop import stages
from ecgfm.eval.finetune_model import Network, build_optimizer, with_dropout
from ecgfm.eval.finetune_state import State
from ecgfm.eval.knn import Neighbours, log_odds
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.losses import loss_sum
from ecgfm.leads import LEADS
from tests.eval.finetune_cases import small_encoder


def test_one_cycle_is_that_of_torch() -> None:
    phase = Phase(steps=40, lr=1e-2, schedule="one-cycle")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.99))
    # Torch counts from 0 to total_steps - 1, and its first part ends one step earlier than ours: 41 steps, 13 / 41.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=41, pct_start=13 / 41, div_factor=25, final_div_factor=1e4
    )
    for step in range(41):
        group = optimizer.param_groups[0]
        assert phase.rate(step, 40) == pytest.approx(group["lr"], rel=1e-9)
        assert phase.first_beta(step, 40) == pytest.approx(group["betas"][0], rel=1e-9)
        optimizer.step()
        if step < 40:
            schedule.step()


def test_a_cosine_rises_in_a_line_and_ends_where_it_should() -> None:
    phase = Phase(steps=30, lr=2e-3, final_lr=1e-4, warmup_steps=10, schedule="cosine")
    for step in range(31):
        if step < 10:
            wanted = 2e-3 * step / 10
        else:
            wanted = 1e-4 + 0.5 * (2e-3 - 1e-4) * (1 + math.cos(math.pi * (step - 10) / 20))
        assert phase.rate(step, 30) == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    assert Phase(steps=5, lr=1e-3).rate(4, 5) == 1e-3 and Phase(epochs=2.0).num_steps(33, 8) == 9


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(90, 140), min_size=1, max_size=12),
    batch=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_every_epoch_has_every_long_record_once_and_crops_lie_inside(lengths: list[int], batch: int, seed: int) -> None:
    samples_N = np.asarray(lengths)
    place_N = 100 + np.arange(len(lengths))
    if samples_N.max() < 100:
        with pytest.raises(ConfigError, match="shorter than a crop"):
            Crops(place_N, samples_N, crop=100, batch_size=batch, seed=seed)
        return
    made = Crops(place_N, samples_N, crop=100, batch_size=batch, seed=seed)
    long = set(place_N[samples_N >= 100].tolist())
    assert len(made) == len(long) and made.too_short == len(lengths) - len(long)
    pairs = [made.step(step) for step in range(math.ceil(3 * len(long) / batch))]
    place = np.concatenate([each[0] for each in pairs])
    start = np.concatenate([each[1] for each in pairs])
    for epoch in range(3):
        assert set(place[epoch * len(long) : (epoch + 1) * len(long)].tolist()) == long
    assert (start >= 0).all() and (start + 100 <= samples_N[place - 100]).all()
    assert made.fixed == (samples_N[samples_N >= 100] == 100).all()


def test_crops_begin_everywhere_and_do_not_depend_on_the_batch_size() -> None:
    place_N, samples_N = np.arange(5), np.full(5, 103)
    one = Crops(place_N, samples_N, crop=100, batch_size=1, seed=0)
    five = Crops(place_N, samples_N, crop=100, batch_size=5, seed=0)
    singles = [one.step(step) for step in range(200)]
    assert {int(start[0]) for _, start in singles} == {0, 1, 2, 3}
    for step in range(40):
        place, start = five.step(step)
        assert place.tolist() == [int(singles[5 * step + row][0][0]) for row in range(5)]
        assert start.tolist() == [int(singles[5 * step + row][1][0]) for row in range(5)]
    assert not np.array_equal(five.step(0)[0], five.step(1)[0]) or not np.array_equal(five.step(0)[0], five.step(2)[0])


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression"])
def test_the_loss_is_that_of_a_slow_loop_over_what_is_known(kind: str) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(7, 3))
    target = (
        np.eye(3)[random.integers(0, 3, 7)] if kind == "multiclass" else (random.random((7, 3)) < 0.5).astype(float)
    )
    if kind == "regression":
        target = random.normal(5, 2, (7, 3))
    target[2] = np.nan
    if kind != "multiclass":
        target[4, 1] = np.nan
    scale = np.asarray([1.0, 2.0, 4.0])
    wanted, known = 0.0, 0
    for row in range(7):
        if kind == "multiclass":
            if not np.isnan(target[row]).any():
                total = sum(math.exp(value) for value in logits[row])
                wanted -= math.log(math.exp(logits[row][int(target[row].argmax())]) / total)
                known += 1
            continue
        for column in range(3):
            if np.isnan(target[row, column]):
                continue
            known += 1
            if kind == "multilabel":
                chance = 1 / (1 + math.exp(-logits[row, column]))
                wanted -= math.log(chance if target[row, column] else 1 - chance)
            else:
                wanted += ((logits[row, column] - target[row, column]) / scale[column]) ** 2
    logits_BC = torch.from_numpy(logits).requires_grad_()
    found, count = loss_sum(kind, logits_BC, torch.from_numpy(target), torch.from_numpy(scale))  # type: ignore[arg-type]
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-12) and int(count) == known
    (gradient_BC,) = torch.autograd.grad(found, logits_BC)
    assert gradient_BC.isfinite().all() and not gradient_BC[2].any()


def classifier(head: str = "linear") -> ECGClassifier:
    model = ECGClassifier.from_pretrained(small_encoder(), labels=["a", "b"], head=head, unfreeze="all")  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval()


SIGNAL = torch.randn(3, 12, 500, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["linear", "attentive", "mlp2", "concat"])
def test_without_a_study_the_network_is_the_classifier(head: str) -> None:
    model = classifier(head)
    network = Network(model, Input())
    torch.testing.assert_close(network(SIGNAL), model(SIGNAL), rtol=0, atol=0)
    torch.testing.assert_close(network(None, network.encode(SIGNAL)), model(SIGNAL), rtol=0, atol=0)


def test_a_register_is_what_a_head_is_given_where_pretraining_made_it_the_features() -> None:
    encoder = small_encoder(ViT.Config(width=16, depth=1, num_heads=2, patch_samples=50, pooling="register"))
    model = ECGClassifier.from_pretrained(encoder, labels=["a"])
    tokens_BND, features_BD = Network(model, Input()).encode(SIGNAL)
    torch.testing.assert_close(features_BD, model.encoder.features(SIGNAL), rtol=0, atol=0)
    assert not torch.allclose(features_BD, tokens_BND.mean(dim=1))


def test_absent_leads_are_zero_after_normalisation() -> None:
    model = classifier()
    network = Network(model, Input(leads=("v2", "II")))
    changed = network.changed(model.encoder.normalise(SIGNAL))
    for place, lead in enumerate(LEADS):
        wanted = model.encoder.normalise(SIGNAL)[:, place] if lead in ("II", "V2") else torch.zeros(3, 500)
        assert torch.equal(changed[:, place], wanted)
    other = SIGNAL.clone()
    other[:, [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]] = 1.0
    assert torch.equal(network(SIGNAL), network(other)) and not torch.equal(model(SIGNAL), model(other))
    assert Input(leads=("3",)).kept() == ("I", "II", "V2") and Input().plain() and not Input(leads=("6",)).plain()
    with pytest.raises(ConfigError, match=r"--input.leads V9"):
        Input(leads=("V9",))
    with pytest.raises(ConfigError, match=r"--input.leads 4: sets of leads are 12, 6, 3, 2, 1"):
        Input(leads=("4",))


@pytest.mark.parametrize("part", ["absolute", "real", "imaginary"])
def test_the_spectrum_is_the_sum_that_defines_it(part: str) -> None:
    network = Network(classifier(), Input(spectrum=part))  # type: ignore[arg-type]
    x = SIGNAL[:1, :2, :50].double().numpy()
    angle = -2 * np.pi * np.outer(np.arange(50), np.arange(50)) / 50
    whole = (x @ np.cos(angle) + 1j * (x @ np.sin(angle))) / math.sqrt(50)
    wanted = {"absolute": np.abs(whole), "real": whole.real, "imaginary": whole.imag}[part]
    # Float32 against float64 over 50 terms of size 1.
    full = torch.zeros(1, 12, 50)
    full[:, :2] = SIGNAL[:1, :2, :50]
    np.testing.assert_allclose(network.changed(full)[:, :2].numpy(), wanted, atol=2e-6)


def test_rates_fall_geometrically_from_the_head_to_the_first_layer_and_frozen_weights_are_not_there() -> None:
    model = classifier()
    phase = Phase(steps=1, first_layer_share=0.01, weight_decay=0.3)
    groups = build_optimizer(model.unfreeze_(model.num_groups()), phase, None).param_groups
    shares = list(dict.fromkeys(round(group["share"], 12) for group in groups))
    number = model.num_groups()
    assert shares == [pytest.approx(0.01 ** (place / (number - 1))) for place in range(number)]
    assert shares[0] == 1.0 and shares[-1] == pytest.approx(0.01)
    for group in groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
    held = {id(weight) for group in groups for weight in group["params"]}
    assert held == {id(weight) for weight in model.parameters()}
    head = build_optimizer(model.unfreeze_(1), phase, None).param_groups
    assert {id(w) for group in head for w in group["params"]} == {id(w) for w in model.head.parameters()}


def test_another_dropout_keeps_weights_and_answers() -> None:
    model = classifier("mlp2")
    changed = with_dropout(model, 0.4).eval()
    assert changed.settings.dropout == 0.4 and changed.encoder is model.encoder
    assert torch.equal(changed(SIGNAL), model(SIGNAL))
    assert {each.p for each in changed.head.modules() if isinstance(each, torch.nn.Dropout)} == {0.4}
    assert with_dropout(changed, 0.4) is changed


def test_verma_s_rates_are_those_of_its_code() -> None:
    # By group from the head to the first layers: 1e-2; slice(1e-3) with a tenth at the first; slice(1e-6, 1e-4).
    presets = runpy.run_path("recipes/finetune.py")["PRESETS"]
    model = classifier("concat")
    for phase, wanted in (
        ("frozen", [1e-2]),
        ("gradual", [1e-3, 1e-4]),
        ("full", [1e-4, 1e-6]),
    ):
        model.unfreeze_({"frozen": 1, "gradual": 3, "full": 3}[phase], most=2)
        settings_of_phase = getattr(presets["verma"], phase)
        optimizer = build_optimizer(model, settings_of_phase, presets["verma"].groups)
        shares = sorted({group["share"] for group in optimizer.param_groups})
        top = max(settings_of_phase.rate(step, 100) for step in range(100))
        assert [top * shares[-1], top * shares[0]][: len(wanted)] == pytest.approx(wanted)


def test_the_phases_of_each_method() -> None:
    for method, wanted in {
        "probe": [("frozen", 1)],
        "direct": [("full", 4)],
        "after-probe": [("frozen", 1), ("full", 4)],
        "gradual": [("frozen", 1), ("gradual", 2), ("gradual", 3), ("full", 4)],
    }.items():
        found = stages(Finetune(method=method), 4)  # type: ignore[arg-type]
        assert [(stage.name, stage.groups) for stage in found] == wanted


def test_a_frozen_encoder_leaves_no_gradient_and_its_averages_stand_still() -> None:
    encoder = small_encoder(ResNet1d.Config(width=16))
    model = ECGClassifier.from_pretrained(encoder, labels=["a"], head="concat")
    network = Network(model, Input()).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    network(SIGNAL[:, :, :480]).sum().backward()
    assert all(weight.grad is None for weight in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_neighbours_vote_as_in_a_slow_loop() -> None:
    random = np.random.default_rng(2)
    features, others = random.normal(3, 1, (15, 6)), random.normal(3, 1, (4, 6))
    target = (random.random((15, 2)) < 0.5).astype(float)
    target[random.random((15, 2)) < 0.2] = np.nan
    found = Neighbours(features, target, most=8).ask(others, 5, 0.1)
    mean = [sum(row[d] for row in features) / 15 for d in range(6)]
    for row in range(4):
        cosines = []
        for number in range(15):
            x = [others[row][d] - mean[d] for d in range(6)]
            y = [features[number][d] - mean[d] for d in range(6)]
            size = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
            cosines.append((sum(a * b for a, b in zip(x, y)) / size, number))
        nearest = sorted(cosines, reverse=True)[:5]
        for column in range(2):
            votes = [(math.exp(c / 0.1), target[n, column]) for c, n in nearest if not np.isnan(target[n, column])]
            wanted = sum(w * t for w, t in votes) / sum(w for w, _ in votes)
            assert found[row, column] == pytest.approx(wanted, rel=1e-9)


def test_neighbours_that_know_nothing_say_what_is_usual_and_odds_are_bounded() -> None:
    features = np.asarray([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, 0.2]])
    target = np.asarray([[np.nan], [np.nan], [1.0], [0.0]])
    near = Neighbours(features, target, most=100)
    assert near.ask(np.asarray([[1.0, 0.0]]), 2, 0.1) == pytest.approx(0.5)
    held = log_odds(np.asarray([[0.0, 0.5, 1.0]]), "multilabel")
    assert np.isfinite(held).all() and held[0, 1] == 0.0 and held[0, 0] == pytest.approx(-held[0, 2])
    with pytest.raises(ConfigError, match="not finite"):
        Neighbours(np.full((3, 2), np.nan), np.zeros((3, 1)), most=1)


def _checkpoint(run: Path, step: int) -> Path:
    state = State(step=step, phase=0, phase_step=step, best=0.5, identity={"seed": 1})
    return states.save(run, state, {"model.safetensors": {"w": torch.full((3,), float(step))}})


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    assert states.read(tmp_path) is None
    for step in (5, 10, 15):
        newest = _checkpoint(tmp_path, step)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000010", "step-00000015"]
    found = states.read(tmp_path)
    assert found and found[0].step == 15 and torch.equal(found[1]["model.safetensors"]["w"], torch.full((3,), 15.0))
    raw = bytearray((newest / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (newest / "model.safetensors").write_bytes(bytes(raw))
    found = states.read(tmp_path)
    assert found and found[0].step == 10
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        states.read(tmp_path)


def test_an_optimizer_goes_on_bit_for_bit_from_its_averages() -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        layer(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        optimizer.step()

    straight, one = build()
    for _ in range(4):
        step(straight, one)
    first, two = build()
    step(first, two)
    step(first, two)
    second, three = build()
    second.load_state_dict(first.state_dict())
    states.restore_(three, states.averages_of(two))
    step(second, three)
    step(second, three)
    assert torch.equal(straight.weight, second.weight) and torch.equal(straight.bias, second.bias)


def test_settings_that_cannot_work_are_refused() -> None:
    for build, words in (
        (lambda: Phase(), "either steps or epochs"),
        (lambda: Phase(steps=5, epochs=1.0), "either steps or epochs"),
        (lambda: Phase(steps=5, lr=1e-3, final_lr=1e-2), "final_lr"),
        (lambda: Finetune(head="knn"), "--head knn"),
        (lambda: Finetune(input=Input(rate_hz=100.0, native_rate=True)), "--init untrained"),
        (lambda: Input(native_rate=True), "--input.rate-hz"),
        (lambda: Finetune(batch_size=0), "--batch-size"),
    ):
        with pytest.raises(ConfigError, match=words):
            build()


def test_the_task_on_the_command_line_decides_which_settings_there_are(tmp_path: Path) -> None:
    words = ["--task", "ptb-xl", "--task.label-share", "0.1", "--preset", "plain", "--out", str(tmp_path)]
    found = command_line(Finetune(), {"plain": Finetune(seed=7)}, words)
    assert type(found.task).__module__.endswith("tasks.ptb_xl") and found.task.label_share == 0.1 and found.seed == 7
    assert dataclasses.is_dataclass(found.task)
    with pytest.raises(ConfigError, match="ptb-xxl"):
        command_line(Finetune(), {}, ["--task=ptb-xxl"])
