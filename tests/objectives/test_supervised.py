"""The supervised loss against the formula, and on two ranks that know different labels.

`python test_supervised.py RANK FOLDER` is one of the ranks; it does the adversary's objective too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.errors import ConfigError
from ecgfm.objectives.advmask import AdvMask
from ecgfm.objectives.base import Objective, Progress, build_objective
from ecgfm.objectives.supervised import Supervised
from tests.two_ranks import one_of_two, run_two_ranks

ROWS, WINDOW = 8, 256
AT = Progress(step=3, schedule_steps=10)
ENCODER = ResNet1d.Config(width=8, layers=(1, 1), patch_samples=8)
LABELS = ("sex", "scp:AFIB", "snomed:426783006")
CONFIGS: dict[str, Objective.Config] = {
    "supervised": Supervised.Config(labels=LABELS),
    "advmask": AdvMask.Config(masker_widths=(4, 6), projector=(8, 4)),
}


def build(config: Objective.Config) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_objective(config, ENCODER, WINDOW, 500.0)


def batch(objective: Objective, rows: tuple[int, int] = (0, ROWS)) -> Batch:
    """Return rows of a step, of which the first half knows one label in six, and the other two in three."""
    generator = torch.Generator().manual_seed(1)
    signal_BLT = torch.randn(ROWS, 12, WINDOW, generator=generator)
    labels_BC = torch.randint(0, 2, (ROWS, 3), generator=generator).float()
    labels_BC[: ROWS // 2, :2] = torch.nan
    labels_BC[0, 2] = torch.nan
    labels_BC[ROWS // 2 :, 1] = torch.nan
    own = slice(*rows)
    count = rows[1] - rows[0]
    found = Batch(
        signal_BLT=signal_BLT[own],
        microvolt_per_count_B=torch.ones(count),
        database_B=torch.zeros(count, dtype=torch.int64),
        labels_BC=labels_BC[own],
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(count, 12),
        std_mv_BL=torch.ones(count, 12),
    )
    return objective.views(found, Draws(seed=0, step=3, rows=rows, all_rows=ROWS, device=torch.device("cpu")))


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in objective.named_parameters() if weight.grad is not None}


def slow_loss(objective: Supervised, tokens_BND: Tensor, seen: Batch) -> Tensor:
    """Return the loss of given tokens, in float64 and record by record, from the description of the head."""
    assert seen.labels_BC is not None and seen.uniform_BR is not None
    pooled = torch.stack([torch.cat([one.max(dim=0).values, one.mean(dim=0)]) for one in tokens_BND.double()])
    drawn, start = seen.uniform_BR, 0
    for number, (norm, layer) in enumerate(zip(objective.norms, objective.layers, strict=True)):
        share = (0.25, 0.5)[number]
        pooled = pooled.clamp(min=0) if number else pooled
        mean, square = pooled.sum(0) / ROWS, (pooled**2).sum(0) / ROWS
        pooled = (pooled - mean) / (square - mean**2 + 1e-5).sqrt()
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()  # type: ignore[operator]
        stays = drawn[:, start : start + pooled.shape[1]] >= share
        start += pooled.shape[1]
        pooled = torch.where(stays, pooled / (1 - share), 0.0)
        pooled = pooled @ layer.weight.double().T + layer.bias.double()  # type: ignore[operator]
    probability = 1 / (1 + (-pooled).exp())
    total, known = torch.zeros((), dtype=torch.float64), 0
    for row in range(ROWS):
        for column in range(3):
            label = seen.labels_BC[row, column].item()
            if not math.isnan(label):
                chance = probability[row, column] if label else 1 - probability[row, column]
                total, known = total - chance.log(), known + 1
    return total / known


def test_loss_and_gradients_are_the_cross_entropy_of_the_known_labels() -> None:
    objective = build(CONFIGS["supervised"])
    assert isinstance(objective, Supervised)
    seen = batch(objective)
    found = objective(seen, AT)
    torch.autograd.backward(found["loss"])
    fast = gradients(objective)
    objective.zero_grad()
    slow = slow_loss(objective, objective.encoder(seen.signal_BLT), seen)
    torch.autograd.backward(slow)
    # Float32 through two batch norms of eight rows.
    assert found["loss"].item() == pytest.approx(slow.item(), rel=1e-5)
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-3, atol=1e-5)
    assert found["known"].item() == pytest.approx((ROWS // 2 - 1 + ROWS) / (3 * ROWS))


def test_an_unknown_label_is_asked_of_nobody() -> None:
    objective = build(CONFIGS["supervised"])
    assert isinstance(objective, Supervised)
    last = objective.layers[-1]
    torch.autograd.backward(objective(batch(objective), AT)["loss"])
    assert isinstance(last.bias.grad, Tensor)
    assert last.bias.grad[1] == 0 and last.bias.grad[[0, 2]].all()


def test_a_batch_in_which_nothing_is_known_moves_nothing() -> None:
    objective = build(CONFIGS["supervised"])
    seen = batch(objective)
    found = objective(replace(seen, labels_BC=torch.full((ROWS, 3), torch.nan)), AT)
    torch.autograd.backward(found["loss"])
    assert found["loss"].item() == 0 and not any(gradient.any() for gradient in gradients(objective).values())


def test_evaluation_drops_nothing() -> None:
    objective = build(CONFIGS["supervised"]).eval()
    seen = batch(objective)
    with torch.no_grad():
        found = objective(seen, AT)["loss"]
        assert torch.equal(found, objective(replace(seen, uniform_BR=None), AT)["loss"])
        assert not torch.equal(found, objective.train()(seen, AT)["loss"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": ("shared19",)}, "shared18"),
        ({"labels": ()}, "must be given"),
        ({"labels": ("sex", "sex:female")}, "sex:female"),
        ({"dropout": 1.0}, "--objective.dropout"),
        ({"hidden": 0}, "--objective.hidden"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Supervised.Config(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """Return loss and gradients of each of two ranks, by objective."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(__file__, folder)
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)] for name in CONFIGS}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_ranks_do_what_one_does_with_all_rows(name: str, ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    objective = build(CONFIGS[name])
    loss = objective(batch(objective), AT)["loss"]
    torch.autograd.backward(loss)
    first, second = ranks[name]
    assert (first.pop("loss") + second.pop("loss")).item() / 2 == pytest.approx(loss.item(), rel=1e-5)
    for weight, gradient in gradients(objective).items():
        # Float32 sums in another order; the masker's masks are steep.
        torch.testing.assert_close((first[weight] + second[weight]) / 2, gradient, rtol=1e-3, atol=2e-5)


if __name__ == "__main__":
    with one_of_two() as (own, folder):
        for name, config in CONFIGS.items():
            objective = build(config)
            found = objective(batch(objective, (own * ROWS // 2, (own + 1) * ROWS // 2)), AT)
            torch.autograd.backward(found["loss"])
            save_file({"loss": found["loss"].detach(), **gradients(objective)}, folder / f"{name}-{own}.safetensors")
