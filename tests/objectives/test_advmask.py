"""Adversarial masks: both players' gradients against passes of their own, and what is hidden.

Two ranks: see test_supervised.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.errors import ConfigError
from ecgfm.objectives.advmask import AdvMask
from ecgfm.objectives.base import Progress, build_objective

ROWS, WINDOW = 6, 200
AT = Progress(step=3, schedule_steps=10)
ENCODER = ResNet1d.Config(width=8, layers=(1, 1), patch_samples=8)
SMALL = AdvMask.Config(masker_widths=(4, 6), projector=(8, 4))
NOISE = Augment(transforms=(GaussianNoise.Config(sd_mv=0.5),))
CONFIGS = {
    "four, both views": SMALL,
    "four, both views changed before": replace(SMALL, augment=NOISE),
    "three, one view": replace(SMALL, masks=3, augmented="one", sparsity_weight=0.5, sparsity_ratio=0.8),
    "one a lead": replace(SMALL, masks=12, augmented="one", sparsity_of="applied"),
    "one": replace(SMALL, masks=1, augmented="one"),
}


def build(config: AdvMask.Config) -> AdvMask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        objective = build_objective(config, ENCODER, WINDOW, 500.0)
    assert isinstance(objective, AdvMask)
    return objective


def seen(objective: AdvMask, rows: int = ROWS) -> Batch:
    batch = Batch(
        signal_BLT=torch.randn(rows, 12, WINDOW, generator=torch.Generator().manual_seed(1)),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(rows, 12),
        std_mv_BL=torch.ones(rows, 12),
    )
    return objective.views(batch, Draws(seed=0, step=3, rows=(0, rows), all_rows=rows, device=torch.device("cpu")))


def slow(objective: AdvMask, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the SimCLR loss and the penalty, from the paper's description, in float64 around the two networks."""
    config = objective.config
    assert batch.views_BVLT is not None and batch.uniform_BR is not None
    masked, penalties = [], []
    views = batch.views_BVLT.unbind(dim=1)
    different = not torch.equal(views[0], views[1]) and config.augmented == "both"
    # One batch of what the masker looks at: its norms see all of it.
    looked_at = torch.stack(views if different else views[:1], dim=1).flatten(0, 1)
    emitted = objective.masker(looked_at).double()
    if config.masks in (1, 12):
        emitted = 1 / (1 + (-emitted).exp())
    else:
        emitted = emitted.exp() / emitted.exp().sum(dim=1, keepdim=True)
    for row in range(len(emitted)):
        for mask in emitted[row]:
            counted = 1 / (1 + (-50 * (mask - 0.5)).exp()) if config.sparsity_of == "applied" else mask
            penalties.append(1 / torch.sin(math.pi * config.sparsity_ratio * counted.sum() / WINDOW))
    penalty = config.sparsity_weight * torch.stack(penalties).sum() / len(emitted)
    for row in range(ROWS):
        first = int(batch.uniform_BR[row, 0] * config.masks)
        other = [mask for mask in (*range(first + 1, config.masks), *range(first)) if mask != first]
        for view, signal in enumerate(views):
            if view == 1 and config.augmented == "one":
                masked.append(signal[row].double())
                continue
            maps = emitted[row * 2 + view] if different else emitted[row]
            if config.masks not in (1, 12):
                which = first if view == 0 else other[int(batch.uniform_BR[row, 1] * len(other))]
                maps = maps[which : which + 1]
            masked.append(signal[row].double() * (1 - 1 / (1 + (-50 * (maps - 0.5)).exp())))
    inputs = torch.stack(masked).float()
    embedding = objective.projector(objective.encoder.pool(objective.encoder(inputs))).double()
    embedding = embedding / embedding.norm(dim=1, keepdim=True)
    losses = []
    for one in range(2 * ROWS):
        cosines = {other: (embedding[one] @ embedding[other] / 0.1).exp() for other in range(2 * ROWS) if other != one}
        partner = one + 1 if one % 2 == 0 else one - 1
        losses.append(-torch.log(cosines[partner] / torch.stack(list(cosines.values())).sum()))
    return torch.stack(losses).mean(), penalty


