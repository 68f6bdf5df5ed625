"""Counts become normalised values as in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecgfm.data.batch import Batch
from ecgfm.data.prepare import Prepare

CLIP = 5.0


@pytest.fixture
def batch() -> Batch:
    """Return six windows of three databases, with the largest and smallest counts there are."""
    rng = np.random.default_rng(0)
    counts = rng.integers(-3000, 3000, (6, 12, 200)).astype(np.int16)
    counts[0, 0, :2] = 32767, -32768
    return Batch(
        signal_BLT=torch.from_numpy(counts),
        microvolt_per_count_B=torch.tensor([1.0, 4.88, 5.0, 0.5, 1.0, 2.5]),
        database_B=torch.tensor([0, 1, 2, 2, 1, 0]),
    )


@pytest.fixture
def statistics() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.normal(0, 0.3, (3, 12))), torch.from_numpy(rng.uniform(0.1, 1.5, (3, 12)))


def slow(batch: Batch, mean_mv: torch.Tensor, std_mv: torch.Tensor) -> np.ndarray:
    """Return the normalised values, one lead of one window at a time, in float64."""
    out = np.empty(batch.signal_BLT.shape)
    for row, lead in np.ndindex(out.shape[:2]):
        source = int(batch.database_B[row])
        millivolt = (
            batch.signal_BLT[row, lead].numpy().astype(np.float64) * float(batch.microvolt_per_count_B[row]) / 1000
        )
        out[row, lead] = np.clip((millivolt - float(mean_mv[source, lead])) / float(std_mv[source, lead]), -CLIP, CLIP)
    return out


def test_values_are_those_of_float64(batch: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    ready = Prepare(*statistics, CLIP)(batch)
    wanted = slow(batch, *statistics)
    assert ready.signal_BLT.dtype == torch.float32
    assert (np.abs(wanted) == CLIP).any() and (np.abs(wanted) < CLIP).mean() > 0.3
    # Float32 rounds products of up to 150 (count x factor, unclipped) by 1e-5; clipped at 5 it is far less.
    np.testing.assert_allclose(ready.signal_BLT.numpy(), wanted, atol=3e-6, rtol=0)


def test_the_counts_stay_as_they_were(batch: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = batch.signal_BLT.clone()
    ready = Prepare(*statistics, CLIP)(batch)
    assert torch.equal(batch.signal_BLT, before) and batch.signal_BLT.dtype == torch.int16
    assert ready.database_B is batch.database_B


def test_no_value_leaves_the_clip(batch: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    ready = Prepare(*statistics, 0.5)(batch)
    assert ready.signal_BLT.abs().max() == 0.5


def test_the_statistics_are_no_part_of_a_checkpoint(statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert not Prepare(*statistics, CLIP).state_dict()
