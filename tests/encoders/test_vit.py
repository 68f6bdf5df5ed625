"""The vision transformer against one written out in float64."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from ecgfm.encoders import vit
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError, SignalError

TINY = ViT.Config(width=16, num_leads=3, patch_samples=10, depth=2, num_heads=2, num_registers=1)
ROTARY = replace(TINY, positions="rotary")
SIZES = {"XS": (vit.XS, 3_600_000), "S": (vit.S, 14_277_888), "B": (vit.B, 85_185_024)}


def build(config: ViT.Config = TINY, spread: float = 0.3) -> ViT:
    """Return a ViT whose weights are far from their start, so that every term counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ViT(config)
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.add_(spread * torch.randn_like(weight))
    return encoder


def signal(rows: int, tokens: int, config: ViT.Config = TINY) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, config.num_leads, tokens * config.patch_samples, generator=generator)


def slow_norm(values_D: Tensor, weight_D: Tensor) -> Tensor:
    mean = values_D.sum() / len(values_D)
    variance = ((values_D - mean) ** 2).sum() / len(values_D)
    return (values_D - mean) / math.sqrt(variance + 1e-6) * weight_D


def slow_turn(values_D: Tensor, step: int, heads: int) -> Tensor:
    """Return each head's features as complex numbers, turned: the k-th of E / 2 by step / 10000^(2 k / E) radians."""
    turned = []
    for part in values_D.reshape(heads, -1).tolist():
        half = len(part) // 2
        pairs = [
            complex(part[k], part[k + half]) * cmath.exp(1j * step / 10_000 ** (2 * k / len(part))) for k in range(half)
        ]
        turned += [*(pair.real for pair in pairs), *(pair.imag for pair in pairs)]
    return torch.tensor(turned, dtype=torch.float64)


def slow_attention(tokens_ND: Tensor, weights: dict[str, Tensor], heads: int, steps: list[int] | None = None) -> Tensor:
    """Return what each token takes from all, one head and one token at a time; with steps, they are turned by them."""
    tokens, width = tokens_ND.shape
    size = width // heads
    mixed = torch.zeros_like(tokens_ND)
    query, key, value = (tokens_ND @ part.T for part in weights["attn.qkv.weight"].reshape(3, width, width))
    if steps is not None:
        query, key = (
            torch.stack([slow_turn(row, step, heads) for row, step in zip(rows, steps, strict=True)])
            for rows in (query, key)
        )
    for head in range(heads):
        here = slice(head * size, (head + 1) * size)
        for token in range(tokens):
            score = torch.stack([query[token, here] @ key[other, here] / math.sqrt(size) for other in range(tokens)])
            share = score.exp() / score.exp().sum()
            mixed[token, here] = sum(share[other] * value[other, here] for other in range(tokens))
    return mixed @ weights["attn.proj.weight"].T


