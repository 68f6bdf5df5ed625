"""A small database in the Challenge 2021 layout, and its shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.shards.manifest import Manifest
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy

Convert = Callable[..., Manifest]


@pytest.fixture
def source(tmp_path: Path, write_challenge: Callable[..., Path], counts_LT: NDArray[np.int16]) -> Path:
    """Return a folder of seven Georgia records: one has a flat lead, two must be refused (all flat, too short)."""
    folder = tmp_path / "georgia"
    for number in range(1, 6):
        write_challenge(folder / "g1", f"E{number:05d}", np.roll(counts_LT, 37 * number, axis=1))
    flat = np.roll(counts_LT, 37 * 3, axis=1)
    flat[4] = 11
    write_challenge(folder / "g1", "E00003", flat)
    write_challenge(folder / "g1", "E00006", np.zeros_like(flat))
    write_challenge(folder / "g2", "E00007", counts_LT[:, :4000])
    return folder


@pytest.fixture
def convert_georgia(source: Path) -> Convert:
    """Return a function that converts the source into a folder, three records a shard."""

    def run(out: Path, *, workers: int = 1, folder: Path = source, **options: object) -> Manifest:
        policy = {name: options.pop(name) for name in list(options) if name in Policy.__dataclass_fields__}
        signal = Policy(highpass_hz="database", **policy)  # type: ignore[arg-type]
        settings = Options(**{"records_per_shard": 3, "signal": signal, **options})  # type: ignore[arg-type]
        return convert(load_database("georgia", mend=settings.mend), folder, out, settings, workers=workers)

    return run
