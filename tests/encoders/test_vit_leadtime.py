"""The vision transformer over leads and time against one written out in float64, and what its leads are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from ecgfm.encoders import vit_leadtime
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.errors import ConfigError, SignalError

TINY = LeadTimeViT.Config(width=16, num_leads=3, patch_samples=10, depth=2, num_heads=2)
STEPS = 4
Place = tuple[int | str, int | str]


def build(config: LeadTimeViT.Config = TINY, spread: float = 0.3) -> LeadTimeViT:
    """Return an encoder whose weights are far from their start, so that every term counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = LeadTimeViT(config)
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.add_(spread * torch.randn_like(weight))
    return encoder


def signal(rows: int = 2, steps: int = STEPS) -> Tensor:
    return torch.randn(rows, TINY.num_leads, steps * TINY.patch_samples, generator=torch.Generator().manual_seed(1))


def sees(config: LeadTimeViT.Config, one: Place, other: Place) -> bool:
    """Return whether a token attends to another, as the papers say it."""
    if config.attention == "all" or "register" in (one[0], other[0]):
        return True
    return one[0] == other[0] or one[1] == other[1]


def slow_norm(values_D: Tensor, weight_D: Tensor) -> Tensor:
    mean = values_D.sum() / len(values_D)
    return (values_D - mean) / math.sqrt(((values_D - mean) ** 2).sum() / len(values_D) + 1e-6) * weight_D


