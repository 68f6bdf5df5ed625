"""One segment of time at a random place.

Shapes: B windows, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.data.augment.base import View


def inside_segment(length_B1: Tensor, samples: int, view: View) -> Tensor:
    """Return inside_BT, bool: the samples of a segment that lies within the window, anywhere with equal chance.

    Args:
        length_B1: Its samples in each row, whole numbers of 0 to `samples`, float64.
        samples: T.
        view: Draws the place.
    """
    start_B1 = (view.uniform("start", 1) * (samples - length_B1 + 1)).floor()
    time_T = torch.arange(samples, device=start_B1.device)
    return (time_T >= start_B1) & (time_T < start_B1 + length_B1)
