"""JEPA against a version written out in float64, one record at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ecgfm.encoders
from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit import ViT
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Progress, build_objective, move_averages_
from ecgfm.objectives.jepa import JEPA, kept_tokens

ENCODER = ViT.Config(width=16, num_leads=3, patch_samples=100, depth=2, num_heads=2)
SETTINGS = JEPA.Config(min_block=2, predictor_width=12, predictor_depth=1, predictor_heads=3)
WINDOW, ROWS = 1000, 4
AT = Progress(step=0, schedule_steps=100)
MEASURED = replace(AT, measure=True)


def build(settings: JEPA.Config = SETTINGS, spread: float = 0.2) -> JEPA:
    """Return a JEPA in which encoder, predictor and target are far from their start and from each other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(settings, ENCODER, WINDOW, 500.0)
        with torch.no_grad():
            for weight in objective.parameters():
                weight.add_(spread * torch.randn_like(weight))
    assert isinstance(objective, JEPA)
    return objective


def draws(step: int = 0, rows: tuple[int, int] = (0, ROWS), all_rows: int = ROWS) -> Draws:
    return Draws(seed=5, step=step, rows=rows, all_rows=all_rows, device=torch.device("cpu"))


def batch(rows: int = ROWS, samples: int = WINDOW) -> Batch:
    return Batch(
        signal_BLT=torch.randn(rows, 3, samples, generator=torch.Generator().manual_seed(1)),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
    )


def slow_norm(values_ND: Tensor, weight_D: Tensor) -> Tensor:
    centred = values_ND - values_ND.mean(dim=1, keepdim=True)
    return centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-6).sqrt() * weight_D


def slow_blocks(tokens_ND: Tensor, state: dict[str, Tensor], prefix: str, depth: int, heads: int) -> Tensor:
    """Return the tokens after pre-norm blocks, each head by itself."""
    size = tokens_ND.shape[1] // heads
    for block in range(depth):
        here = {name: state[f"{prefix}blocks.{block}.{name}.weight"] for name in ("norm1", "attn.qkv", "attn.proj")}
        query, key, value = (slow_norm(tokens_ND, here["norm1"]) @ here["attn.qkv"].T).chunk(3, dim=1)
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weight = (query[:, part] @ key[:, part].T / math.sqrt(size)).exp()
            mixed.append(weight / weight.sum(dim=1, keepdim=True) @ value[:, part])
        tokens_ND = tokens_ND + torch.cat(mixed, dim=1) @ here["attn.proj"].T
        inner = slow_norm(tokens_ND, state[f"{prefix}blocks.{block}.norm2.weight"])
        inner = inner @ state[f"{prefix}blocks.{block}.mlp.fc1.weight"].T
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        tokens_ND = tokens_ND + inner @ state[f"{prefix}blocks.{block}.mlp.fc2.weight"].T
    return slow_norm(tokens_ND, state[f"{prefix}norm.weight"])