def turned(config: LeadTimeViT.Config, rows: Tensor, places: list[Place]) -> Tensor:
    """Return each row after plane rotations by its step; what has no step is left as it is."""
    out, size = rows.clone(), config.width // config.num_heads
    for row, (_, step) in enumerate(places):
        for feature in range(config.width):
            pair = feature % size % (size // 2)
            angle = step / 10_000 ** (2 * pair / size) if isinstance(step, int) else 0.0
            first = feature % size < size // 2
            other = rows[row, feature + size // 2 if first else feature - size // 2]
            out[row, feature] = math.cos(angle) * rows[row, feature] + (-1 if first else 1) * math.sin(angle) * other
    return out


def slow_attention(config: LeadTimeViT.Config, normed: Tensor, places: list[Place], qkv: Tensor) -> Tensor:
    """Return what each token takes from those that it sees, one head and one token at a time."""
    width, heads = config.width, config.num_heads
    query, key, value = (normed @ part.T for part in qkv.reshape(3, width, width))
    if config.positions == "rotary":
        query, key = (turned(config, rows, places) for rows in (query, key))
    mixed = torch.zeros_like(normed)
    for head in range(heads):
        here = slice(head * width // heads, (head + 1) * width // heads)
        for token, place in enumerate(places):
            seen = [other for other, there in enumerate(places) if sees(config, place, there)]
            score = torch.stack([query[token, here] @ key[other, here] / math.sqrt(width / heads) for other in seen])
            share = score.exp() / score.exp().sum()
            mixed[token, here] = sum(weight * value[other, here] for weight, other in zip(share, seen, strict=True))
    return mixed


def slow_vit(
    encoder: LeadTimeViT, signal_LT: Tensor, keep: Sequence[int] | None = None, leads: Sequence[int] | None = None
) -> Tensor:
    """Return tokens_ND of one window in float64, from the weights alone."""
    config, size, half = encoder.config, encoder.config.patch_samples, encoder.config.width // 2
    state = {name: weight.detach().double() for name, weight in encoder.state_dict().items()}
    leads = leads or range(config.num_leads)
    steps = signal_LT.shape[1] // size
    found: list[tuple[Place, Tensor]] = []
    for number in range(config.num_registers):
        found.append((("register", "register"), state["register"][0, number]))
    if config.separators:
        found += [((lead, "none"), state["separator"][0, 0] + state["lead"][lead]) for lead in leads]
    beside = len(found)
    for row, lead in enumerate(leads):
        for step in range(steps):
            if keep is not None and row * steps + step not in keep:
                continue
            angle = [step / 10_000 ** (feature / half) for feature in range(half)]
            position = torch.tensor([*map(math.sin, angle), *map(math.cos, angle)], dtype=torch.float64)
            position = position if config.positions == "sincos" else torch.zeros_like(position)
            patch = signal_LT[row, step * size : (step + 1) * size].double()
            found.append(((lead, step), state["patch.weight"] @ patch + position + state["lead"][lead]))
    places, hidden = [place for place, _ in found], torch.stack([token for _, token in found])
    for block in range(config.depth):
        weights = {name: state[f"blocks.{block}.{name}.weight"] for name in ("norm1", "norm2", "attn.qkv", "attn.proj")}
        normed = torch.stack([slow_norm(row, weights["norm1"]) for row in hidden])
        hidden = hidden + slow_attention(config, normed, places, weights["attn.qkv"]) @ weights["attn.proj"].T
        normed = torch.stack([slow_norm(row, weights["norm2"]) for row in hidden])
        inner = normed @ state[f"blocks.{block}.mlp.fc1.weight"].T
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = hidden + inner @ state[f"blocks.{block}.mlp.fc2.weight"].T
    return torch.stack([slow_norm(row, state["norm.weight"]) for row in hidden])[beside:]


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("attention", ["all", "cross"])
@pytest.mark.parametrize(("registers", "separators"), [(0, False), (2, False), (0, True), (1, True)])
def test_tokens_are_those_of_float64(
    registers: int,
    separators: bool,
    attention: Literal["all", "cross"],
    positions: Literal["sincos", "rotary"],
) -> None:
    config = replace(TINY, num_registers=registers, separators=separators, attention=attention, positions=positions)
    encoder, signal_BLT = build(config), signal()
    keep = [[0, 3, 5, 10], [1, 2, 8, 11]]
    whole = torch.stack([slow_vit(encoder, row) for row in signal_BLT])
    kept = torch.stack([slow_vit(encoder, row, tokens) for row, tokens in zip(signal_BLT, keep, strict=True)])
    assert whole.std() > 0.5
    # Float32 through two blocks; values are of order 1.
    torch.testing.assert_close(encoder(signal_BLT).double(), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder(signal_BLT, torch.tensor(keep)).double(), kept, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("leads", [[0], [2, 0], [1, 2], [0, 1, 2]])
def test_any_leads_are_encoded_as_themselves(leads: list[int], positions: Literal["sincos", "rotary"]) -> None:
    encoder = build(replace(TINY, separators=True, attention="cross", positions=positions))
    some_BLT = signal()[:, leads]
    wanted = torch.stack([slow_vit(encoder, row, leads=leads) for row in some_BLT])
    torch.testing.assert_close(encoder(some_BLT, leads=leads).double(), wanted, atol=1e-5, rtol=1e-5)


def test_the_register_pool_is_what_tokens_and_separators_make_of_the_first_register() -> None:
    encoder = build(replace(TINY, num_registers=2, separators=True, pooling="register"))
    tokens_BND, features_BD = encoder.encode(signal())
    assert torch.equal(tokens_BND, encoder(signal()))
    assert torch.equal(features_BD, encoder(signal(), registers=True)[:, 0])
    moved = signal()
    moved[0, 2, -1] += 3.0
    change_B = (encoder.encode(moved)[1] - features_BD).abs().amax(dim=1)
    assert change_B[0] > 1e-4 and change_B[1] == 0


def test_a_lead_that_is_not_there_is_one_whose_tokens_are_left_out() -> None:
    encoder, signal_BLT = build(), signal()
    keep_BK = torch.arange(STEPS, 2 * STEPS).expand(2, -1)
    # Other sizes of matrix products round differently.
    torch.testing.assert_close(encoder(signal_BLT, keep_BK), encoder(signal_BLT[:, 1:2], leads=[1]), atol=1e-5, rtol=0)


def test_tokens_of_another_lead_and_time_reach_each_other_through_two_blocks_of_cross_attention_not_one() -> None:
    signal_BLT = signal(1)
    other_BLT = signal_BLT.clone()
    other_BLT[:, 0, : TINY.patch_samples] += 3.0
    last = TINY.tokens(signal_BLT.shape[2]) - 1
    for depth in (1, 2):
        encoder = build(replace(TINY, depth=depth, attention="cross"))
        moved = (encoder(other_BLT) - encoder(signal_BLT))[0].abs().amax(dim=1) > 0
        assert bool(moved[last]) is (depth == 2)
        assert moved[:STEPS].all() and moved[::STEPS].all()


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        ([0, 0], r"different numbers from 0 to 2, got \[0, 0\]"),
        ([3], r"from 0 to 2, got \[3\]"),
        ([-1], r"got \[-1\]"),
        ([0, 1], r"takes \(batch, 2, samples\).*got \(2, 1, 40\)"),
    ],
)
def test_leads_that_are_not_the_signals_are_refused(leads: list[int], message: str) -> None:
    with pytest.raises(SignalError, match=message):
        build()(signal()[:, :1], leads=leads)


def test_positions_are_in_no_checkpoint_and_what_is_not_asked_for_has_no_weight() -> None:
    assert {name.split(".")[0] for name in build().state_dict()} == {"patch", "lead", "blocks", "norm"}


@pytest.mark.parametrize(("config", "millions"), [("XS", 3.56), ("ST_MEM", 85.02), ("KIM", 85.00)])
def test_sizes_are_those_stated(config: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = LeadTimeViT(getattr(vit_leadtime, config))
    assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(millions * 1e6, abs=1e4)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--encoder\.width 18 must be a multiple of 4"):
        replace(TINY, width=18)
