"""Fixtures that several folders of tests share."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from ecgfm.leads import LEADS

ROOT = Path(__file__).resolve().parents[1]
# Tests import what lies beside them as tests.folder.name, also when pytest is not started as a module.
sys.path.insert(0, str(ROOT))
Write = Callable[..., Path]
Launch = Callable[..., "subprocess.Popen[str]"]


# A busy machine is slow at random: no example fails for its time.
settings.register_profile("ecgfm", deadline=None)
settings.load_profile("ecgfm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden curves instead of comparing")


@pytest.fixture(scope="session")
def ecg_data() -> Path:
    """Return the folder of real recordings, or skip, saying how to get them."""
    folder = Path(os.environ.get("ECGFM_TEST_DATA", ROOT.parent / "shared" / "ecg"))
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}; set ECGFM_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture
def counts_LT() -> NDArray[np.int16]:
    """Return twelve leads of 10 s at 500 Hz that look like an ECG to the amplitude check: 1 to 2 mV."""
    time_s = np.arange(5000) / 500
    phase = np.arange(12)[:, None]
    return np.rint(500 * np.sin(2 * np.pi * time_s + phase) + 50 * phase).astype(np.int16)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def training_shards(tmp_path_factory: pytest.TempPathFactory, write_challenge: Write) -> Path:
    """Return shards of 30 records of 10 to 13 s: beats of random rate and shape, with noise."""
    from ecgfm.databases.base import load_database
    from ecgfm.shards.writer import Options, convert

    folder = tmp_path_factory.mktemp("training")
    random = np.random.default_rng(0)
    for number in range(1, 31):
        time_s = np.arange(5000 + 50 * number) / 500
        beat = np.exp(-(((time_s * random.uniform(0.8, 2.0)) % 1 - 0.5) ** 2) / 0.001)
        signal = random.uniform(-900, 900, (12, 1)) * beat + random.normal(0, 60, (12, len(time_s)))
        write_challenge(folder / "georgia", f"E{number:05d}", np.rint(signal).astype(np.int16))
    convert(load_database("georgia"), folder / "georgia", folder / "shards", Options(records_per_shard=8))
    return folder / "shards"


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `python` with the given words from the project's root, as a user does."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        full = [sys.executable, *map(str, words)]
        return subprocess.run(
            full, cwd=ROOT, env=_environment(environment), capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture(scope="session")
def start_recipe() -> Launch:
    """Return a function that starts a recipe through the deepspeed launcher, on a free port, in a group of its own."""

    def start(ranks: int, *words: str | Path, log: Path) -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = Path(sys.executable).with_name("deepspeed")
        full = [launcher, "--num_accelerators", ranks, "--master_port", port, "recipes/jepa_vit.py", *words]
        with log.open("a") as file:
            return subprocess.Popen(
                [*map(str, full)],
                cwd=ROOT,
                env=_environment({}),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    return start


@pytest.fixture(scope="session")
def tiny(training_shards: Path) -> list[str]:
    """Return the options of a run that takes milliseconds a step: 50 tokens, 2 blocks of width 32."""
    text = (
        f"--data.shards {training_shards} --data.batch-size 8 --encoder.width 32 --encoder.depth 2 "
        "--encoder.num-heads 2 --encoder.patch-samples 100 --objective.min-block 4 --optim.schedule-steps 20 "
        "--optim.warmup-share 0.2 --log-every 1"
    )
    return text.split()


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], list[float]]:
    """Return a function that reads the losses of a run, one a step, and checks that no step is missing."""

    def read(run: Path) -> list[float]:
        lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]

    return read


def _environment(extra: dict[str, str]) -> dict[str, str]:
    # One thread a rank: more of them sum in another order. The CPU also where there is a GPU: these tests
    # compare with the last bit.
    fixed = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "COLUMNS": "120"}
    return {**os.environ, **fixed, **extra}
