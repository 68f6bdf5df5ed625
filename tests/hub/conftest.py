"""A small encoder, and recordings that are ECGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGEncoder, config
from ecgfm.databases.base import load_database
from ecgfm.encoders.vit import ViT
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract

RATE_HZ = 500.0
WINDOW = 5000
MadeUp = Callable[[int, int], NDArray[np.float64]]


@pytest.fixture(scope="session")
def contract() -> SignalContract:
    return SignalContract(
        rate_hz=RATE_HZ,
        mean_mv=tuple(0.01 * lead for lead in range(12)),
        std_mv=tuple(0.2 + 0.02 * lead for lead in range(12)),
        clip=3.0,
        window_samples=WINDOW,
    )


@pytest.fixture
def encoder(contract: SignalContract) -> ECGEncoder:
    """An encoder with random weights, large enough for features to differ."""
    settings = ViT.Config(width=16, depth=2, num_heads=2, patch_samples=50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4.0)
    return model.eval()


@pytest.fixture
def ecg() -> NDArray[np.float64]:
    """10 s of narrow peaks and slow waves in twelve leads that keep Einthoven's law, in mV."""
    return _made_up(5000, 0)


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    """Return a function of (samples, seed) that makes signals up."""
    return _made_up


def _made_up(samples: int, seed: int) -> NDArray[np.float64]:
    """Return shape (12, samples) at 500 Hz."""
    draw = np.random.default_rng(seed)
    time = np.arange(samples) / RATE_HZ
    phase = (time * draw.uniform(1.0, 1.6)) % 1.0
    waves = np.stack(
        [np.exp(-(((phase - at) / width) ** 2)) for at, width in ((0.3, 0.02), (0.33, 0.015), (0.6, 0.06))]
    )
    signal = draw.normal(size=(12, 3)) @ waves + 0.01 * draw.normal(size=(12, samples))
    one, two = signal[0], signal[1]
    signal[2:6] = two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return np.asarray(signal)


@pytest.fixture(scope="session")
def real_ecgs(ecg_data: Path) -> list[NDArray[np.float64]]:
    """Two LUDB recordings, 12 leads, 500 Hz, in mV."""
    from ecgfm.signal.canonical import Policy, canonical

    database = load_database("ludb")
    signals = []
    for ref in list(database.refs(ecg_data / "ludb"))[:2]:
        (form,) = canonical(database.read(ref), Policy(rate_hz=RATE_HZ)).segments
        signals.append(form.counts_LT.astype(np.float64) * (form.microvolt_per_count * 1e-3))
    assert len(LEADS) == 12
    return signals
