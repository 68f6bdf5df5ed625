"""A Slurm of two nodes for these tests, and what they need to have it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm.sh")
ROOT = Path(__file__).resolve().parents[2]


def free_ports(count: int) -> list[str]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


class Slurm:
    """Slurm's commands, as a user gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str | Path, **environment: str) -> str:
        """Run one of them from the project's folder and return what it prints."""
        fixed = {"SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(
            [*map(str, words)],
            cwd=ROOT,
            env={**os.environ, **fixed, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, log: Path, *words: str | Path, options: str = "") -> str:
        """Submit a script of the project as it is; return the job's number."""
        full = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={log}", *options.split(), f"slurm/{script}"]
        # The names of this cluster's nodes mean nothing outside it.
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
        return self(*full, *words, PYTHON=sys.executable, PYTHONPATH=str(ROOT), **meet)

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`."""
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(name + "="))

    def wait(self, job: str, state: str, log: Path) -> None:
        """Wait until a job has a state.

        Slurm lets a job that was put back wait for two minutes, and three seconds are enough: one that starts in the
        same second fails, since its credential of before was revoked in that second.
        """
        for _ in range(600):
            now = self.field(job, "JobState")
            if now == state:
                return
            if now == "FAILED":
                break
            if now == "PENDING" and self.field(job, "Reason") == "BeginTime":
                time.sleep(3)
                self("scontrol", "update", f"jobid={job}", "StartTime=now")
            time.sleep(0.2)
        pytest.fail(f"job {job} is {now}, not {state}: {log.read_text() if log.exists() else 'no log'}")

    def wait_for_steps(self, job: str, run: Path, count: int, log: Path) -> None:
        """Wait until a run has a number of steps."""
        for _ in range(600):
            if steps(run) >= count:
                return
            state = self.field(job, "JobState")
            if state in ("FAILED", "CANCELLED", "COMPLETED"):
                break
            time.sleep(0.2)
        pytest.fail(f"job {job} is {state} and has no {count} steps: {log.read_text() if log.exists() else 'no log'}")


def steps(run: Path) -> int:
    """Return how many steps a run has logged."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def skip_without(programs: tuple[str, ...], packages: str) -> None:
    """Skip a test of clusters that was not asked for, or cannot run here, saying what it needs."""
    if "ECGFM_TEST_CLUSTER" not in os.environ:
        pytest.skip("tests of clusters were not asked for; `make test-cluster` runs them and says what they need")
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [name for name in programs if not shutil.which(name, path=path)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {packages}; missing: {', '.join(missing) or 'root'}")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Start Slurm and end it, or skip, saying what it needs."""
    skip_without(("munged", "slurmctld", "slurmd", "sbatch"), "slurm-wlm and munge")
    # Not pytest's own folder: the path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ecgfm-slurm-"))
    command = Slurm(folder)
    try:
        # Not into a pipe: the daemons keep it open for as long as they live.
        with (folder / "up.log").open("w") as log:
            up = subprocess.run(
                [SCRIPT, "up", folder, *free_ports(3)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
        assert up.returncode == 0, "".join(path.read_text() for path in sorted(folder.glob("*.log")))
        yield command
        command("scancel", "--user", "root")
        for _ in range(300):
            if not command("squeue", "--noheader"):
                break
            time.sleep(0.2)
    finally:
        subprocess.run([SCRIPT, "down", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)