@pytest.mark.parametrize("name", list(CONFIGS))
def test_each_player_gets_the_gradient_of_a_pass_of_its_own(name: str) -> None:
    objective = build(CONFIGS[name])
    batch = seen(objective)
    found = objective(batch, AT)
    torch.autograd.backward(found["loss"])
    encoder = [*objective.encoder.parameters(), *objective.projector.parameters()]
    masker = list(objective.masker.parameters())
    contrast, penalty = slow(objective, batch)
    # Float32 in the two networks; sharp masks multiply its rounding.
    assert found["contrast"].item() == pytest.approx(contrast.item(), rel=1e-4)
    assert found["sparsity"].item() == pytest.approx(penalty.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx((contrast + penalty).item(), rel=1e-4)
    descends = torch.autograd.grad(contrast, encoder, retain_graph=True)
    climbs = torch.autograd.grad(penalty - contrast, masker)
    for weights, wanted in ((encoder, descends), (masker, climbs)):
        size = max(float(gradient.norm()) for gradient in wanted)
        for weight, gradient in zip(weights, wanted, strict=True):
            assert weight.grad is not None
            assert float((weight.grad - gradient).norm()) <= 1e-3 * (float(gradient.norm()) + 0.01 * size)


def test_the_masker_alone_makes_it_harder() -> None:
    objective = build(replace(SMALL, sparsity_weight=0.01))
    batch = seen(objective)
    optimizer = torch.optim.Adam(objective.masker.parameters(), lr=3e-3)
    contrast = []
    for _ in range(30):
        optimizer.zero_grad()
        found = objective(batch, AT)
        torch.autograd.backward(found["loss"])
        optimizer.step()
        contrast.append(found["contrast"].item())
    assert sum(contrast[-5:]) / 5 > 1.1 * sum(contrast[:5]) / 5


def test_a_mask_hides_all_leads_of_its_samples_and_two_views_have_different_ones() -> None:
    objective = build(SMALL)
    last = objective.masker.last
    with torch.no_grad():
        last.weight.zero_()
    assert last.bias is not None
    hidden = []
    for mask in range(4):
        # One mask claims everything: whoever draws it sees nothing.
        with torch.no_grad():
            last.bias.copy_(50.0 * nn.functional.one_hot(torch.tensor(mask), 4))
        batch = seen(objective, 400)
        views_BVLT, _, _ = objective._masks(batch)
        assert batch.views_BVLT is not None
        gone_BV = (views_BVLT.abs() < 1e-6).all(dim=(2, 3))
        assert torch.equal(views_BVLT[~gone_BV], batch.views_BVLT[~gone_BV])
        hidden.append(gone_BV)
    drawn_MBV = torch.stack(hidden)
    # Each view has one mask; no window twice the same; of 400 each mask is drawn by about 100, deviation 8.7.
    assert (drawn_MBV.sum(dim=0) == 1).all() and (drawn_MBV.sum(dim=2) <= 1).all()
    assert ((drawn_MBV.sum(dim=1) > 60) & (drawn_MBV.sum(dim=1) < 140)).all()


def test_masks_of_leads_hide_their_own() -> None:
    objective = build(replace(SMALL, masks=12, augmented="one"))
    last = objective.masker.last
    assert last.bias is not None
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.where(torch.arange(12) < 5, 50.0, -50.0))
    batch = seen(objective)
    views_BVLT, _, applied_BVNT = objective._masks(batch)
    assert batch.views_BVLT is not None and applied_BVNT.shape == (ROWS, 1, 12, WINDOW)
    assert views_BVLT[:, 0, :5].abs().max() < 1e-6
    assert torch.equal(views_BVLT[:, 0, 5:], batch.views_BVLT[:, 0, 5:])
    assert torch.equal(views_BVLT[:, 1], batch.views_BVLT[:, 1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"masks": 0}, "--objective.masks"),
        ({"masker_widths": ()}, "--objective.masker-widths"),
        ({"sparsity_weight": -1.0}, "--objective.sparsity-weight"),
        ({"sparsity_ratio": 1.5}, "--objective.sparsity-ratio"),
        ({"masks": 1}, "--objective.augmented one"),
        ({"masks": 12}, "--objective.augmented one"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdvMask.check(replace(SMALL, **settings), ENCODER, WINDOW, 500.0)  # type: ignore[arg-type]
