"""Measure everything that has a speed, and print one table: `make bench`.

Each bench runs in a process of its own, one after another, on a GPU where there is one. Rows that need a GPU say so on
a machine without. All figures are ratios of things that were measured in turn in one process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from bench_rows import Row, read_rows, show  # type: ignore[import-not-found]
from rich.console import Console

from ecgfm import config

HERE = Path(__file__).resolve().parent
ON_A_GPU = (
    Row(what="JEPA ViT-S and ViT-B, bfloat16 step", baseline="plain eager bfloat16 step, and the same compiled", aim=2),
    Row(what="JEPA ViT-S and ViT-B: model operations", baseline="measured bfloat16 matrix rate", aim=0.45),
    Row(what="end to end on a GPU, loading included", baseline="the same step on data already there", aim=0.95),
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure everything that has a speed."""

    shards: tuple[Path, ...] = ()
    """Folders that tools/convert.py wrote, for the loader and the step end to end; synthetic ones by default."""
    records: int = 900
    """Synthetic recordings, where no shards are given."""
    sizes: tuple[str, ...] = ()
    """Vision transformers to step; xs and s on a CPU, s and b on a GPU."""
    quick: bool = False
    """Few windows and rounds: to see that everything runs."""
    out: Path | None = None
    """Write the rows to this file too, as JSON."""


def main() -> None:
    """Find shards or make them, and measure."""
    settings = tyro.cli(Bench, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="ecgfm-bench-") as folder:
        measure(settings, settings.shards or (synthetic(Path(folder), settings.records),))


def synthetic(folder: Path, records: int) -> Path:
    """Return shards of synthetic recordings, in a few files as a database has them."""
    recordings, shards = folder / "recordings", folder / "shards"
    for name, *words in (
        ["synthesise.py", str(recordings), "--records", str(records)],
        ["convert.py", "synthetic", str(recordings), str(shards), "--records-per-shard", str(max(records // 4, 1))],
    ):
        subprocess.run([sys.executable, str(HERE / name), *words], check=True)
    return shards


def measure(settings: Bench, shards: tuple[Path, ...]) -> None:
    """Run all, and print what they say in one table."""
    on_gpu = torch.cuda.is_available()
    device = ["--device", "cuda" if on_gpu else "cpu"]
    quick = ["--repeats", "1"] if settings.quick else []
    sizes = settings.sizes or (("s", "b") if on_gpu else ("xs", "s"))
    few = ["--batch-size", "4"] if settings.quick else []
    commands = [["bench_loader.py", *map(str, shards), *(["--rounds", "1", "--epochs", "3"] if settings.quick else [])]]
    for number, size in enumerate(sizes):
        # What an engine and an objective cost beside a step is told once, of the smallest: there it is most.
        parts = ["step", "objectives", "engine", "loading"] if number == 0 else ["step"]
        compiled = ["--compile"] if on_gpu else []
        words = [
            "--size",
            size,
            *device,
            *quick,
            *few,
            *compiled,
            "--parts",
            *parts,
            *(["--shards", *map(str, shards)] if number == 0 else []),
        ]
        commands.append(["bench_step.py", *words])
    commands.append(["bench_embed.py", "--size", sizes[0], *device, *quick, *few])
    commands.append(["bench_kernels.py"])
    rows: list[Row] = []
    for words in commands:
        rows += run(words)
    if not on_gpu:
        rows += [Row(**{**vars(row), "note": "needs a GPU"}) for row in ON_A_GPU]
    show(rows, f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPU: {on_gpu}", settings.out)


def run(words: list[str]) -> list[Row]:
    """Run a bench; return its rows."""
    Console().rule(" ".join(words), align="left")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / words[0]), *words[1:]]
        done = subprocess.run([*command, "--out", str(out)], check=False)
        if done.returncode:
            return [Row(what=words[0], baseline="", note=f"ended with status {done.returncode}")]
        found: list[Row] = read_rows(out)
        return found


if __name__ == "__main__":
    config.run_command(main)
