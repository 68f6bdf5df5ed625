"""Kills at any moment of writing lose no whole checkpoint.

Called with a folder this file is a program that writes checkpoints without end, in processes that the test kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ecgfm.run_folder import checkpoints, step_of
from ecgfm.train.checkpoint import read_whole, settle
from tests.train.lone import Lone


def test_kills_at_any_moment_lose_no_whole_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lone = Lone(run)
    moments = random.Random(0)
    known, interrupted = 0, 0
    program = subprocess.Popen(
        [sys.executable, __file__, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert program.stdin and program.stdout
    with program:
        for _ in range(10):
            program.stdin.write("\n")
            program.stdin.flush()
            writer = int(program.stdout.readline())
            # One more, and then anywhere in the next ones.
            until = time.monotonic() + 60
            while not any((step_of(folder) or 0) > known for folder in checkpoints(run)):
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.08))
            os.kill(writer, signal.SIGKILL)
            assert program.stdout.readline() == "killed\n"
            steps = lone.steps()  # each of them is whole
            assert steps[-1] > known
            known = steps[-1]
            assert set(range(7, known, 7)) <= set(steps)
            # The very first may have been killed before it was written down.
            if known > 1:
                assert read_whole(run / "checkpoints" / lone.latest()).step in steps[-2:]
            interrupted += any((run / "checkpoints").glob("step-*.tmp"))
        program.stdin.close()
    assert interrupted >= 3, "it was killed where there is nothing to lose"
    # Two are kept, and one more where it was killed before it removed the oldest.
    assert len([step for step in lone.steps() if step % 7]) <= 3


def write_without_end(run: Path) -> None:
    lone = Lone(run, keep=2, keep_every=7)
    found, _ = settle(lone.engine.world, run)
    step = found[1].step if found else 0
    while True:
        step += 1
        lone.save(step)


def main() -> None:
    """Start a writer for each line of the input, and print its number and how it ended."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                write_without_end(Path(sys.argv[1]))
            finally:
                os._exit(1)
        print(child, flush=True)
        print("killed" if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else "ended", flush=True)


if __name__ == "__main__":
    main()
