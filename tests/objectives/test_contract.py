"""What every objective of the folder must do; a new file is found and held to it by itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from ecgfm import config, parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.objectives.base import Losses, Objective, Progress, build_objective, move_averages_
from tests.objectives.takers import encoder_for

WINDOW = 1000
RATE_HZ = 500.0
ROWS = 4
NAMES = parts.names("ecgfm.objectives")


@pytest.fixture(params=NAMES)
def settings(request: pytest.FixtureRequest) -> Objective.Config:
    """Return the default settings of each objective."""
    return parts.load("ecgfm.objectives", request.param, Objective).Config()  # type: ignore[type-abstract]


def build(settings: Objective.Config, seed: int = 0) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_objective(settings, encoder_for(settings, WINDOW, RATE_HZ), WINDOW, RATE_HZ)


def signal() -> Tensor:
    return torch.randn(ROWS, 12, WINDOW, generator=torch.Generator().manual_seed(0))


def views(objective: Objective, step: int = 0, rows: tuple[int, int] = (0, ROWS)) -> Batch:
    first, last = rows
    labels = objective.labels(objective.config)
    batch = Batch(
        signal_BLT=signal()[first:last],
        microvolt_per_count_B=torch.ones(last - first),
        database_B=torch.zeros(last - first, dtype=torch.int64),
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.zeros(last - first, 12),
        std_mv_BL=torch.ones(last - first, 12),
        labels_BC=(torch.arange(ROWS * len(labels)) % 3 % 2).float().view(ROWS, -1)[first:last] if labels else None,
    )
    draws = Draws(seed=0, step=step, rows=rows, all_rows=ROWS, device=torch.device("cpu"))
    return objective.views(batch, draws)


def losses(objective: Objective, *, step: int = 0, measure: bool = False) -> Losses:
    found: Losses = objective(views(objective, step), Progress(step=step, schedule_steps=100, measure=measure))
    return found


def test_the_folder_has_objectives() -> None:
    assert "jepa" in NAMES


def test_losses_are_finite_scalars(settings: Objective.Config) -> None:
    for measure in (False, True):
        found = losses(build(settings), measure=measure)
        assert found["loss"].requires_grad
        for name, value in found.items():
            assert value.shape == () and value.isfinite(), name


def test_the_gradient_reaches_every_trained_weight(settings: Objective.Config) -> None:
    objective = build(settings)
    torch.autograd.backward(losses(objective)["loss"])
    assert any(weight.requires_grad for weight in objective.encoder.parameters())
    for name, weight in objective.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all() and weight.grad.any(), name
        else:
            assert weight.grad is None, name


def test_the_published_encoder_is_of_the_kind_asked_for_in_float32(settings: Objective.Config) -> None:
    published = build(settings).published()
    assert isinstance(published, Encoder) and published.config == encoder_for(settings, WINDOW, RATE_HZ)
    # Beside the floats there may be counters: of the batches that a batch norm has seen.
    assert {value.dtype for value in published.state_dict().values()} <= {torch.float32, torch.int64}
    assert {weight.dtype for weight in published.parameters()} == {torch.float32}
    with torch.no_grad():
        assert published(signal()).shape == (ROWS, WINDOW // 25, 16)


def test_the_published_encoder_learns(settings: Objective.Config) -> None:
    objective = build(settings)
    before = {name: weight.clone() for name, weight in objective.published().state_dict().items()}
    optimizer = torch.optim.SGD((weight for weight in objective.parameters() if weight.requires_grad), lr=0.1)
    torch.autograd.backward(losses(objective)["loss"])
    optimizer.step()
    figures = move_averages_(objective, Progress(step=0, schedule_steps=100))
    assert all(isinstance(figure, float) for figure in figures.values())
    after = objective.published().state_dict()
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_what_follows_is_alike_in_float32_and_not_trained_and_what_is_followed_is(settings: Objective.Config) -> None:
    objective = build(settings)
    for target, source in objective.averages():
        follower, followed = dict(target.named_parameters()), dict(source.named_parameters())
        assert {name: weight.shape for name, weight in follower.items()} == {
            name: weight.shape for name, weight in followed.items()
        }
        assert all(weight.requires_grad for weight in followed.values())
        assert not any(weight.requires_grad for weight in follower.values())
        assert 0 <= objective.momentum(Progress(step=3, schedule_steps=100)) <= 1


def test_weights_of_16_bits_take_a_float32_signal_and_come_close(settings: Objective.Config) -> None:
    # As an engine holds them: all parameters cast, buffers left as they are.
    objective = build(settings)
    wanted = losses(objective)["loss"].item()
    for weight in objective.parameters():
        weight.data = weight.data.bfloat16()
    found = losses(objective, measure=True)
    assert all(value.isfinite() for value in found.values())
    assert found["loss"].item() == pytest.approx(wanted, rel=0.02)


def test_the_same_step_sees_the_same_views_and_another_step_others(settings: Objective.Config) -> None:
    objective = build(settings)
    first, again, other = (losses(objective, step=step)["loss"].item() for step in (3, 3, 4))
    assert first == again != other


def test_views_belong_to_rows_and_not_to_ranks(settings: Objective.Config) -> None:
    objective = build(settings)
    whole = vars(views(objective))
    halves = [vars(views(objective, rows=rows)) for rows in ((0, 2), (2, 4))]
    for name, value in whole.items():
        if isinstance(value, Tensor):
            assert torch.equal(torch.cat([half[name] for half in halves]), value), name


def test_settings_survive_the_way_to_json_and_back(settings: Objective.Config) -> None:
    written = json.loads(json.dumps(config.to_dict(settings)))
    assert written["kind"] == parts.kind_of(type(settings))
    assert config.from_dict(Objective.Config, written) == settings


def test_weights_depend_on_the_seed_alone(settings: Objective.Config) -> None:
    first, again, other = (build(settings, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in first.items())
