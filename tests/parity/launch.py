"""Starts the ranks of a script on the CPU and waits for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch_ranks(ranks: int, words: list[str], logs: Path, **environment: str) -> None:
    """Run `python WORDS` once a rank, on a free port; what they say goes to a folder, and is shown when one fails."""
    logs.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        with (logs / f"rank{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    cwd=ROOT,
                    env={**os.environ, **place, **environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        done = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = "\n".join(path.read_text()[-3000:] for path in sorted(logs.glob("*.log")))
    assert not any(done), said
