"""Mutants: small faults put into a copy of the project, each of which a named test must notice.

    make mutants                                  # all of them
    python tests/mutation/mutants.py --only ema   # those whose name has the word

A test that still passes on a mutant, or that fails without it, ends this with status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """A fault."""

    name: str
    file: str
    old: str
    """Text that stands in the file once."""
    new: str
    test: str
    """The test that must fail, as pytest names it."""


RESUME = "tests/resume/test_resume.py::test_stopping_and_going_on_changes_no_bit[1]"
TWO_RANKS = "tests/resume/test_resume.py::test_two_ranks_give_the_losses_of_one"
PARITY = "tests/parity/test_parity.py::test_float32_comes_to_what_the_plain_loop_comes_to"
KERNELS = "tests/kernels/test_kernels.py::test_the_kernels_are_float64s_in_the_interpreter"
MUTANTS = (
    Mutant(
        "step counter not restored",
        "ecgfm/train/loop.py",
        "    start = found[1].step if found else 0\n",
        "    start = 0\n",
        RESUME,
    ),
    Mutant(
        "data position not restored",
        "ecgfm/train/loop.py",
        "    position = found[1].records_seen if found else 0\n",
        "    position = 0\n",
        RESUME,
    ),
    Mutant(
        "optimizer state dropped",
        "ecgfm/train/engine.py",
        '            if "step" in names:\n',
        '            if "step" in ():\n',
        RESUME,
    ),
    Mutant(
        "target not saved",
        "ecgfm/train/engine.py",
        "                if name in values:\n                    buffer.copy_(values[name])\n"
        "            for name, weight in weights.items():\n",
        "                if name in values:\n                    buffer.copy_(values[name])\n"
        "            for name, weight in weights.items():\n"
        '                if name.startswith("target."):\n                    continue\n',
        RESUME,
    ),
    Mutant(
        "average moved per micro-batch",
        "ecgfm/train/loop.py",
        "            complete = self.engine.step()\n",
        "            complete = self.engine.step()\n"
        "            if not complete:\n                self.engine.after_step(at)\n",
        PARITY,
    ),
    Mutant(
        "all ranks on rank 0's windows",
        "ecgfm/data/loader.py",
        "        self.rows = (rank * rows, (rank + 1) * rows)\n",
        "        self.rows = (0, rows)\n",
        TWO_RANKS,
    ),
    Mutant(
        "masks of a rank and not of a row",
        "ecgfm/train/loop.py",
        "            rows=(before + self.loader.rows[0], before + self.loader.rows[1]),\n",
        "            rows=(before, before + self.loader.rows[1] - self.loader.rows[0]),\n",
        TWO_RANKS,
    ),
    Mutant(
        "a step that is not finite is applied at stage 0",
        "ecgfm/train/engine.py",
        "self._optimizer.found_inf = dropped",
        "self._optimizer.found_inf = None",
        "tests/train/test_alarms.py::test_a_bad_step_of_one_rank_moves_nothing_on_any",
    ),
    Mutant(
        "kernel: no shift of a database's own",
        "ecgfm/kernels/_ingest_triton.py",
        "    if HAS_SHIFT:\n",
        "    if HAS_SHIFT and HAS_OFFSET:\n",
        KERNELS,
    ),
    Mutant(
        "kernel: no clip below",
        "ecgfm/kernels/_ingest_triton.py",
        "tl.minimum(tl.maximum(scaled, -clip), clip)",
        "tl.minimum(scaled, clip)",
        KERNELS,
    ),
    Mutant(
        "kernel: mask tokens without their places",
        "ecgfm/kernels/_assemble_triton.py",
        "        has_position = has_position | is_hidden\n",
        "",
        KERNELS,
    ),
    Mutant(
        "kernel: no gradient of hidden positions",
        "ecgfm/kernels/_assemble_triton.py",
        "            position_ND.index_add_(0, hide_BM.flatten(), hidden_BMD.flatten(0, 1).float())\n",
        "            pass\n",
        KERNELS,
    ),
    Mutant(
        "kernel: the norm of the target over its block",
        "ecgfm/kernels/_masked_error_triton.py",
        "        variance = tl.sum(centred * centred, axis=1) / D\n",
        "        variance = tl.sum(centred * centred, axis=1) / BLOCK\n",
        KERNELS,
    ),
    Mutant(
        "kernel: a gradient where the guess is right",
        "ecgfm/kernels/_masked_error_triton.py",
        "tl.where(difference < 0, -1.0, difference)",
        "-1.0",
        KERNELS,
    ),
    Mutant(
        "kernel: the moving average of first pieces alone",
        "ecgfm/kernels/_ema_triton.py",
        "        for first in range(0, length, step)\n",
        "        for first in range(0, min(length, step), step)\n",
        KERNELS,
    ),
)


def apply(mutant: Mutant, tree: Path) -> None:
    """Write a mutant into a copy of the project."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    found = text.count(mutant.old)
    if found != 1:
        raise SystemExit(f"{mutant.name}: its text stands {found} times in {mutant.file}, and must stand there once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def copy_project(to: Path) -> None:
    """Copy the files that git knows or would take."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in names.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def run_test(test: str, tree: Path) -> tuple[int, str]:
    """Run one test in a copy of the project; return pytest's status and what it printed."""
    data = os.environ.get("ECGFM_TEST_DATA", str(ROOT.parent / "shared" / "ecg"))
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "ECGFM_TEST_DATA": data}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Try the mutants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word of the names of those to try")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        print(f"error: no mutant's name has {only!r}: {', '.join(mutant.name for mutant in MUTANTS)}", file=sys.stderr)
        return 2
    console = Console()
    table = Table("fault", "test", "without it", "with it", "s", title="mutants")
    survived = 0
    sound: dict[str, bool] = {}
    for mutant in chosen:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder)
            copy_project(tree)
            if mutant.test not in sound:
                sound[mutant.test] = run_test(mutant.test, tree)[0] == 0
            apply(mutant, tree)
            status, text = run_test(mutant.test, tree)
        # 1 is a test that failed; anything else did not even run it.
        caught = sound[mutant.test] and status == 1 and "failed" in text
        survived += not caught
        with_it = "fails" if status == 1 else "passes" if status == 0 else f"pytest ends with {status}"
        table.add_row(
            mutant.name,
            mutant.test.removeprefix("tests/"),
            "passes" if sound[mutant.test] else "fails",
            with_it if caught else f"[red]{with_it}[/red]",
            f"{time.perf_counter() - began:.0f}",
        )
        console.print(f"{mutant.name}: {'noticed' if caught else 'NOT NOTICED'}", highlight=False)
        if not caught:
            console.print(text[-2000:], highlight=False, markup=False)
    console.print(table)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
