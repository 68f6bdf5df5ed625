"""Two ranks for a test: the test's own script, which `python SCRIPT RANK FOLDER` runs as one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]


def run_two_ranks(script: str, folder: Path, *, timeout_s: float = 240.0) -> None:
    """Run a script as both ranks, and wait for them; when one fails, neither is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, script, str(rank), str(folder)], env=environment, cwd=ROOT)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=timeout_s) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def one_of_two() -> Iterator[tuple[int, Path]]:
    """Be the rank that the command line names, and say which, and where to write what it finds."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    yield rank, folder
    dist.barrier()
    dist.destroy_process_group()
