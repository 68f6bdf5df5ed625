"""recipes/jepa_vit.py, in which the loss or the gradient of chosen steps is not finite on one rank.

The environment says which: FAIL_STEPS, numbers of steps with a blank between; FAIL_WHAT, loss or gradient;
FAIL_RANK.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from ecgfm.data.batch import Batch
from ecgfm.objectives.base import Losses, Progress
from ecgfm.objectives.jepa import JEPA

STEPS = [int(word) for word in os.environ["FAIL_STEPS"].split()]
sound = JEPA.forward


def forward(self: JEPA, batch: Batch, at: Progress) -> Losses:
    losses = sound(self, batch, at)
    if at.step + 1 in STEPS and os.environ["RANK"] == os.environ["FAIL_RANK"]:
        if os.environ["FAIL_WHAT"] == "loss":
            losses["loss"] = losses["loss"] + float("inf")  # whose gradient is finite
        else:
            losses["loss"].register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]
    return losses


JEPA.forward = forward  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "jepa_vit.py"), run_name="__main__")
