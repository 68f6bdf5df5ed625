"""Counts become normalised values as in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ecgfm import config
from ecgfm.data.batch import Batch
from ecgfm.data.prepare import Prepare
from ecgfm.errors import ConfigError
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.signal.contract import SignalContract

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


def test_the_batch_is_told_the_databases(batch: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert Prepare(*statistics, CLIP, databases=("ptb", "ludb", "ptb"))(batch).databases == ("ptb", "ludb", "ptb")


def test_no_value_leaves_the_clip(batch: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    ready = Prepare(*statistics, 0.5)(batch)
    assert ready.signal_BLT.abs().max() == 0.5


def test_the_statistics_are_no_part_of_a_checkpoint(statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert not Prepare(*statistics, CLIP).state_dict()


def slow_own(batch: Batch) -> np.ndarray:
    """Return the values that the windows' own mean and deviation give, one lead at a time, in float64."""
    out = np.empty(batch.signal_BLT.shape)
    for row, lead in np.ndindex(out.shape[:2]):
        counts = [int(count) for count in batch.signal_BLT[row, lead]]
        unit = float(batch.microvolt_per_count_B[row]) / 1000
        mean = sum(counts) / len(counts)
        std = unit * (sum((count - mean) ** 2 for count in counts) / len(counts)) ** 0.5
        out[row, lead] = [unit * (count - mean) / max(std, 0.005) for count in counts]
    return np.clip(out, -CLIP, CLIP)


@pytest.fixture
def odd(batch: Batch) -> Batch:
    """Return the batch with leads that are flat, all but flat, and far from zero."""
    signal = batch.signal_BLT
    signal[1, 0] = 0
    signal[1, 1] = 1234
    signal[2, 2] = 30000 + signal[2, 2] // 100
    signal[3, 3] = torch.arange(200, dtype=torch.int16) % 2
    return batch


def test_a_windows_own_scale_is_that_of_float64(odd: Batch, statistics: tuple[torch.Tensor, torch.Tensor]) -> None:
    ready = Prepare(*statistics, CLIP, per_window=True)(odd).signal_BLT
    # Float32 has 7 digits; a lead at 30000 counts has its mean to a few thousandths of a count, of 15 in its deviation.
    np.testing.assert_allclose(ready.numpy(), slow_own(odd), atol=1e-3, rtol=0)
    rest = [row for row in range(6) if row != 2]
    np.testing.assert_allclose(ready[rest].numpy(), slow_own(odd)[rest], atol=1e-5, rtol=0)


def test_a_flat_lead_stays_flat_and_one_of_a_counts_noise_is_not_blown_up(
    odd: Batch, statistics: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ready = Prepare(*statistics, CLIP, per_window=True)(odd).signal_BLT
    assert not ready[1, :2].any()
    # Half a microvolt a count, a quarter of one from the mean, of 5 at the least.
    assert ready[3, 3].abs().max() == pytest.approx(0.05, rel=1e-5)


def test_the_published_encoder_sees_what_training_saw(
    odd: Batch, statistics: tuple[torch.Tensor, torch.Tensor]
) -> None:
    encoder = {"kind": "vit", "width": 16, "depth": 1, "num_heads": 2, "patch_samples": 25, "num_leads": 12}
    mean, std = (values[0].tolist() for values in statistics)
    one = replace(odd, database_B=torch.zeros(6, dtype=torch.int64))
    millivolt = one.signal_BLT.double() * one.microvolt_per_count_B[:, None, None] / 1000
    seen = {}
    for scale, per_window in (("fixed", False), ("record", True)):
        signal = {"rate_hz": 500.0, "mean_mv": mean, "std_mv": std, "window_samples": 200, "scale": scale}
        seen[scale] = ECGEncoder(encoder=encoder, signal=signal).normalise(millivolt)
        trained = Prepare(*statistics, CLIP, per_window=per_window)(one).signal_BLT
        # As above; and millivolt in float32 are counts to 7 digits.
        torch.testing.assert_close(seen[scale], trained, atol=1e-3, rtol=0)
    assert (seen["fixed"] - seen["record"]).abs().mean() > 0.1


def test_a_contract_that_says_nothing_of_its_scale_has_a_fixed_one() -> None:
    old = {"rate_hz": 500.0, "mean_mv": [0.0] * 12, "std_mv": [0.2] * 12, "window_samples": 200}
    assert config.from_dict(SignalContract, old).scale == "fixed"
    with pytest.raises(ConfigError, match="scale"):
        config.from_dict(SignalContract, {**old, "scale": "patient"})
