"""Numbers of a beta distribution from uniform ones, through a table of its quantiles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NODES = 4096
_STEPS = 200_000


def beta_quantiles(a: float, b: float) -> Tensor:
    """Return the quantiles of Beta(a, b) at 0, 1/4096, ... 1, float64.

    The density is integrated by the trapezoidal rule over the logit of x, where it is smooth whatever a and b
    are and falls exponentially on both sides.
    """
    reach = 45.0 / min(a, b, 1.0)
    logit = np.linspace(-reach, reach, _STEPS + 1)
    log_density = -a * np.logaddexp(0.0, -logit) - b * np.logaddexp(0.0, logit)
    density = np.exp(log_density - log_density.max())
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    at = np.interp(np.linspace(0.0, 1.0, NODES + 1), total / total[-1], logit)
    quantiles = np.exp(-np.logaddexp(0.0, -at))
    quantiles[0], quantiles[-1] = 0.0, 1.0
    return torch.from_numpy(quantiles)


def take_quantiles(quantiles: Tensor, uniform: Tensor) -> Tensor:
    """Return quantiles of numbers in [0, 1), in their type, by linear interpolation.

    Between two nodes the distribution is uniform, so the distribution function is off by less than 1/4096, and
    that only in the outermost cells, where the quantile function bends.
    """
    table = quantiles.to(uniform.dtype)
    place = uniform * NODES
    # In float32 the largest number below 1 times 4096 may round up to 4096 where numbers are not multiples of 2**-24.
    cell = place.int().clamp_(max=NODES - 1)
    # Three times as fast on a CPU as indexing by a tensor.
    flat = cell.flatten()
    low, slope = (values.index_select(0, flat).view_as(place) for values in (table, table.diff()))
    return torch.addcmul(low, slope, place.sub_(cell))