def slow_position(token: int, width: int) -> Tensor:
    angle = [token / 10_000 ** (2 * feature / width) for feature in range(width // 2)]
    return torch.tensor([*map(math.sin, angle), *map(math.cos, angle)], dtype=torch.float64)


def slow_encoder(signal_LT: Tensor, tokens: list[int], state: dict[str, Tensor], prefix: str) -> Tensor:
    size, weight = ENCODER.patch_samples, state[f"{prefix}patch.weight"]
    rows = [
        weight.flatten(1) @ signal_LT[:, token * size : (token + 1) * size].flatten()
        + slow_position(token, ENCODER.width)
        for token in tokens
    ]
    hidden = torch.cat([state[f"{prefix}register"][0], torch.stack(rows)])
    return slow_blocks(hidden, state, prefix, ENCODER.depth, ENCODER.num_heads)[1:]


def slow_loss(state: dict[str, Tensor], signal_BLT: Tensor, hide: list[list[int]]) -> Tensor:
    """Return the mean absolute error over hidden tokens and features of all records, in float64."""
    errors = []
    for signal_LT, hidden in zip(signal_BLT.double(), hide, strict=True):
        tokens = list(range(signal_LT.shape[1] // ENCODER.patch_samples))
        seen = [token for token in tokens if token not in hidden]
        wanted = slow_encoder(signal_LT, tokens, state, "target.").detach()
        context = slow_encoder(signal_LT, seen, state, "encoder.")
        width = state["predictor.embed.weight"].shape[0]
        given = [
            state["predictor.embed.weight"] @ row + slow_position(token, width)
            for row, token in zip(context, seen, strict=True)
        ]
        asked = [state["predictor.mask_token"][0, 0] + slow_position(token, width) for token in hidden]
        mixed = slow_blocks(torch.stack(given + asked), state, "predictor.", 1, 3)
        for row, token in zip(mixed[len(seen) :], hidden, strict=True):
            errors.append((state["predictor.project.weight"] @ row - wanted[token]).abs())
    return torch.stack(errors).mean()


def test_loss_and_gradients_are_those_of_float64() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    assert views.hide_BM is not None
    loss = objective(views, AT)["loss"]
    torch.autograd.backward(loss)
    state = {name: weight.detach().double().requires_grad_() for name, weight in objective.state_dict().items()}
    wanted = slow_loss(state, views.signal_BLT, views.hide_BM.tolist())
    torch.autograd.backward(wanted)
    assert wanted > 0.5
    # Float32 through five blocks, values of order 1. An absolute error has a gradient of its sign alone, so
    # a residual near 0 could flip one: with this seed none does.
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    compared = 0
    for name, weight in objective.named_parameters():
        if name.startswith("target."):
            assert weight.grad is None and state[name].grad is None
        else:
            slow = state[name].grad
            assert weight.grad is not None and slow is not None
            torch.testing.assert_close(weight.grad.double(), slow, rtol=1e-4, atol=1e-4 * slow.abs().max().item())
            compared += 1
    assert compared == len(state) - len(objective.target.state_dict())


def test_the_target_is_at_first_the_encoder_and_is_never_trained() -> None:
    objective = build(spread=0.0)
    for name, weight in objective.encoder.state_dict().items():
        assert torch.equal(weight, objective.target.state_dict()[name])
        assert weight.data_ptr() != objective.target.state_dict()[name].data_ptr()
    assert not any(weight.requires_grad for weight in objective.target.parameters())
    assert objective.published() is objective.target


def test_the_loss_does_not_depend_on_the_order_of_records() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    assert views.keep_BK is not None and views.hide_BM is not None
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        views, signal_BLT=views.signal_BLT[order], keep_BK=views.keep_BK[order], hide_BM=views.hide_BM[order]
    )
    # Another order of a sum in float32.
    torch.testing.assert_close(objective(shuffled, AT)["loss"], objective(views, AT)["loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mask", ["blocks", "random"])
def test_of_several_masks_the_loss_is_the_mean_and_the_target_is_asked_once(
    mask: Literal["blocks", "random"],
) -> None:
    settings = replace(SETTINGS, masks_per_window=3, mask=mask)
    objective, single = build(settings), build(replace(settings, masks_per_window=1))
    views = objective.views(batch(), draws())
    assert views.keep_BK is not None and views.hide_BM is not None and len(views.keep_BK) == 3 * ROWS
    every = torch.cat([views.keep_BK, views.hide_BM], dim=1).sort(dim=1).values
    assert (every == torch.arange(WINDOW // 100)).all()
    assert any((views.hide_BM[row] != views.hide_BM[row + 1]).any() for row in range(0, 3 * ROWS, 3))
    asked: list[object] = []
    objective.target.register_forward_hook(lambda *_: asked.append(None))
    loss = objective(views, AT)["loss"]
    each = [
        single(replace(views, keep_BK=views.keep_BK[number::3], hide_BM=views.hide_BM[number::3]), AT)["loss"]
        for number in range(3)
    ]
    assert len(asked) == 1
    torch.testing.assert_close(loss, torch.stack(each).mean(), rtol=1e-6, atol=0)
    first, other = (objective.views(batch(rows), draws(rows=span)) for rows, span in ((4, (0, 4)), (2, (2, 4))))
    assert first.hide_BM is not None and other.hide_BM is not None
    assert torch.equal(first.hide_BM[6:], other.hide_BM)  # two ranks have the masks of one


def test_the_guess_does_not_see_what_is_hidden() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    assert views.keep_BK is not None and views.hide_BM is not None

    def guess(signal_BLT: Tensor) -> Tensor:
        found: Tensor = objective.predictor(objective.encoder(signal_BLT, views.keep_BK), views.keep_BK, views.hide_BM)
        return found

    other = views.signal_BLT.clone()
    for row, hidden in enumerate(views.hide_BM.tolist()):
        for token in hidden:
            other[row, :, token * 100 : (token + 1) * 100] = 50.0
    assert torch.equal(guess(other), guess(views.signal_BLT))


@pytest.mark.parametrize("momentum", [(0.9, 0.99), (0.998, 0.9995), (0.0, 0.0), (1.0, 1.0)])
def test_the_target_follows_the_recursion_of_float64(momentum: tuple[float, float]) -> None:
    objective = build(replace(SETTINGS, momentum=momentum))
    wanted = {name: weight.double() for name, weight in objective.target.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    for step in range(20):
        with torch.no_grad():
            for weight in objective.encoder.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        figures = move_averages_(objective, Progress(step=step, schedule_steps=40))
        share = momentum[0] + (momentum[1] - momentum[0]) * step / 40
        assert figures == {"momentum": pytest.approx(share, abs=1e-12)}
        for name, weight in objective.encoder.state_dict().items():
            wanted[name] = share * wanted[name] + (1 - share) * weight.double()
    for name, weight in objective.target.state_dict().items():
        # Twenty roundings of float32 numbers of order 1.
        torch.testing.assert_close(weight.double(), wanted[name], atol=2e-6, rtol=0)


def test_a_step_that_bfloat16_would_lose_still_moves_the_target() -> None:
    objective = build(replace(SETTINGS, momentum=(0.9995, 0.9995)))
    source, target = objective.encoder.get_parameter("norm.weight"), objective.target.get_parameter("norm.weight")
    before = target.clone()
    with torch.no_grad():
        source.copy_(before + 0.1)
    move_averages_(objective, AT)
    torch.testing.assert_close(target - before, torch.full((16,), 5e-5), atol=2e-7, rtol=0)


@pytest.mark.parametrize("which", ["target", "encoder"])
def test_a_moving_average_in_bfloat16_is_refused(which: str) -> None:
    objective = build()
    getattr(objective, which).to(torch.bfloat16)
    with pytest.raises(AssertionError, match="needs float32"):
        move_averages_(objective, AT)


def test_one_share_a_batch_is_drawn_and_rounded_up() -> None:
    objective = build(replace(SETTINGS, mask_ratio=(0.5, 0.8)))
    kept = set()
    for step in range(60):
        views = objective.views(batch(samples=20_000), draws(step))
        assert views.keep_BK is not None and views.hide_BM is not None
        share = 0.2 + 0.3 * draws(step).shared("mask ratio")
        assert views.keep_BK.shape == (ROWS, math.ceil(share * 200))
        for row in torch.cat([views.keep_BK, views.hide_BM], dim=1).tolist():
            assert sorted(row) == list(range(200))
        assert len({tuple(row) for row in views.keep_BK.tolist()}) > 1
        kept.add(views.keep_BK.shape[1])
    assert min(kept) >= 40 and max(kept) <= 100
    assert min(kept) < 45 and max(kept) > 95  # of 60 uniform draws; the chance of neither is below 1 %


def test_two_ranks_have_the_masks_of_one() -> None:
    objective = build()
    whole = objective.views(batch(), draws())
    assert whole.keep_BK is not None
    halves = [objective.views(batch(2), draws(rows=rows)).keep_BK for rows in ((0, 2), (2, 4))]
    assert torch.equal(torch.cat([half for half in halves if half is not None]), whole.keep_BK)


def test_two_halves_have_the_mean_loss_of_the_whole() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    assert views.keep_BK is not None and views.hide_BM is not None
    halves = [
        replace(views, signal_BLT=views.signal_BLT[rows], keep_BK=views.keep_BK[rows], hide_BM=views.hide_BM[rows])
        for rows in (slice(0, 2), slice(2, 4))
    ]
    mean = torch.stack([objective(half, AT)["loss"] for half in halves]).mean()
    torch.testing.assert_close(mean, objective(views, AT)["loss"], rtol=1e-5, atol=0)


class Constant(nn.Module):
    """An encoder that has collapsed: the same token everywhere."""

    def forward(self, signal_BLT: Tensor) -> Tensor:
        """Return tokens_BND."""
        return torch.linspace(-3, 3, 16).expand(len(signal_BLT), signal_BLT.shape[2] // 100, -1)

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """Return features_BD."""
        return tokens_BND.mean(dim=1)


def test_a_collapsed_target_shows() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    healthy = objective(views, MEASURED)
    assert healthy["target_std"] > 0.3 and healthy["effective_rank"] > 3
    assert healthy["feature_std"] > 0.05 and healthy["feature_rank"] > 2 and healthy["uniformity"] < -0.05
    objective.target = Constant()  # type: ignore[assignment]
    collapsed = objective(views, MEASURED)
    assert collapsed["target_std"] == 0
    assert collapsed["target_std_least"] == collapsed["feature_std"] == 0
    assert collapsed["effective_rank"].item() == pytest.approx(1, abs=1e-4)
    assert collapsed["feature_rank"].item() == pytest.approx(1, abs=1e-4)
    assert collapsed["uniformity"].item() == pytest.approx(0, abs=1e-5)


def test_the_figures_are_those_of_numpy_and_cost_nothing_unless_asked_for() -> None:
    objective = build()
    views = objective.views(batch(), draws())
    assert views.hide_BM is not None
    assert objective(views, AT).keys() == {"loss"}
    figures = objective(views, MEASURED)
    with torch.no_grad():
        tokens = objective.target(views.signal_BLT).double().numpy()
    hidden = np.concatenate([tokens[row, index] for row, index in enumerate(views.hide_BM.tolist())])
    # Float32 against float64.
    assert figures["target_std"].item() == pytest.approx(hidden.std(axis=0, ddof=1).mean(), rel=1e-5)
    assert figures["target_std_least"].item() == pytest.approx(hidden.std(axis=0, ddof=1).min(), rel=1e-5)
    assert figures["effective_rank"].item() == pytest.approx(slow_rank(tokens.reshape(-1, 16)), rel=1e-4)
    pooled = tokens.mean(axis=1)
    assert figures["feature_std"].item() == pytest.approx(pooled.std(axis=0, ddof=1).mean(), rel=1e-5)
    assert figures["feature_rank"].item() == pytest.approx(slow_rank(pooled), rel=1e-4)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    pairs = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(ROWS) for j in range(i)]
    assert figures["uniformity"].item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)
    with torch.no_grad():
        context = objective.encoder(views.signal_BLT, views.keep_BK)
        guess = objective.predictor(context, views.keep_BK, views.hide_BM).double().numpy().reshape(-1, 16)
    cosine = (guess * hidden).sum(axis=1) / np.linalg.norm(guess, axis=1) / np.linalg.norm(hidden, axis=1)
    assert figures["alignment"].item() == pytest.approx((2 - 2 * cosine).mean(), rel=1e-4)


def slow_rank(tokens_ND: np.ndarray) -> float:
    values = np.linalg.svd(tokens_ND - tokens_ND.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.prod(share**-share))


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoder.Config]:
    """Yield the settings of an encoder of another file, which cannot leave tokens out."""
    (tmp_path / "keeper.py").write_text(
        "from dataclasses import dataclass\n"
        "from ecgfm.encoders.base import Encoder\n"
        "class Keeper(Encoder):\n"
        "    @dataclass(frozen=True, kw_only=True)\n"
        "    class Config(Encoder.Config):\n"
        "        width: int = 16\n"
        "        num_leads: int = 3\n"
        "        patch_samples: int = 100\n"
        "    def forward(self, signal_BLT, keep_BK=None): ...\n"
        "    def pool(self, tokens_BND): ...\n"
    )
    monkeypatch.setattr(ecgfm.encoders, "__path__", [*ecgfm.encoders.__path__, str(tmp_path)])
    yield parts.load("ecgfm.encoders", "keeper", Encoder).Config()  # type: ignore[type-abstract,call-arg]
    del sys.modules["ecgfm.encoders.keeper"]


def test_an_encoder_that_cannot_leave_tokens_out_is_refused(keeper: Encoder.Config) -> None:
    with pytest.raises(ConfigError, match="jepa needs an encoder that can leave tokens out, and keeper cannot"):
        build_objective(SETTINGS, keeper, WINDOW, 500.0)


def test_a_window_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"windows of 1050 samples are not filled by the steps of 100"):
        build_objective(SETTINGS, ENCODER, 1050, 500.0)


def test_a_block_longer_than_the_least_that_is_hidden_is_refused() -> None:
    # Ten tokens, ceil(0.25 x 10) = 3 kept at the most: 7 are hidden at the least.
    build_objective(replace(SETTINGS, min_block=7), ENCODER, WINDOW, 500.0)
    with pytest.raises(ConfigError, match=r"windows of 10 tokens hide 7 at the least, fewer than .*min-block 8"):
        build_objective(replace(SETTINGS, min_block=8), ENCODER, WINDOW, 500.0)


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (9, 3)])
def test_a_predictor_that_cannot_be_built_is_refused(width: int, heads: int) -> None:
    with pytest.raises(ConfigError, match=f"width {width} must be even and a multiple of its {heads} heads"):
        build_objective(replace(SETTINGS, predictor_width=width, predictor_heads=heads), ENCODER, WINDOW, 500.0)


def test_the_predictor_copies_the_encoder_at_half_its_width() -> None:
    with torch.device("meta"):
        objective = build_objective(JEPA.Config(min_block=2), ENCODER, WINDOW, 500.0)
    assert isinstance(objective, JEPA)
    assert objective.predictor.embed.weight.shape == (8, 16) and objective.predictor.project.weight.shape == (16, 8)
    assert len(objective.predictor.blocks) == 2
    assert not [name for name, _ in objective.named_parameters() if "bias" in name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": (0.9, 0.1)}, "--objective.mask-ratio needs 0 < low <= high < 1, got 0.9 0.1"),
        ({"mask_ratio": (0.0, 0.5)}, "--objective.mask-ratio"),
        ({"mask_ratio": (0.5, 1.0)}, "--objective.mask-ratio"),
        ({"momentum": (0.9, 1.1)}, "--objective.momentum needs values in 0..1"),
        ({"min_block": 0}, "--objective.min-block must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JEPA.Config(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "kept"), [(0.7, 60), (0.75, 50), (0.85, 30), (0.8499, 31)])
def test_kept_tokens_are_the_ceiling_of_what_is_meant(share: float, kept: int) -> None:
    assert kept_tokens(share, 200) == kept


# Tokens of each lead

APART = LeadTimeViT.Config(width=16, num_leads=3, patch_samples=100, depth=2, num_heads=2)
KIM = replace(SETTINGS, mask="random", norm_target=True, loss="smooth-l1")


def build_apart(settings: JEPA.Config) -> JEPA:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(settings, APART, WINDOW, 500.0)
        with torch.no_grad():
            for weight in objective.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
    assert isinstance(objective, JEPA)
    return objective


def slow_apart(signal_LT: Tensor, seen: list[int], state: dict[str, Tensor], prefix: str) -> dict[int, Tensor]:
    """Return the tokens of an encoder over leads and time, by their number."""
    rows = []
    for token in seen:
        lead, step = divmod(token, 10)
        embedded = state[f"{prefix}patch.weight"] @ signal_LT[lead, step * 100 : (step + 1) * 100]
        rows.append(embedded + slow_position(step, 16) + state[f"{prefix}lead"][lead])
    return dict(zip(seen, slow_blocks(torch.stack(rows), state, prefix, 2, 2), strict=True))


@pytest.mark.parametrize("settings", [KIM, replace(SETTINGS, mask_leads="apart")])
def test_with_tokens_of_each_lead_each_is_predicted_by_itself_as_in_float64(settings: JEPA.Config) -> None:
    objective = build_apart(settings)
    views = objective.views(batch(), draws())
    assert views.hide_BM is not None
    state = {name: weight.detach().double().requires_grad_() for name, weight in objective.state_dict().items()}
    losses = []
    for signal_LT, hidden in zip(views.signal_BLT.double(), views.hide_BM.tolist(), strict=True):
        target = slow_apart(signal_LT, list(range(30)), state, "target.")
        context = slow_apart(signal_LT, [token for token in range(30) if token not in hidden], state, "encoder.")
        for lead in range(3):
            given = [token for token in context if token // 10 == lead]
            asked = [token for token in hidden if token // 10 == lead]
            rows = [state["predictor.embed.weight"] @ context[token] for token in given]
            rows += [state["predictor.mask_token"][0, 0] for _ in asked]
            rows = [row + slow_position(token % 10, 12) for row, token in zip(rows, given + asked, strict=True)]
            mixed = slow_blocks(torch.stack(rows), state, "predictor.", 1, 3)[len(given) :]
            for row, token in zip(mixed, asked, strict=True):
                wanted = target[token].detach()
                if settings.norm_target:
                    wanted = (wanted - wanted.mean()) / ((wanted - wanted.mean()).square().mean() + 1e-5).sqrt()
                error = (state["predictor.project.weight"] @ row - wanted).abs()
                smooth = torch.where(error < 1, error**2 / 2, error - 0.5)
                losses.append(smooth if settings.loss == "smooth-l1" else error)
    wanted = torch.stack(losses).mean()
    loss = objective(views, AT)["loss"]
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.autograd.backward([loss, wanted])
    for name, weight in objective.named_parameters():
        if not name.startswith("target."):
            slow = state[name].grad
            assert weight.grad is not None and slow is not None and slow.any(), name
            torch.testing.assert_close(weight.grad.double(), slow, rtol=1e-4, atol=1e-4 * slow.abs().max().item())


@pytest.mark.parametrize("mask", ["blocks", "random"])
@pytest.mark.parametrize("mask_leads", ["together", "apart"])
def test_leads_hide_the_same_times_or_each_its_own_and_as_many(mask: str, mask_leads: str) -> None:
    objective = build_apart(replace(SETTINGS, mask=mask, mask_leads=mask_leads))  # type: ignore[arg-type]
    views = objective.views(batch(), draws())
    assert views.keep_BK is not None and views.hide_BM is not None
    assert torch.equal(torch.cat([views.keep_BK, views.hide_BM], dim=1).sort().values, torch.arange(30).expand(4, -1))
    hidden_BLS = torch.zeros(ROWS, 30, dtype=torch.bool).scatter_(1, views.hide_BM, True).view(ROWS, 3, 10)
    assert (hidden_BLS.sum(dim=2) == views.hide_BM.shape[1] // 3).all()
    assert bool((hidden_BLS == hidden_BLS[:, :1]).all()) is (mask_leads == "together")


def test_masks_of_leads_without_tokens_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="mask-leads apart needs an encoder with tokens of each lead, and vit has"):
        build_objective(replace(SETTINGS, mask_leads="apart"), ENCODER, WINDOW, 500.0)


def test_single_tokens_need_no_block_and_must_leave_one() -> None:
    build_objective(replace(SETTINGS, mask="random", min_block=99), ENCODER, WINDOW, 500.0)
    with pytest.raises(ConfigError, match=r"of 2 tokens .* \(0.4, 0.85\) hides 0 to 1; it must hide and leave"):
        build_objective(replace(SETTINGS, mask="random", mask_ratio=(0.4, 0.85)), ENCODER, 200, 500.0)
