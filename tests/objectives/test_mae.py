"""The masked autoencoder against a version written out in float64, one window at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Progress, build_objective
from ecgfm.objectives.mae import MAE
from ecgfm.train.flops import window_flops

TIME = ViT.Config(width=16, num_leads=4, patch_samples=100, depth=1, num_heads=2)
APART = LeadTimeViT.Config(width=16, num_leads=4, patch_samples=100, depth=1, num_heads=2)
SETTINGS = MAE.Config(decoder_width=12, decoder_depth=1, decoder_heads=3)
WINDOW, ROWS, STEPS = 800, 4, 8
AT = Progress(step=0, schedule_steps=100)
CASES: dict[str, tuple[Encoder.Config, dict[str, Any]]] = {
    "mtae": (TIME, {}),
    "st-mem": (APART, {}),
    "mlae": (APART, {"hide": "leads", "decode": "together"}),
    "times": (APART, {"hide": "times", "norm_target": False}),
    "together": (APART, {"decode": "together", "norm_target": False}),
    "time in millivolt": (TIME, {"norm_target": False}),
}


def build(case: str, spread: float = 0.2) -> MAE:
    encoder, settings = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(replace(SETTINGS, **settings), encoder, WINDOW, 500.0)
        with torch.no_grad():
            for weight in objective.parameters():
                weight.add_(spread * torch.randn_like(weight))
    assert isinstance(objective, MAE)
    return objective


def views(objective: MAE, rows: int = ROWS) -> Batch:
    batch = Batch(
        signal_BLT=torch.randn(rows, 4, WINDOW, generator=torch.Generator().manual_seed(1)),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
        std_mv_BL=torch.arange(1.0, 4.0 * rows + 1).reshape(rows, 4) / 10,
    )
    draws = Draws(seed=5, step=0, rows=(0, rows), all_rows=rows, device=torch.device("cpu"))
    return objective.views(batch, draws)


def slow_norm(values_ND: Tensor, weight_D: Tensor) -> Tensor:
    centred = values_ND - values_ND.mean(dim=1, keepdim=True)
    return centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-6).sqrt() * weight_D


def slow_blocks(tokens_ND: Tensor, state: dict[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Return the tokens after one pre-norm block and the last norm, each head by itself."""
    size = tokens_ND.shape[1] // heads
    weight = {
        name.removeprefix(f"{prefix}blocks.0."): value for name, value in state.items() if name.startswith(prefix)
    }
    query, key, value = (slow_norm(tokens_ND, weight["norm1.weight"]) @ weight["attn.qkv.weight"].T).chunk(3, dim=1)
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        share = (query[:, part] @ key[:, part].T / math.sqrt(size)).exp()
        mixed.append(share / share.sum(dim=1, keepdim=True) @ value[:, part])
    tokens_ND = tokens_ND + torch.cat(mixed, dim=1) @ weight["attn.proj.weight"].T
    inner = slow_norm(tokens_ND, weight["norm2.weight"]) @ weight["mlp.fc1.weight"].T
    tokens_ND = tokens_ND + inner * (1 + torch.erf(inner / math.sqrt(2))) / 2 @ weight["mlp.fc2.weight"].T
    return slow_norm(tokens_ND, state[f"{prefix}norm.weight"])


