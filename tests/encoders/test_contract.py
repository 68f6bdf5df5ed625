"""What every encoder of the folder must do; a new file is found and held to it by itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from ecgfm import config, parts
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import SignalError
from ecgfm.nn.recompute import Blocks
from tests.encoders.small import small, stirred

TOKENS = 6
NAMES = parts.names("ecgfm.encoders")


@pytest.fixture(params=NAMES, scope="module")
def settings(request: pytest.FixtureRequest) -> Encoder.Config:
    """Return the default settings of each encoder."""
    return parts.load("ecgfm.encoders", request.param, Encoder).Config()  # type: ignore[type-abstract,call-arg]


def build(settings: Encoder.Config, seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_encoder(settings)


@pytest.fixture(scope="module")
def encoder(settings: Encoder.Config) -> Encoder:
    """Return one encoder for all tests that do not change its weights."""
    return build(settings).eval()


def signal(settings: Encoder.Config, rows: int = 2, leads: int | None = None) -> Tensor:
    shape = (rows, leads or settings.num_leads, TOKENS * settings.patch_samples)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_folder_has_encoders() -> None:
    assert "vit" in NAMES


def test_tokens_and_features_have_the_stated_shapes(encoder: Encoder, settings: Encoder.Config) -> None:
    with torch.no_grad():
        tokens_BND = encoder(signal(settings, rows=3))
        features_BD = encoder.pool(tokens_BND)
    assert tokens_BND.shape == (3, settings.tokens(TOKENS * settings.patch_samples), settings.width)
    assert features_BD.shape == (3, settings.width)
    assert features_BD.isfinite().all() and features_BD.dtype == torch.float32
    assert features_BD.std() > 0


def test_rows_do_not_see_each_other(encoder: Encoder, settings: Encoder.Config) -> None:
    together = signal(settings, rows=3)
    with torch.no_grad():
        alone = torch.cat([encoder(row[None]) for row in together])
        # Other sizes of matrix products round differently. Where nothing normalises them, tokens are large at first.
        scale = alone.std()
        torch.testing.assert_close(encoder(together) / scale, alone / scale, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_every_weight_gets_a_finite_gradient(settings: Encoder.Config, training: bool) -> None:
    encoder = build(settings).train(training)
    with torch.no_grad():
        for weight in encoder.parameters():
            # Away from the start: what lies before a weight that begins at zero gets its gradient a step later.
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    # Any fixed direction that is not constant: a final layer norm makes the plain sum blind.
    tokens_BND = encoder(signal(settings))
    direction = torch.randn(tokens_BND.shape, generator=torch.Generator().manual_seed(1))
    (tokens_BND * direction).sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all() and weight.grad.any(), name


@pytest.mark.parametrize("more", [-1, 1])
def test_another_number_of_leads_is_refused_with_the_shape(
    encoder: Encoder, settings: Encoder.Config, more: int
) -> None:
    with pytest.raises(SignalError, match=rf"{settings.num_leads}.*got \(2, {settings.num_leads + more}, "):
        encoder(signal(settings, leads=settings.num_leads + more))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_length_that_steps_fill_is_taken(encoder: Encoder, settings: Encoder.Config, steps: int) -> None:
    with torch.no_grad():
        tokens_BND = encoder(torch.ones(1, settings.num_leads, steps * settings.patch_samples))
    assert tokens_BND.shape == (1, settings.tokens(steps * settings.patch_samples), settings.width)
    assert settings.tokens(settings.patch_samples) == (settings.num_leads if settings.leads_apart else 1)
    assert encoder.pool(tokens_BND).shape == (1, settings.width)


def test_another_length_is_refused_with_the_shape(encoder: Encoder, settings: Encoder.Config) -> None:
    step = settings.patch_samples
    for samples in (0, step - 1, 3 * step + 1) if step > 1 else (0,):
        with pytest.raises(SignalError, match=rf"multiple of {step}.*got \(2, .*{samples}\)"):
            encoder(torch.zeros(2, settings.num_leads, samples))


def test_encoding_in_evaluation_changes_nothing(encoder: Encoder, settings: Encoder.Config) -> None:
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(encoder(signal(settings)), encoder(signal(settings)))
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_training_depends_on_no_global_randomness(settings: Encoder.Config) -> None:
    encoder = build(settings).train()
    assert torch.equal(encoder(signal(settings)), encoder(signal(settings)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lstm"])
def test_computing_again_for_the_backward_pass_changes_no_bit(name: str) -> None:
    # Of an LSTM nothing is computed again, and the engine says so.
    found = []
    for recomputed in (False, True):
        encoder = stirred(small(name))
        calls: list[nn.Module] = []
        (blocks,) = (module for module in encoder.modules() if isinstance(module, Blocks))
        blocks.recomputed = recomputed
        for block in blocks:
            block.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        _, features_BD = encoder.encode(signal(encoder.config, rows=3))
        torch.autograd.backward(features_BD.square().mul(torch.arange(encoder.config.width)).sum())
        assert len(calls) == len(blocks) * (2 if recomputed else 1)
        found.append({name: weight.grad for name, weight in encoder.named_parameters()} | dict(encoder.named_buffers()))
    # Gradients, and running averages, which the second time does not move.
    for name, value in found[0].items():
        again = found[1][name]
        assert value is not None and again is not None and torch.equal(value, again), name


def test_settings_survive_the_way_to_json_and_back(encoder: Encoder, settings: Encoder.Config) -> None:
    written = json.loads(json.dumps(config.to_dict(settings)))
    assert written["kind"] == parts.kind_of(type(settings))
    assert config.from_dict(Encoder.Config, written) == settings
    assert encoder.config == settings


def test_weights_depend_on_the_seed_alone(encoder: Encoder, settings: Encoder.Config) -> None:
    first, again, other = encoder, build(settings, 0), build(settings, 2)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert any(not torch.equal(weight, other.state_dict()[name]) for name, weight in first.state_dict().items())


def test_the_state_is_float32_and_all_of_it(encoder: Encoder, settings: Encoder.Config) -> None:
    fresh = build(settings, 2).eval()
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    with torch.no_grad():
        wanted = encoder(signal(settings))
        assert not torch.equal(fresh(signal(settings)), wanted)
        fresh.load_state_dict(encoder.state_dict())
        assert torch.equal(fresh(signal(settings)), wanted)


def test_an_encoder_that_drops_tokens_encodes_the_kept_ones_only(encoder: Encoder, settings: Encoder.Config) -> None:
    if not encoder.drops_tokens:
        pytest.skip("an encoder of this kind has no tokens to leave out")
    last = settings.tokens(TOKENS * settings.patch_samples) - 1
    keep_BK = torch.tensor([[0, 2, last], [1, 2, 3]])
    first = signal(settings)
    second = first.clone()
    for row in range(2):
        for token in set(range(settings.tokens(first.shape[2]))) - set(keep_BK[row].tolist()):
            leads = slice(token // TOKENS, token // TOKENS + 1) if settings.leads_apart else slice(None)
            step = token % TOKENS
            second[row, leads, step * settings.patch_samples : (step + 1) * settings.patch_samples] = 9.0
    with torch.no_grad():
        tokens_BKD = encoder(first, keep_BK)
        assert tokens_BKD.shape == (2, 3, settings.width)
        assert torch.equal(encoder(second, keep_BK), tokens_BKD)
        assert not torch.equal(encoder(second), encoder(first))
