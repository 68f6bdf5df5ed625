"""Small objectives that compare crops, and heads written out in float64, for the tests of each.

`python crop_cases.py RANK FOLDER` is one of the ranks of test_crops.py.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ecgfm.data.augment.base import Augment
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.vit import ViT
from ecgfm.objectives._crops import Cropped
from ecgfm.objectives.base import Progress, build_objective
from ecgfm.objectives.byol import BYOL
from ecgfm.objectives.dino import DINO
from ecgfm.objectives.lejepa import LeJEPA
from ecgfm.objectives.vicreg import VICReg
from tests.two_ranks import one_of_two

ENCODER = ViT.Config(width=16, num_leads=3, patch_samples=50, depth=1, num_heads=2)
WINDOW, ROWS = 1000, 6
AT = Progress(step=7, schedule_steps=100)
NOTHING = Augment()
SETTINGS: dict[str, Cropped.Config] = {
    "byol": BYOL.Config(hidden=12, projection=5, augment=NOTHING),
    "dino": DINO.Config(prototypes=9, head_hidden=12, head_bottleneck=5, num_short=2, augment=NOTHING),
    "vicreg": VICReg.Config(expander=(12, 7), augment=NOTHING),
    "lejepa": LeJEPA.Config(projector=(12, 5), num_directions=8, num_short=2, augment=NOTHING),
}


def build(settings: Cropped.Config, spread: float = 0.2) -> Cropped:
    """Return an objective whose networks are far from their start and, where one follows another, from each other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(settings, ENCODER, WINDOW, 500.0)
        with torch.no_grad():
            for weight in objective.parameters():
                weight.add_(spread * torch.randn_like(weight))
    assert isinstance(objective, Cropped)
    return objective


def batch(rows: int = ROWS) -> Batch:
    """Return windows of noise."""
    return Batch(
        signal_BLT=torch.randn(rows, 3, WINDOW, generator=torch.Generator().manual_seed(1)),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
        rate_hz=500.0,
        mean_mv_BL=torch.zeros(rows, 3),
        std_mv_BL=torch.ones(rows, 3),
    )


def draws(step: int = 7, rows: tuple[int, int] = (0, ROWS)) -> Draws:
    """Return the numbers of a step."""
    return Draws(seed=5, step=step, rows=rows, all_rows=ROWS, device=torch.device("cpu"))


def rows_of(whole: Batch, rows: slice) -> Batch:
    """Return some windows of a batch."""
    cut: dict[str, Any] = {name: value[rows] for name, value in vars(whole).items() if isinstance(value, Tensor)}
    return replace(whole, **cut)


class Exact:
    """An objective's networks in float64: the weights by name, and the encoders' features.

    Args:
        objective: What is copied.
    """

    def __init__(self, objective: Cropped) -> None:
        self.modules = {name: copy.deepcopy(part).double() for name, part in objective.named_children()}
        self.weights = {
            f"{part}.{name}": weight for part, m in self.modules.items() for name, weight in m.named_parameters()
        }

    def features(self, encoder: str, signal_BLT: Tensor) -> Tensor:
        """Return the mean over an encoder's tokens."""
        tokens: Tensor = self.modules[encoder](signal_BLT.double())
        return tokens.mean(dim=1)

    def batch_norm_head(self, head: str, rows_BD: Tensor, layers: int) -> Tensor:
        """Return what a perceptron with batch norm and ReLU between its layers makes of the rows of one pass."""
        for layer in range(layers):
            place = f"{head}.{3 * layer}"
            rows_BD = rows_BD @ self.weights[f"{place}.weight"].T
            if f"{place}.bias" in self.weights:
                rows_BD = rows_BD + self.weights[f"{place}.bias"]
            if layer < layers - 1:
                mean = sum(rows_BD) / len(rows_BD)
                variance = sum((row - mean) ** 2 for row in rows_BD) / len(rows_BD)
                norm = f"{head}.{3 * layer + 1}"
                rows_BD = (rows_BD - mean) / (variance + 1e-5) ** 0.5
                rows_BD = rows_BD * self.weights[f"{norm}.weight"] + self.weights[f"{norm}.bias"]
                rows_BD = torch.where(rows_BD > 0, rows_BD, 0.0)
        return rows_BD

    def cosine_head(self, head: str, features_D: Tensor) -> Tensor:
        """Return the cosines of one window's vector with each prototype."""
        for place in (0, 2, 4):
            name = f"{head}.layers.{place}"
            features_D = self.weights[f"{name}.weight"] @ features_D + self.weights[f"{name}.bias"]
            if place < 4:
                features_D = features_D * (1 + torch.erf(features_D / math.sqrt(2))) / 2
        found = [
            prototype @ features_D / (prototype @ prototype).sqrt() / (features_D @ features_D).sqrt()
            for prototype in self.weights[f"{head}.prototypes.weight"]
        ]
        return torch.stack(found)


def compare(objective: Cropped, exact: Exact, loss: Tensor, wanted: Tensor) -> None:
    """Hold a loss and its gradients to those of float64, and see that what follows has none."""
    torch.autograd.backward(loss)
    torch.autograd.backward(wanted)
    # Float32 through a dozen layers, values of order 1.
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-5, atol=0)
    followers = {id(weight) for target, _ in objective.averages() for weight in target.parameters()}
    assert sum(weight.requires_grad for weight in objective.parameters()) + len(followers) == len(exact.weights)
    for name, weight in objective.named_parameters():
        if id(weight) in followers:
            assert weight.grad is None
            continue
        slow = exact.weights[name].grad
        assert weight.grad is not None and slow is not None, name
        torch.testing.assert_close(weight.grad.double(), slow, rtol=1e-3, atol=2e-4 * slow.abs().max().item())


def one_step(name: str, rows: slice) -> dict[str, Tensor]:
    """Return loss, gradients and buffers of a step over some rows, on each rank alone or with others."""
    objective = build(SETTINGS[name])
    whole = objective.views(batch(), draws())
    losses = objective(rows_of(whole, rows), AT)
    torch.autograd.backward(losses["loss"])
    objective.after_step(AT)
    found = {"loss": losses["loss"].detach()}
    found |= {f"grad.{key}": weight.grad for key, weight in objective.named_parameters() if weight.grad is not None}
    found |= {f"buffer.{key}": value for key, value in objective.named_buffers() if value.is_floating_point()}
    with torch.no_grad():
        found["eval"] = objective.eval()(rows_of(whole, slice(0, 2)), AT)["loss"]
    return {key: value.clone().contiguous() for key, value in found.items()}


if __name__ == "__main__":
    with one_of_two() as (own, folder):
        share = ROWS // 2
        for case in SETTINGS:
            save_file(one_step(case, slice(own * share, (own + 1) * share)), folder / f"{case}-{own}.safetensors")