def slow_vit(encoder: ViT, signal_LT: Tensor, keep: list[int] | None = None, *, registers: bool = False) -> Tensor:
    """Return tokens_ND of one window in float64, from the weights alone; or the registers."""
    config = encoder.config
    state = {name: weight.detach().double() for name, weight in encoder.state_dict().items()}
    signal_LT = signal_LT.double()
    rotary = config.positions == "rotary"
    tokens, places = [], list(keep if keep is not None else range(signal_LT.shape[1] // config.patch_samples))
    for token in places:
        patch = signal_LT[:, token * config.patch_samples : (token + 1) * config.patch_samples]
        embedded = torch.stack([(state["patch.weight"][feature] * patch).sum() for feature in range(config.width)])
        half = config.width // 2
        angle = [token / 10_000 ** (feature / half) for feature in range(half)]
        position = torch.tensor([*map(math.sin, angle), *map(math.cos, angle)], dtype=torch.float64)
        tokens.append(embedded if rotary else embedded + position)
    hidden = torch.stack([*(state["register"][0] if config.num_registers else []), *tokens])
    steps = [0] * config.num_registers + places if rotary else None
    for block in range(config.depth):
        prefix = f"blocks.{block}."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        normed = torch.stack([slow_norm(row, weights["norm1.weight"]) for row in hidden])
        hidden = hidden + slow_attention(normed, weights, config.num_heads, steps)
        normed = torch.stack([slow_norm(row, weights["norm2.weight"]) for row in hidden])
        inner = normed @ weights["mlp.fc1.weight"].T
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))  # GELU, not its tanh approximation
        hidden = hidden + inner @ weights["mlp.fc2.weight"].T
    normed = torch.stack([slow_norm(row, state["norm.weight"]) for row in hidden])
    return normed[: config.num_registers] if registers else normed[config.num_registers :]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_papers_number_of_parameters(size: str) -> None:
    config, wanted = SIZES[size]
    with torch.device("meta"):
        encoder = ViT(config)
    assert sum(weight.numel() for weight in encoder.parameters()) == wanted


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("registers", [0, 1, 3])
@pytest.mark.parametrize("keep", [None, [0, 3, 4]])
def test_tokens_are_those_of_float64(
    registers: int, keep: list[int] | None, positions: Literal["sincos", "rotary"]
) -> None:
    encoder = build(replace(TINY, num_registers=registers, positions=positions))
    signal_BLT = signal(2, 6)
    keep_BK = None if keep is None else torch.tensor([keep, keep])
    wanted = torch.stack([slow_vit(encoder, row, keep) for row in signal_BLT])
    assert wanted.std() > 0.5
    # Float32 through two blocks; values are of order 1.
    torch.testing.assert_close(encoder(signal_BLT, keep_BK).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_rows_may_keep_different_tokens(positions: Literal["sincos", "rotary"]) -> None:
    encoder, signal_BLT = build(replace(TINY, positions=positions)), signal(2, 6)
    keep = [[0, 1, 5], [2, 3, 4]]
    wanted = torch.stack([slow_vit(encoder, row, kept) for row, kept in zip(signal_BLT, keep, strict=True)])
    torch.testing.assert_close(encoder(signal_BLT, torch.tensor(keep)).double(), wanted, atol=1e-5, rtol=1e-5)


def test_kept_tokens_do_not_depend_on_dropped_ones() -> None:
    encoder, signal_BLT = build(), signal(1, 6)
    other = signal_BLT.clone()
    other[:, :, 10:20] = 100.0  # token 1
    keep_BK = torch.tensor([[0, 2, 3, 4, 5]])
    assert torch.equal(encoder(signal_BLT, keep_BK), encoder(other, keep_BK))
    # And they do depend on each other.
    other[:, :, 20:30] = 0.0
    assert not torch.allclose(encoder(signal_BLT, keep_BK)[:, 0], encoder(other, keep_BK)[:, 0], atol=1e-3)


def test_keeping_all_tokens_is_keeping_none_back() -> None:
    encoder, signal_BLT = build(), signal(2, 6)
    kept = encoder(signal_BLT, torch.arange(6).expand(2, -1))
    # A product of kept patches adds in another order than the convolution of them all.
    torch.testing.assert_close(kept, encoder(signal_BLT), rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("lengths", [(1, 4, 9), (9, 4, 1)])
def test_any_number_of_patches_is_taken_in_any_order_of_calls(
    lengths: tuple[int, ...], positions: Literal["sincos", "rotary"]
) -> None:
    encoder = build(replace(TINY, positions=positions))
    for tokens in lengths:
        signal_BLT = signal(1, tokens)
        got = encoder(signal_BLT)
        assert got.shape == (1, tokens, 16)
        torch.testing.assert_close(got[0].double(), slow_vit(encoder, signal_BLT[0]), atol=1e-5, rtol=1e-5)


def test_rotary_positions_tell_how_far_apart_tokens_are_and_not_where() -> None:
    early, late = torch.tensor([[0, 1, 4]]), torch.tensor([[3, 4, 7]])
    signal_BLT = signal(1, 8)
    moved = signal_BLT.roll(3 * 10, dims=2)
    for positions, same in (("rotary", True), ("sincos", False)):
        encoder = build(replace(TINY, num_registers=0, positions=positions))  # type: ignore[arg-type]
        # Float32 sines of other angles.
        assert torch.allclose(encoder(signal_BLT, early), encoder(moved, late), atol=1e-4) is same
    # But where a register looks from is a place.
    encoder = build(ROTARY)
    assert not torch.allclose(encoder(signal_BLT, early), encoder(moved, late), atol=1e-3)


def test_rotary_positions_reach_over_half_an_hour() -> None:
    encoder = build(ROTARY)
    keep = [0, 3, 35_999]
    signal_BLT = signal(1, 36_000)
    # Angles of 36,000 radians are made in float64.
    torch.testing.assert_close(
        encoder(signal_BLT, torch.tensor([keep]))[0].double(), slow_vit(encoder, signal_BLT[0], keep), atol=1e-5, rtol=0
    )


def test_bfloat16_autocast_comes_close_with_rotary_positions() -> None:
    encoder, signal_BLT = build(ROTARY), signal(2, 6)
    exact_BND = encoder(signal_BLT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_BND = encoder(signal_BLT)
    # Eight bits through two blocks.
    assert (tokens_BND - exact_BND).abs().mean() < 0.03 * exact_BND.std()
    assert encoder.bfloat16()(signal_BLT).dtype == torch.bfloat16


@pytest.mark.parametrize("samples", [0, 5, 61])
def test_a_length_that_patches_do_not_fill_is_refused(samples: int) -> None:
    with pytest.raises(SignalError, match=rf"a multiple of 10, .*got \(2, 3, {samples}\)"):
        build()(torch.zeros(2, 3, samples))


def test_the_register_takes_part_and_is_not_given_out() -> None:
    encoder, signal_BLT = build(), signal(2, 6)
    before = encoder(signal_BLT)
    assert before.shape[1] == 6
    with torch.no_grad():
        encoder.get_parameter("register").add_(torch.arange(16.0))
    assert not torch.allclose(encoder(signal_BLT), before, atol=1e-3)


def test_pooling_is_the_mean_over_tokens_in_float32() -> None:
    tokens_BND = signal(2, 16).reshape(2, 30, 16).bfloat16()
    pooled = build().pool(tokens_BND)
    assert pooled.dtype == torch.float32
    # Means of 30 numbers of order 1, in float32.
    torch.testing.assert_close(pooled.double(), tokens_BND.double().mean(dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("registers", [1, 3])
def test_the_register_pool_is_the_first_register_after_the_blocks(registers: int) -> None:
    encoder = build(replace(TINY, num_registers=registers, pooling="register"))
    signal_BLT = signal(2, 6)
    tokens_BND, features_BD = encoder.encode(signal_BLT)
    wanted = torch.stack([slow_vit(encoder, row, registers=True)[0] for row in signal_BLT])
    torch.testing.assert_close(features_BD.double(), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens_BND, encoder(signal_BLT))
    with pytest.raises(AssertionError, match="not among the tokens"):
        encoder.pool(tokens_BND)


def slow_pool(encoder: ViT, tokens_ND: Tensor) -> Tensor:
    """Return one query's share of each token, head by head; projected, and with the perceptron's part added."""
    state = {name: weight.detach().double() for name, weight in encoder.state_dict().items()}
    state = {name.removeprefix("pooler."): weight for name, weight in state.items() if name.startswith("pooler.")}
    width, heads = encoder.config.width, encoder.config.num_heads

    def linear(name: str, values: Tensor) -> Tensor:
        out: Tensor = state[f"{name}.weight"] @ values + state[f"{name}.bias"]
        return out

    query = linear("q", state["latent"][0, 0])
    both = torch.stack([linear("kv", token) for token in tokens_ND])
    out = torch.zeros(width, dtype=torch.float64)
    for head in range(heads):
        here = slice(head * width // heads, (head + 1) * width // heads)
        score = torch.stack([query[here] @ row[:width][here] for row in both]) / math.sqrt(width / heads)
        share = score.exp() / score.exp().sum()
        out[here] = sum(part * row[width:][here] for part, row in zip(share, both, strict=True))
    out = linear("proj", out)
    centred = out - out.mean()
    normed = centred / (centred.square().mean() + 1e-5).sqrt() * state["norm.weight"] + state["norm.bias"]
    inner = linear("mlp.fc1", normed)
    widened: Tensor = linear("mlp.fc2", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    return out + widened


def test_the_attentive_pool_is_that_of_float64() -> None:
    encoder = build(replace(TINY, pooling="attentive"))
    signal_BLT = signal(2, 6)
    tokens_BND, features_BD = encoder.encode(signal_BLT)
    assert torch.equal(tokens_BND, encoder(signal_BLT)) and torch.equal(features_BD, encoder.pool(tokens_BND))
    wanted = torch.stack([slow_pool(encoder, row.detach().double()) for row in tokens_BND])
    assert wanted.std() > 0.1 and features_BD.dtype == torch.float32
    torch.testing.assert_close(features_BD.double(), wanted, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder.encode(signal_BLT)[1].dtype == torch.float32


def test_options_move_no_weight_but_their_own() -> None:
    plain = build(spread=0.0).state_dict()
    every: list[dict[str, Any]] = [
        {"pooling": "register"},
        {"pooling": "attentive"},
        {"positions": "rotary"},
        {"num_registers": 0},
    ]
    for options in every:
        found = build(replace(TINY, **options), spread=0.0).state_dict()
        own = {name for name in found if name.startswith("pooler.")}
        assert bool(own) is (options.get("pooling") == "attentive")
        # Without registers there is no weight for them, not even an empty one.
        assert found.keys() - own == plain.keys() - ({"register"} if "num_registers" in options else set())
        if "pooling" in options:
            assert all(torch.equal(weight, found[name]) for name, weight in plain.items())


def test_positions_are_in_no_checkpoint_and_there_is_no_bias() -> None:
    encoder = build()
    encoder(signal(1, 6))
    blocks = [
        f"blocks.{block}.{name}.weight"
        for block in range(2)
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    ]
    assert sorted(encoder.state_dict()) == sorted(["register", "patch.weight", *blocks, "norm.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30, "num_heads": 4}, "--encoder.width 30 must be a multiple of 4 and of --encoder.num-heads 4"),
        ({"width": 18, "num_heads": 3}, "--encoder.width 18 must be a multiple of 4"),
        ({"depth": 0}, "--encoder.depth must be at least 1, got 0"),
        ({"patch_samples": -1}, "--encoder.patch-samples must be at least 1, got -1"),
        ({"num_heads": 0}, "--encoder.num-heads must be at least 1, got 0"),
        ({"width": 36, "num_heads": 12, "positions": "rotary"}, "width 36 over --encoder.num-heads 12 must be even"),
        ({"num_registers": 0, "pooling": "register"}, "register needs --encoder.num-registers of at least 1"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViT.Config(**settings)
