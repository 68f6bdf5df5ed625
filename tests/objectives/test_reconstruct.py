"""Masked-segment reconstruction against NumPy in float64; tests/encoders has the U-ResNet itself."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives._by_database import settled
from ecgfm.objectives.base import Progress, build_objective
from ecgfm.objectives.reconstruct import Reconstruct
from ecgfm.train.flops import window_flops

# Group norm: each window by itself. What batch norm does over ranks is in tests/nn.
ENCODER = UResNet.Config(width=8, num_leads=3, patch_samples=10, widths=(4, 6), strides=(5, 2), kernel=5, norm="group")
SETTINGS = Reconstruct.Config(segment_s=0.1, mask_share=0.25)
WINDOW, ROWS, RATE_HZ, SEGMENT = 400, 4, 200.0, 20
AT = Progress(step=0, schedule_steps=100)
MEASURED = replace(AT, measure=True)


def build(settings: Reconstruct.Config = SETTINGS, encoder: UResNet.Config = ENCODER) -> Reconstruct:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(settings, encoder, WINDOW, RATE_HZ)
    assert isinstance(objective, Reconstruct)
    return objective


def views(objective: Reconstruct, rows: int = ROWS) -> Batch:
    batch = Batch(
        signal_BLT=torch.randn(rows, 3, WINDOW, generator=torch.Generator().manual_seed(1)),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
        rate_hz=RATE_HZ,
        std_mv_BL=torch.arange(1.0, 3.0 * rows + 1).reshape(rows, 3) / 10,
    )
    return objective.views(batch, Draws(seed=5, step=0, rows=(0, rows), all_rows=rows, device=torch.device("cpu")))


def slow_hidden(batch: Batch, leads: int) -> np.ndarray:
    """Return shape (B, L, T), set one segment at a time."""
    assert batch.hide_BM is not None
    hidden = np.zeros(batch.signal_BLT.shape, dtype=bool)
    for row, starts in enumerate(batch.hide_BM.tolist()):
        for number, start in enumerate(starts):
            lead = number // 5 if leads > 1 else slice(None)
            hidden[row, lead, start : start + SEGMENT] = True
    return hidden


@pytest.mark.parametrize("error", ["masked", "all"])
@pytest.mark.parametrize("mask_leads", ["together", "apart"])
def test_loss_gradients_and_figures_are_those_of_float64(error: str, mask_leads: str) -> None:
    objective = build(replace(SETTINGS, error=error, mask_leads=mask_leads))  # type: ignore[arg-type]
    batch = views(objective)
    hidden = slow_hidden(batch, 3 if mask_leads == "apart" else 1)
    assert (hidden.sum(axis=2) == 100).all()  # five segments of 20 in each lead: a quarter
    assert bool((hidden == hidden[:, :1]).all()) is (mask_leads == "together")
    slow = copy.deepcopy(objective).double()
    assert isinstance(slow.encoder, UResNet)
    damaged = torch.from_numpy(np.where(hidden, 0.0, batch.signal_BLT.double().numpy()))
    made_BLT = slow.decoder(slow.encoder.levels(damaged))
    square_BLT = (made_BLT - batch.signal_BLT.double()) ** 2
    counted = square_BLT[torch.from_numpy(hidden)] if error == "masked" else square_BLT
    torch.autograd.backward(counted.mean())
    found = objective(batch, MEASURED)
    torch.autograd.backward(found["loss"])
    assert counted.mean() > 0.5
    # Float32 through a dozen convolutions.
    torch.testing.assert_close(found["loss"].double(), counted.mean(), rtol=1e-5, atol=0)
    for (name, weight), other in zip(objective.named_parameters(), slow.parameters(), strict=True):
        assert weight.grad is not None and other.grad is not None and other.grad.any(), name
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(weight.grad.double(), other.grad, rtol=1e-4, atol=1e-4 * scale)
    assert batch.std_mv_BL is not None
    square = square_BLT.detach().numpy()
    millivolt = square * batch.std_mv_BL.double().numpy()[:, :, None] ** 2
    wanted = {
        "mse_masked": square[hidden].mean(),
        "mse_all": square.mean(),
        "mse_masked_mv2": millivolt[hidden].mean(),
        "mse_all_mv2": millivolt.mean(),
    }
    assert {name: found[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert found.keys() - wanted.keys() == {"loss", "effective_rank", "feature_std", "feature_rank", "uniformity"}
    assert objective(batch, AT).keys() == {"loss"}


def test_errors_of_each_database_are_exact_over_ranks_that_hold_uneven_parts_of_them() -> None:
    objective = build()
    batch = replace(
        views(objective, 8),
        databases=("ptb", "ludb", "ptb", "georgia"),
        database_B=torch.tensor([0, 1, 2, 0, 2, 1, 0, 0]),
    )
    assert batch.hide_BM is not None and batch.std_mv_BL is not None
    hidden = slow_hidden(batch, 1)
    slow = copy.deepcopy(objective).double()
    assert isinstance(slow.encoder, UResNet)
    signal = batch.signal_BLT.double()
    with torch.no_grad():
        made = slow.decoder(slow.encoder.levels(torch.where(torch.from_numpy(hidden), 0.0, signal)))
    millivolt = ((made - signal) * batch.std_mv_BL.double()[:, :, None]).numpy() ** 2
    wanted = {}
    for name, rows in {"ptb": [0, 2, 3, 4, 6, 7], "ludb": [1, 5]}.items():
        wanted[f"mse_masked_mv2.{name}"] = np.concatenate([millivolt[row][hidden[row]] for row in rows]).mean()
        wanted[f"mse_all_mv2.{name}"] = np.concatenate([millivolt[row].ravel() for row in rows]).mean()
    found = []
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            here = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
            own: dict[str, Any] = {
                name: value[here] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
            }
            parts.append(objective(replace(batch, **own), MEASURED))
        means = {name: sum(part[name].item() for part in parts) / ranks for name in parts[0]}
        found.append({name: value for name, value in settled(means).items() if "." in name})
    # Of Georgia there is no window: it is left out. Float32 through a dozen convolutions.
    assert all(figures == pytest.approx(wanted, rel=1e-5) for figures in found)
    # The last rank has no window of ludb.
    assert parts[-1]["mse_all_mv2.ludb"] == 0.0


def test_errors_are_told_at_measured_steps_and_of_a_validation_always() -> None:
    objective = build()
    batch = replace(views(objective), databases=("ptb",))
    assert objective(batch, AT).keys() == {"loss"}
    objective.eval()
    found = objective(batch, AT)
    assert {"mse_masked", "mse_all", "mse_masked_mv2", "mse_all_mv2", "mse_masked_mv2.ptb"} < found.keys()
    assert "feature_rank" not in found
    assert settled({name: value.item() for name, value in found.items()})["mse_all_mv2.ptb"] == pytest.approx(
        found["mse_all_mv2"].item()
    )


def test_what_is_hidden_does_not_reach_the_reconstruction() -> None:
    objective = build()
    batch = views(objective)
    hidden_BLT = torch.from_numpy(slow_hidden(batch, 1))
    seen = []
    handle = objective.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    objective(batch, AT)
    objective(replace(batch, signal_BLT=batch.signal_BLT.masked_fill(hidden_BLT, 9.0)), AT)
    objective(replace(batch, signal_BLT=batch.signal_BLT + 1.0), AT)
    handle.remove()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_two_halves_have_the_mean_loss_and_gradient_of_the_whole() -> None:
    objective = build()
    batch = views(objective)
    assert batch.hide_BM is not None
    torch.autograd.backward(whole := objective(batch, AT)["loss"])
    wanted = {name: weight.grad.clone() for name, weight in objective.named_parameters() if weight.grad is not None}
    objective.zero_grad()
    losses = []
    for rows in (slice(0, 2), slice(2, 4)):
        half = replace(batch, signal_BLT=batch.signal_BLT[rows], hide_BM=batch.hide_BM[rows])
        losses.append(objective(half, AT)["loss"])
    torch.autograd.backward(torch.stack(losses).mean())
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-5, atol=0)
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-5)


def test_two_steps_of_one_batch_hide_other_segments() -> None:
    objective = build()
    batch = views(objective)
    draws = Draws(seed=5, step=1, rows=(0, ROWS), all_rows=ROWS, device=torch.device("cpu"))
    assert batch.hide_BM is not None and not torch.equal(objective.views(batch, draws).hide_BM, batch.hide_BM)  # type: ignore[arg-type]
    assert len(set(map(tuple, batch.hide_BM.tolist()))) == ROWS


def test_the_published_encoder_is_the_trained_one_without_the_decoder() -> None:
    objective = build()
    assert objective.published() is objective.encoder
    assert not any(name.startswith("decoder") for name in objective.published().state_dict())


def test_operations_are_counted() -> None:
    with torch.device("meta"):
        objective = build_objective(SETTINGS, ENCODER, WINDOW, RATE_HZ)
    assert window_flops(objective, num_leads=3, window_samples=WINDOW, rate_hz=RATE_HZ) > 0


@pytest.mark.parametrize(
    ("encoder", "settings", "window", "message"),
    [
        (ViT.Config(), {}, 1000, "needs the maps that a U-ResNet's decoder joins, and vit gives none; use u_resnet"),
        (ENCODER, {}, 405, "windows of 405 samples are not filled by the steps of 10 that u_resnet makes"),
        (ENCODER, {"segment_s": 0.001}, WINDOW, "segments of 0 samples"),
        (ENCODER, {"segment_s": 1.0}, WINDOW, "0 segments of 200 samples .* do not hide a part of windows of 400"),
        (ENCODER, {"mask_share": 0.99}, WINDOW, "20 segments of 20 samples .*mask-share 0.99"),
    ],
)
def test_a_pair_that_cannot_work_is_refused(
    encoder: Encoder.Config, settings: dict[str, Any], window: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective(replace(SETTINGS, **settings), encoder, window, RATE_HZ)


@pytest.mark.parametrize("settings", [{"segment_s": 0.0}, {"mask_share": 1.0}, {"mask_share": 0.0}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"must be above 0 and --objective.mask-share .* between 0 and 1"):
        replace(SETTINGS, **settings)
