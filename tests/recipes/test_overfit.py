"""Each recipe's objective overfits one batch of real recordings: what it minimises can be minimised.

The views of the batch are drawn once. Networks that move against the one that learns stand still: a target that
follows would let an encoder that collapses pass for one that has learnt, and a masker would hide something new.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.objectives.base import Objective, Progress
from ecgfm.train.plan import open_shards, run_loader, run_objective, run_prepare, signal_contract
from tests.recipes.small import BATCH_SIZE, RECIPES, convert_records, small_run

AT = Progress(step=0, schedule_steps=1000)
MOST_STEPS = 400


@pytest.fixture(scope="module")
def shards(ecg_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the shards."""
    return convert_records(ecg_data, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_of_one_batch_falls_nearly_to_its_floor(recipe: str, shards: Path) -> None:
    objective, batch = start(recipe, shards)
    kind = parts.kind_of(type(objective.config))
    if kind not in EXPECTED:
        pytest.fail(
            f"the objective {kind} is new: say in EXPECTED what its loss cannot fall below, and how far it comes"
        )
    floor, share, lr = EXPECTED[kind]
    least = floor(objective, batch)
    others = {id(weight) for part, _ in objective.own_optim() for weight in part.parameters()}
    trained = [weight for weight in objective.parameters() if weight.requires_grad and id(weight) not in others]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    found: list[float] = []
    while not found or found[-1] - least > share * (found[0] - least):
        assert len(found) < MOST_STEPS, f"{found[0]:g} fell to {found[-1]:g} only; the floor is {least:g}"
        losses = objective(batch, AT)
        # What an adversary pays is no part of what the encoder minimises.
        found.append(losses.get("contrast", losses["loss"]).item())
        assert found[-1] > least - 1e-4, "the floor is none"
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()


def start(recipe: str, shards: Path) -> tuple[Objective, Batch]:
    """Return a small objective as its run begins, and what it sees of its first windows."""
    run = small_run(recipe, shards)
    opened = open_shards(run)
    contract = signal_contract(run, opened)
    loader = run_loader(run, opened, contract, rank=0, ranks=1, position=0, pin_memory=False)
    objective = run_objective(run, contract)
    draws = Draws(seed=0, step=0, rows=(0, BATCH_SIZE), all_rows=BATCH_SIZE, device=torch.device("cpu"))
    return objective, objective.views(run_prepare(run, opened, contract)(next(iter(loader))), draws)


def nothing(objective: Any, batch: Batch) -> float:
    """Of errors and cross-entropies that a perfect answer makes 0, and of penalties that can all be 0."""
    return 0.0


def of_pairs(objective: Any, batch: Batch) -> float:
    """Of NT-Xent over two views of B windows.

    The logarithm of a sum of exponentials is convex: the loss is at least log(1 + (2B - 2) exp(gap / temperature)),
    where the gap is the mean cosine with a negative less that with the positive. All cosines add up to the squared
    length of a sum, which is at least 0; so the gap is at least -1 - 1 / (B - 1).
    """
    gap = -1.0 - 1.0 / (BATCH_SIZE - 1)
    return math.log1p((2 * BATCH_SIZE - 2) * math.exp(gap / objective.config.temperature))


def of_a_queue(objective: Any, batch: Batch) -> float:
    """Of a queue that is full of the keys of this very batch: a key cannot be told from its copies.

    Nor well from the others, since the keys of an encoder that has learnt nothing are near each other.
    """
    keys = objective.config.queue
    assert keys % BATCH_SIZE == 0
    for _ in range(keys // BATCH_SIZE):
        objective(batch, AT)
        objective.after_step(AT)
    return math.log1p(keys // BATCH_SIZE)


@torch.no_grad()
def of_a_teacher(objective: Any, batch: Batch) -> float:
    """Of a teacher that stands still: the entropies of what each view is to match, all answers being allowed.

    A long view is to match the other one; a short view both, whose mean is its best answer.
    """
    assert batch.views_BVLT is not None and batch.short_BSLT is not None
    cosines = [
        objective.teacher_head(objective.teacher.pool(objective.teacher(view_BLT)))
        for view_BLT in batch.views_BVLT.unbind(1)
    ]
    first_BK, second_BK = (
        (cosines_BK.double() / objective.config.teacher_temperature[0]).softmax(1) for cosines_BK in cosines
    )
    short = batch.short_BSLT.shape[1]
    mean_BK = (first_BK + second_BK) / 2
    parts_B = [torch.special.entr(one_BK).sum(1) for one_BK in (first_BK, second_BK, mean_BK)]
    return float(((parts_B[0] + parts_B[1] + 2 * short * parts_B[2]) / (2 + 2 * short)).mean())


EXPECTED: dict[str, tuple[Callable[[Any, Batch], float], float, float]] = {
    "advmask": (of_pairs, 0.01, 3e-3),
    "byol": (nothing, 0.05, 3e-3),
    "cmsc": (of_pairs, 0.01, 3e-3),
    "cpc": (nothing, 0.3, 1e-2),
    "dino": (of_a_teacher, 0.1, 3e-3),
    "jepa": (nothing, 0.3, 1e-2),
    "lejepa": (nothing, 0.1, 3e-3),
    "mae": (nothing, 0.3, 1e-2),
    "moco": (of_a_queue, 0.25, 3e-3),
    "reconstruct": (nothing, 0.3, 1e-2),
    "simclr": (of_pairs, 0.01, 3e-3),
    "supervised": (nothing, 0.1, 3e-3),
    "vicreg": (nothing, 0.02, 3e-3),
}
"""Of each objective: its floor; the share of what lies between the start and the floor that is left in the end, which
the slower ones, that predict signals or tokens, take some 250 steps for; and AdamW's learning rate."""
