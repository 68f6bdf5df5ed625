"""Values that change over a run, as pure functions of the optimizer step.

Step s counts finished optimizer steps: step 0 uses the value at 0, and the value at `steps` would be
the one after the last step.
"""

from __future__ import annotations

import math


def linear(step: int, steps: int, start: float, end: float) -> float:
    """Return the straight line from `start` at step 0 to `end` at `steps`, held outside."""
    share = min(max(step / max(steps, 1), 0.0), 1.0)
    return start + (end - start) * share


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Return half a cosine from `start` at step 0 to `end` at `steps`, held outside.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5 without restarts.
    """
    share = min(max(step / max(steps, 1), 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def warmup_cosine(step: int, steps: int, warmup_steps: int, start: float, peak: float, end: float) -> float:
    """Return a linear rise from `start` to `peak` over `warmup_steps`, then half a cosine to `end`."""
    if step < warmup_steps:
        return linear(step, warmup_steps, start, peak)
    return cosine(step - warmup_steps, steps - warmup_steps, peak, end)
