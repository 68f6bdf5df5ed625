"""Records written by hand, in the layout of the CinC Challenge 2021."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.leads import LEADS

Write = Callable[..., Path]


@pytest.fixture
def counts_LT() -> NDArray[np.int16]:
    """Return twelve leads of 10 s at 500 Hz that look like an ECG to the amplitude check: 1 to 2 mV."""
    time_s = np.arange(5000) / 500
    phase = np.arange(12)[:, None]
    return np.rint(500 * np.sin(2 * np.pi * time_s + phase) + 50 * phase).astype(np.int16)


@pytest.fixture
def write_challenge() -> Write:
    """Return a function that writes a header and a MATLAB file, and returns the header's path."""

    def write(
        folder: Path,
        name: str,
        counts_LT: NDArray[np.int16],
        *,
        leads: tuple[str, ...] = LEADS,
        gain: str = "1000.0(0)/mV",
        comments: tuple[str, ...] = ("# Age: 50", "# Sex: Male", "# Dx: 426783006"),
        newline: str = "\n",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows, samples = counts_LT.shape
        matlab = struct.pack("<5i", 30, rows, samples, 0, 4) + b"val\0" + counts_LT.astype("<i2").tobytes(order="F")
        (folder / f"{name}.mat").write_bytes(matlab)
        lines = [f"{name} {rows} 500 {samples}"]
        for lead, row in zip(leads, counts_LT, strict=True):
            checksum = sum(int(count) for count in row) % 65536
            lines.append(f"{name}.mat 16x1+24 {gain} 16 0 {row[0]} {checksum} 0 {lead}")
        path = folder / f"{name}.hea"
        path.write_bytes((newline.join([*lines, *comments]) + newline).encode())
        return path

    return write
