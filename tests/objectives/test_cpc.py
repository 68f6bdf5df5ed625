"""CPC against InfoNCE written out in float64, one guess at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.lstm import LSTM
from ecgfm.encoders.s4 import S4
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Progress, build_objective
from ecgfm.objectives.cpc import CPC, other_steps
from ecgfm.train.flops import window_flops

ENCODER = S4.Config(
    width=8, num_leads=3, depth=1, state=4, patch_samples=10, kernels=(11,), strides=(10,), causal=True, norm="group"
)
SETTINGS = CPC.Config(ahead=(3, 1), negatives=7)
WINDOW, ROWS = 300, 4
AT = Progress(step=0, schedule_steps=100)


def build(settings: CPC.Config = SETTINGS, encoder: Encoder.Config = ENCODER) -> CPC:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(settings, encoder, WINDOW, 500.0)
    assert isinstance(objective, CPC)
    return objective


def draws(step: int = 0, rows: tuple[int, int] = (0, ROWS)) -> Draws:
    return Draws(seed=5, step=step, rows=rows, all_rows=ROWS, device=torch.device("cpu"))


def batch(rows: tuple[int, int] = (0, ROWS)) -> Batch:
    signal_BLT = torch.randn(ROWS, 3, WINDOW, generator=torch.Generator().manual_seed(1)).cumsum(dim=2) / 8
    return Batch(
        signal_BLT=signal_BLT[slice(*rows)],
        microvolt_per_count_B=torch.ones(rows[1] - rows[0]),
        database_B=torch.zeros(rows[1] - rows[0], dtype=torch.int64),
    )


def slow_loss(
    latents_BND: Tensor, context_BND: Tensor, maps: dict[int, Tensor], uniform_BR: Tensor, negatives: int
) -> tuple[Tensor, float]:
    """Return the mean of -log(exp(right) / (exp(right) + sum exp(wrong))) over windows, steps and maps, and the hits.

    `uniform_BR` has `negatives` numbers for each step that the nearest map guesses, in the steps' order.
    """
    steps, nearest = latents_BND.shape[1], min(maps)
    losses, hits = [], []
    for ahead, weight in maps.items():
        here = []
        for row in range(len(latents_BND)):
            for step in range(steps - ahead):
                right = step + ahead
                guess = weight @ context_BND[row, step]
                others = [place for place in range(steps) if place != right]
                first = (right - nearest) * negatives
                drawn = [
                    others[math.floor(u * (steps - 1))] for u in uniform_BR[row, first : first + negatives].tolist()
                ]
                products = torch.stack([guess @ latents_BND[row, place] for place in [right, *drawn]])
                here.append(-(products[0].exp() / products.exp().sum()).log())
                hits.append((ahead, bool((products[0] > products[1:]).all())))
        losses.append(torch.stack(here).mean())
    shares = [sum(hit for of, hit in hits if of == ahead) / sum(of == ahead for of, _ in hits) for ahead in maps]
    return torch.stack(losses).mean(), sum(shares) / len(shares)


def test_loss_accuracy_and_gradients_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build()
    views = objective.views(batch(), draws())
    given = [
        torch.randn(ROWS, WINDOW // 10, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        for seed in (2, 3)
    ]
    monkeypatch.setattr(objective.encoder, "latents", lambda signal_BLT: given[0])
    monkeypatch.setattr(objective.encoder, "context", lambda latents_BND: given[1])
    found = objective(views, AT)
    torch.autograd.backward(found["loss"])
    exact = [part.detach().double().requires_grad_() for part in given]
    maps = {
        ahead: objective.get_parameter(f"guesses.{number}.weight").detach().double().requires_grad_()
        for number, ahead in enumerate(SETTINGS.ahead)
    }
    assert views.uniform_BR is not None
    wanted, hits = slow_loss(exact[0], exact[1], maps, views.uniform_BR.double(), SETTINGS.negatives)
    torch.autograd.backward(wanted)
    # Float32, of sums of eight products.
    torch.testing.assert_close(found["loss"].double(), wanted, rtol=1e-6, atol=0)
    assert found["accuracy"].item() == pytest.approx(hits, abs=1e-6) and 0 < hits < 1
    pairs = [*zip(given, exact, strict=True)]
    pairs += [(objective.get_parameter(f"guesses.{n}.weight"), weight) for n, weight in enumerate(maps.values())]
    for mine, theirs in pairs:
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7)


def test_two_ranks_together_do_what_one_does() -> None:
    # Nothing is shared between rows, so ranks need not meet: the mean over them is what DeepSpeed makes of gradients.
    found = []
    for parts in (((0, ROWS),), ((0, 2), (2, ROWS))):
        objective = build()
        losses = []
        for rows in parts:
            loss = objective(objective.views(batch(rows), draws(rows=rows)), AT)["loss"] / len(parts)
            torch.autograd.backward(loss)
            losses.append(loss.item())
        found.append((sum(losses), [weight.grad for weight in objective.parameters()]))
    (alone, gradients), (both, summed) = found
    assert both == pytest.approx(alone, rel=1e-6)
    for one, other in zip(gradients, summed, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [14, 130, 250, 1000])
def test_negatives_are_evenly_all_steps_but_the_right_one(steps: int) -> None:
    drawn = torch.rand(1, steps - 12, 4000, generator=torch.Generator().manual_seed(0)).mul(2**24).floor().mul(2**-24)
    drawn[..., 0], drawn[..., 1] = 0.0, 1 - 2**-24  # the least and the largest number that is drawn
    other_BSK = other_steps(drawn, first=12)
    right_S1 = torch.arange(12, steps)[:, None]
    assert other_BSK.min() == 0 and other_BSK.max() == steps - 1
    assert not (other_BSK == right_S1).any()
    assert (other_BSK[0, 1:-1, 1] == steps - 1).all()
    counts = torch.bincount(other_BSK[0, 0], minlength=steps).float()
    counts = torch.cat([counts[:12], counts[13:]]) / 4000 * (steps - 1)
    # Chi squared over its degrees of freedom: 1, give or take four deviations.
    spread = (counts - 1).square().sum().item() * 4000 / (steps - 1) / (steps - 2)
    assert abs(spread - 1) < 4 * math.sqrt(2 / (steps - 2)) + 0.05


def test_the_loss_is_log_of_the_candidates_when_nothing_is_told_apart() -> None:
    objective = build()
    for guess in objective.guesses.parameters():
        torch.nn.init.zeros_(guess)
    found = objective(objective.views(batch(), draws()), AT)
    assert found["loss"].item() == pytest.approx(math.log(1 + SETTINGS.negatives), rel=1e-6)
    assert found["accuracy"].item() == 0.0


@pytest.mark.parametrize(
    "encoder",
    [ENCODER, LSTM.Config(width=8, num_leads=3, patch_samples=10, kernels=(11,), strides=(10,), norm="batch")],
)
def test_later_steps_are_learned_to_be_told_from_others(encoder: Encoder.Config) -> None:
    objective = build(CPC.Config(ahead=(3,), negatives=16), encoder)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    seen = []
    for step in range(60):
        found = objective(objective.views(batch(), draws(step)), AT)
        optimizer.zero_grad()
        torch.autograd.backward(found["loss"])
        optimizer.step()
        seen.append((found["loss"].item(), found["accuracy"].item()))
    # Chance is 1 / 17.
    assert seen[-1][0] < 0.6 * math.log(17) and seen[-1][1] > 0.4 > seen[0][1]


def test_the_operations_of_a_window_are_those_of_its_products() -> None:
    with torch.device("meta"):
        objective = build()
    steps, width = WINDOW // 10, ENCODER.width
    stem, mix = steps * width * 3 * 11, steps * width * 2 * width
    guesses = sum((steps - ahead) * width * (width + steps) for ahead in SETTINGS.ahead)
    # Forward, and backward to inputs and weights, but for the signal, which has no gradient. FFTs are not counted.
    assert window_flops(objective, num_leads=3, window_samples=WINDOW, rate_hz=500.0) == 2 * (
        2 * stem + 3 * mix + 3 * guesses
    )


def test_what_cannot_be_guessed_is_refused_with_the_reason() -> None:
    def refused(encoder: Encoder.Config, samples: int = WINDOW) -> str:
        with pytest.raises(ConfigError) as caught:
            CPC.check(SETTINGS, encoder, samples, 500.0)
        return str(caught.value)

    assert "vit is not made so; use s4 with --encoder.causal, or lstm" in refused(ViT.Config())
    assert "give --encoder.causal" in refused(S4.Config())
    assert "windows of 3 steps have none that is 3 ahead" in refused(ENCODER, 30)
    CPC.check(SETTINGS, ENCODER, 40, 500.0)
    CPC.check(SETTINGS, LSTM.Config(), 20, 500.0)
    with pytest.raises(ConfigError, match=r"--objective\.ahead"):
        CPC.Config(ahead=(2, 2))
    with pytest.raises(ConfigError, match=r"--objective\.negatives"):
        CPC.Config(negatives=0)