def position(step: int, width: int) -> Tensor:
    angle = [step / 10_000 ** (2 * feature / width) for feature in range(width // 2)]
    return torch.tensor([*map(math.sin, angle), *map(math.cos, angle)], dtype=torch.float64)


def slow_loss(objective: MAE, state: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean squared error over hidden patches, decoding one lead at a time where the paper does."""
    assert batch.hide_BM is not None
    apart = isinstance(objective.encoder, LeadTimeViT)
    together = objective.config.decode == "together"
    errors = []
    for signal_LT, hidden in zip(batch.signal_BLT.double(), batch.hide_BM.tolist(), strict=True):
        patch = {}
        for lead in range(4 if apart else 1):
            for step in range(STEPS):
                here = signal_LT[lead] if apart else signal_LT
                patch[lead * STEPS + step] = here[..., step * 100 : (step + 1) * 100].flatten()
        seen = [token for token in patch if token not in hidden]
        tokens = []
        for token in seen:
            embedded = state["encoder.patch.weight"].flatten(1) @ patch[token] + position(token % STEPS, 16)
            tokens.append(embedded + state["encoder.lead"][token // STEPS] if apart else embedded)
        beside = [] if apart else [state["encoder.register"][0, 0]]
        context = slow_blocks(torch.stack(beside + tokens), state, "encoder.", 2)[len(beside) :]
        for group in range(1) if together or not apart else range(4):
            mine = [token for token in patch if together or not apart or token // STEPS == group]
            given, asked = [token for token in mine if token in seen], [token for token in mine if token in hidden]
            rows = [state["decoder.embed.weight"] @ context[seen.index(token)] for token in given]
            rows += [state["decoder.mask_token"][0, 0] for _ in asked]
            rows = [row + position(token % STEPS, 12) for row, token in zip(rows, given + asked, strict=True)]
            if together:
                rows = [row + state["decoder.lead"][n // STEPS] for row, n in zip(rows, given + asked, strict=True)]
            guess = slow_blocks(torch.stack(rows), state, "decoder.", 3) @ state["decoder.project.weight"].T
            for row, token in zip(guess[len(given) :], asked, strict=True):
                wanted = patch[token]
                if objective.config.norm_target:
                    variance = ((wanted - wanted.mean()) ** 2).sum() / (len(wanted) - 1)
                    wanted = (wanted - wanted.mean()) / (variance + 1e-6).sqrt()
                errors.append((row - wanted) ** 2)
    return torch.stack(errors).mean()


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_float64(case: str) -> None:
    objective = build(case)
    batch = views(objective, rows=2)
    loss = objective(batch, AT)["loss"]
    torch.autograd.backward(loss)
    state = {name: weight.detach().double().requires_grad_() for name, weight in objective.state_dict().items()}
    wanted = slow_loss(objective, state, batch)
    torch.autograd.backward(wanted)
    assert wanted > 0.5
    # Float32 through two blocks, values of order 1.
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    for name, weight in objective.named_parameters():
        slow = state[name].grad
        assert weight.grad is not None and slow is not None and slow.any(), name
        torch.testing.assert_close(weight.grad.double(), slow, rtol=1e-4, atol=1e-4 * slow.abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_as_much_is_hidden_of_each_row_as_the_paper_says(case: str) -> None:
    objective = build(case)
    batch = views(objective, rows=64)
    assert batch.keep_BK is not None and batch.hide_BM is not None
    leads = 4 if isinstance(objective.encoder, LeadTimeViT) else 1
    hidden_BLS = torch.zeros(64, leads * STEPS, dtype=torch.bool).scatter_(1, batch.hide_BM, True)
    assert not hidden_BLS.gather(1, batch.keep_BK).any()
    assert batch.keep_BK.shape[1] + batch.hide_BM.shape[1] == leads * STEPS
    hidden_BLS = hidden_BLS.view(64, leads, STEPS)
    hide = objective.config.hide
    if hide == "leads":  # 3 of 4, from the first sample to the last
        assert (hidden_BLS.all(dim=2).sum(dim=1) == 3).all() and (hidden_BLS.any(dim=2).sum(dim=1) == 3).all()
    else:  # 6 of 8 of each lead
        assert (hidden_BLS.sum(dim=2) == 6).all()
        if leads > 1:
            assert bool((hidden_BLS == hidden_BLS[:, :1]).all()) is (hide == "times")
    assert len(set(map(tuple, batch.hide_BM.tolist()))) > 1


@pytest.mark.parametrize(("share", "kept"), [(0.75, 7), (0.7, 9), (0.5, 15)])
def test_the_share_that_is_kept_is_rounded_down_as_in_the_papers_code(share: float, kept: int) -> None:
    objective = build("mtae")
    objective.config = replace(objective.config, mask_ratio=share)
    batch = replace(views(objective), signal_BLT=torch.zeros(ROWS, 4, 3000))
    keep_BK = objective.views(batch, Draws(seed=0, step=0, rows=(0, 4), all_rows=4, device=torch.device("cpu"))).keep_BK
    assert keep_BK is not None and keep_BK.shape == (ROWS, kept)


@pytest.mark.parametrize("case", ["mtae", "st-mem", "mlae"])
def test_the_guess_does_not_see_what_is_hidden(case: str) -> None:
    objective = build(case)
    batch = views(objective)
    assert batch.keep_BK is not None and batch.hide_BM is not None
    hidden_BN = torch.zeros(ROWS, objective.encoder.config.tokens(WINDOW), dtype=torch.bool)
    hidden_BN.scatter_(1, batch.hide_BM, True)
    hidden_BLT = hidden_BN.view(ROWS, -1, STEPS).repeat_interleave(100, dim=2).expand(ROWS, 4, WINDOW)
    other = replace(batch, signal_BLT=batch.signal_BLT.masked_fill(hidden_BLT, 50.0))
    seen = []
    handle = objective.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for each in (batch, other):
        objective(each, AT)
    handle.remove()
    assert torch.equal(seen[0], seen[1])


def test_two_halves_have_the_mean_loss_of_the_whole() -> None:
    objective = build("st-mem")
    batch = views(objective)
    assert batch.keep_BK is not None and batch.hide_BM is not None
    halves = [
        replace(batch, signal_BLT=batch.signal_BLT[rows], keep_BK=batch.keep_BK[rows], hide_BM=batch.hide_BM[rows])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    mean = torch.stack([objective(half, AT)["loss"] for half in halves]).mean()
    torch.testing.assert_close(mean, objective(batch, AT)["loss"], rtol=1e-5, atol=0)


def test_a_normalised_target_knows_no_amplitude_or_baseline_of_a_patch() -> None:
    objective = build("st-mem")
    batch = views(objective)
    assert batch.hide_BM is not None
    change = torch.zeros(ROWS, 4 * STEPS, dtype=torch.bool).scatter_(1, batch.hide_BM, True).view(ROWS, 4, STEPS)
    change_BLT = change.repeat_interleave(100, dim=2)
    louder = replace(batch, signal_BLT=torch.where(change_BLT, 3.0 * batch.signal_BLT + 2.0, batch.signal_BLT))
    # Of the variance 1e-6 is added, which is a millionth of it; and float32.
    torch.testing.assert_close(objective(louder, AT)["loss"], objective(batch, AT)["loss"], rtol=1e-5, atol=0)


def test_a_flat_patch_gives_no_nan() -> None:
    objective = build("st-mem")
    batch = replace(views(objective), signal_BLT=torch.full((ROWS, 4, WINDOW), 5.0))
    loss = objective(batch, AT)["loss"]
    torch.autograd.backward(loss)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in objective.parameters())


@pytest.mark.parametrize("case", ["together", "time in millivolt"])
def test_the_error_in_millivolt_is_that_of_each_leads_deviation(case: str) -> None:
    objective = build(case)
    batch = views(objective)
    assert batch.std_mv_BL is not None and batch.hide_BM is not None
    assert objective(batch, AT).keys() == {"loss"}
    figures = objective(batch, replace(AT, measure=True))
    even = objective(replace(batch, std_mv_BL=torch.full((ROWS, 4), 0.5)), replace(AT, measure=True))
    torch.testing.assert_close(even["mse_mv2"], figures["loss"] / 4, rtol=1e-5, atol=0)
    # A guess of 0 leaves the signal itself.
    torch.nn.init.zeros_(objective.decoder.project.weight)
    found = objective(batch, replace(AT, measure=True))["mse_mv2"]
    hidden_BN = torch.zeros(ROWS, objective.encoder.config.tokens(WINDOW), dtype=torch.bool)
    hidden_BN.scatter_(1, batch.hide_BM, True)
    hidden_BLT = hidden_BN.view(ROWS, -1, STEPS).repeat_interleave(100, dim=2).expand(ROWS, 4, WINDOW)
    millivolt_BLT = batch.signal_BLT * batch.std_mv_BL[:, :, None]
    torch.testing.assert_close(found, millivolt_BLT[hidden_BLT].square().mean(), rtol=1e-5, atol=0)
    assert {"effective_rank", "feature_std", "feature_rank", "uniformity"} < figures.keys()
    assert "mse_mv2" not in build("st-mem")(views(build("st-mem")), replace(AT, measure=True))


@pytest.mark.parametrize("attention", ["all", "cross"])
def test_operations_are_counted_of_what_is_kept(attention: str) -> None:
    counted = []
    for share in (0.5, 0.75):
        encoder = replace(APART, attention=attention, separators=True)  # type: ignore[arg-type]
        with torch.device("meta"):
            objective = build_objective(replace(SETTINGS, mask_ratio=share), encoder, WINDOW, 500.0)
        counted.append(window_flops(objective, num_leads=4, window_samples=WINDOW, rate_hz=500.0))
    assert counted[0] > counted[1] > 0


@pytest.mark.parametrize(
    ("encoder", "settings", "window", "message"),
    [
        (
            UResNet.Config(),
            {},
            1000,
            "needs an encoder that can leave tokens out, and u_resnet cannot; use vit or vit_l",
        ),
        (TIME, {"hide": "times"}, WINDOW, "--objective.hide times with .* needs an encoder with tokens of each lead"),
        (
            TIME,
            {"decode": "together"},
            WINDOW,
            "decode together needs an encoder with tokens of each lead, and vit has",
        ),
        (TIME, {}, 850, "windows of 850 samples are not filled by the steps of 100 that vit makes"),
        (TIME, {}, 100, "of 1 patches hides 1; it must hide and leave at least one"),
        (APART, {"mask_ratio": 0.9}, WINDOW, "0.9 of 8 patches of a lead hides 8"),
        (APART, {"mask_ratio": 0.8, "hide": "leads", "decode": "together"}, WINDOW, "0.8 of 4 leads hides 4"),
        (replace(APART, patch_samples=1), {}, WINDOW, "a patch of 1 value has no deviation"),
    ],
)
def test_a_pair_that_cannot_work_is_refused(
    encoder: Encoder.Config, settings: dict[str, Any], window: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(replace(SETTINGS, **settings), encoder, window, 500.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 1.0}, "--objective.mask-ratio must be between 0 and 1, got 1.0"),
        ({"decoder_depth": 0}, "--objective.decoder-depth must be at least 1, got 0"),
        ({"decoder_width": 14}, "--objective.decoder-width 14 must be even and a multiple of .* 3"),
        ({"hide": "leads"}, "--objective.hide leads leaves the decoder nothing .* --objective.decode together"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **settings)
