"""Views of a small batch of synthetic heart beats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfm.data.augment.base import View
from ecgfm.data.batch import Draws

ROWS, LEADS, SAMPLES, RATE_HZ = 8, 12, 1000, 500.0


@pytest.fixture(scope="session")
def beats() -> Tensor:
    """Return signal_BLT in normalised values: Gaussian beats of every sign and size, and some noise."""
    rng = np.random.default_rng(0)
    time_s = np.arange(SAMPLES) / RATE_HZ
    peak_s = rng.uniform(0.2, 0.5, (ROWS, 1, 1)) + 0.7 * np.arange(3)
    beat_B1T = np.exp(-(((time_s - peak_s[..., None]) / 0.02) ** 2) / 2).sum(axis=2)
    signal = rng.normal(1, 2, (ROWS, LEADS, 1)) * beat_B1T + rng.normal(0, 0.2, (ROWS, LEADS, SAMPLES))
    return torch.from_numpy(signal).float()


@pytest.fixture(scope="session")
def look() -> Callable[..., View]:
    """Return a function that makes a view of the rows [first, last) of `beats`."""

    def make(first: int = 0, last: int = ROWS, *, step: int = 0, number: int = 0, leads: int = LEADS) -> View:
        rng = np.random.default_rng(1)
        mean = torch.from_numpy(rng.normal(0, 0.1, (ROWS, leads))).float()
        std = torch.from_numpy(rng.uniform(0.1, 0.4, (ROWS, leads))).float()
        return View(
            draws=Draws(seed=4, step=step, rows=(first, last), all_rows=ROWS, device=torch.device("cpu")),
            rate_hz=RATE_HZ,
            mean_mv_BL=mean[first:last],
            std_mv_BL=std[first:last],
            number=number,
            place="0 it",
        )

    return make
