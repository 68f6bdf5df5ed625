"""S4 and LSTM over a stem: sizes, what a step sees, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ecgfm.encoders._contextual import Contextual
from ecgfm.encoders.base import build_encoder
from ecgfm.encoders.lstm import LSTM
from ecgfm.encoders.s4 import S4
from ecgfm.errors import ConfigError

SMALL: dict[str, Contextual.Config] = {
    "s4": S4.Config(width=8, num_leads=3, depth=2, patch_samples=6, kernels=(7, 3), strides=(3, 2), causal=True),
    "both-ways": S4.Config(width=8, num_leads=3, depth=2, patch_samples=6, kernels=(7, 3), strides=(3, 2)),
    "lstm": LSTM.Config(width=8, num_leads=3, patch_samples=6, kernels=(7, 3), strides=(3, 2)),
}


def build(settings: Contextual.Config) -> Contextual:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(settings)
    assert isinstance(encoder, Contextual)
    return encoder


def signal(steps: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 6 * steps, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [(S4.Config(causal=True), 2_963_456), (S4.Config(), 2_979_840), (LSTM.Config(), 5_023_744)],
)
def test_the_default_sizes(settings: Contextual.Config, parameters: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(settings)
    assert sum(weight.numel() for weight in encoder.parameters()) == parameters


@pytest.mark.parametrize("name", SMALL)
def test_a_causal_step_sees_all_samples_up_to_its_own_and_none_later(name: str) -> None:
    encoder, first = build(SMALL[name]).eval(), signal(12)
    with torch.no_grad():
        for sample in (6 * 5, 6 * 6 - 1):  # the first and the last sample of step 5
            second = first.clone()
            second[..., sample] += 10.0
            change_N = (encoder(second) - encoder(first)).abs().amax(dim=(0, 2))
            # Where nothing is seen, the FFT's rounding.
            assert (change_N[5:] > 1e-4).all() and (change_N[:4] > 1e-4).all() == encoder.config.sees_later()
            assert encoder.config.sees_later() or (change_N[:5] < 1e-5).all()


@pytest.mark.parametrize(("causal", "before"), [(True, 4), (False, 2)])
def test_the_stem_is_convolution_batch_norm_and_relu(causal: bool, before: int) -> None:
    encoder = build(
        S4.Config(width=8, num_leads=3, depth=1, patch_samples=3, kernels=(7,), strides=(3,), causal=causal)
    )
    given = signal(5)
    weight = encoder.get_parameter("stem.1.weight")
    padded = torch.zeros(2, 3, 4 + 30, dtype=torch.float64)
    padded[..., before : before + 30] = given.double()
    rows = [(padded[:, None, :, 3 * step : 3 * step + 7] * weight.double()).sum((2, 3)) for step in range(10)]
    steps_BND = torch.stack(rows, dim=1)
    centred = steps_BND - steps_BND.mean((0, 1))
    wanted = (centred / (centred.square().mean((0, 1)) + 1e-5).sqrt()).clamp(min=0)
    # Float32 sums of 21 products.
    torch.testing.assert_close(encoder.latents(given).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_comes_close(name: str) -> None:
    encoder = build(SMALL[name])
    exact_BND = encoder(signal(20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_BND = encoder(signal(20))
    # Eight bits, over two convolutions and two blocks, relative to the spread of the features.
    assert (tokens_BND.float() - exact_BND).abs().mean() < 0.02 * exact_BND.std()


def test_a_stem_that_leaves_samples_out_is_refused_and_so_is_an_odd_state() -> None:
    with pytest.raises(ConfigError, match="none below its stride"):
        S4.Config(patch_samples=5, kernels=(3,), strides=(5,))
    with pytest.raises(ConfigError, match="one for each"):
        LSTM.Config(patch_samples=5, kernels=(5, 1), strides=(5,))
    with pytest.raises(ConfigError, match="must be 5"):
        S4.Config(patch_samples=10)
    with pytest.raises(ConfigError, match=r"--encoder\.state 7 must be even"):
        S4.Config(state=7)
