"""Fixtures that several folders of tests share."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before NumPy and torch are imported. One thread a process: there are as many workers as cores, with ranks under them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# DeepSpeed imports Muon, which has functions to compile, whatever the optimizer is: a quarter of the time in which a
# rank starts. The tests that compile a run take it back.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

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


# Files that take longest, the longest first: workers get a whole file at a time, and the last file ends the tests.
LONGEST = (
    "parity/test_parity.py",
    "golden/test_golden.py",
    "cli/test_readme.py",
    "recipes/test_overfit.py",
    "resume/test_resume.py",
    "resume/test_streamed_runs.py",
    "resume/test_hang.py",
    "cli/test_torture.py",
    "train/test_stop.py",
    "train/test_monitor.py",
    "train/test_validation.py",
    "cli/test_recipe.py",
    "train/test_alarms.py",
    "resume/test_adversary.py",
    "databases/test_wfdb_files.py",
    "parity/test_adversary.py",
    "cli/test_convert.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    if gone := [path for path in order if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST in tests/conftest.py names what is not there: {gone[0]}")
    items.sort(key=lambda item: order.get(item.path, len(order)))


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

    def start(ranks: int, *words: str | Path, log: Path, recipe: str = "jepa_vit") -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = Path(sys.executable).with_name("deepspeed")
        full = [launcher, "--num_accelerators", ranks, "--master_port", port, f"recipes/{recipe}.py", *words]
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
def run_ranks() -> Iterator[Callable[..., list[int]]]:
    """Return a function that runs a script on some ranks to their end, without a launcher; it returns how they ended.

    Their processes are forked off one that has imported all: for runs that are about what they come to, and not about
    how they start. 0 ranks are a process that no launcher started.
    """
    server = subprocess.Popen(
        [sys.executable, "tests/recipes/commands.py"],
        cwd=ROOT,
        env=_environment({"PYTHONPATH": str(ROOT)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout
    asked, answers = server.stdin, server.stdout

    def run(ranks: int, *words: str | Path, log: Path, **environment: str) -> list[int]:
        command = {"words": [*map(str, words)], "ranks": ranks, "log": str(log), "environment": environment}
        asked.write(json.dumps(command) + "\n")
        asked.flush()
        status: list[int] = json.loads(answers.readline())
        return status

    with server:
        yield run


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
