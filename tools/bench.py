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
    """Folders that tools/convert.py wrote, for the loader and the step end to end; without them those rows are left
    empty."""
    sizes: tuple[str, ...] = ()
    """Vision transformers to step; xs and s on a CPU, s and b on a GPU."""
    quick: bool = False
    """Few windows and rounds: to see that everything runs."""
    out: Path | None = None
    """Write the rows to this file too, as JSON."""


def main() -> None:
    """Run all, and print what they say in one table."""
    settings = tyro.cli(Bench, description=__doc__)
    on_gpu = torch.cuda.is_available()
    device = ["--device", "cuda" if on_gpu else "cpu"]
    shards = ["--shards", *map(str, settings.shards)] if settings.shards else []
    quick = ["--repeats", "1"] if settings.quick else []
    sizes = settings.sizes or (("s", "b") if on_gpu else ("xs", "s"))
    few = ["--batch-size", "4"] if settings.quick else []
    commands = []
    if settings.shards:
        commands.append(["bench_loader.py", *map(str, settings.shards)])
    for number, size in enumerate(sizes):
        # What an engine and an objective cost beside a step is told once, of the smallest: there it is most.
        parts = ["step", "objectives", "engine", "loading"] if number == 0 else ["step"]
        compiled = ["--compile"] if on_gpu else []
        words = ["--size", size, *device, *quick, *few, *compiled, "--parts", *parts, *(shards if number == 0 else [])]
        commands.append(["bench_step.py", *words])
    commands.append(["bench_embed.py", "--size", sizes[0], *device, *quick, *few])
    if (HERE / "bench_kernels.py").is_file():
        commands.append(["bench_kernels.py"])
    rows: list[Row] = []
    for words in commands:
        rows += run(words)
    if not settings.shards:
        rows.append(Row(what="loader", baseline="a DataLoader over arrays in memory", aim=10, note="needs --shards"))
    if not on_gpu:
        rows += [Row(**{**vars(row), "note": "needs a GPU"}) for row in ON_A_GPU]
    show(rows, f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPU: {on_gpu}", settings.out)


def run(words: list[str]) -> list[Row]:
    """Run a bench; return its rows. One that writes none has printed a table of its own."""
    Console().rule(" ".join(words), align="left")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / words[0]), *words[1:]]
        named = ["--out", str(out)] if "    out: Path" in (HERE / words[0]).read_text(encoding="utf-8") else []
        done = subprocess.run([*command, *named], check=False)
        if done.returncode:
            return [Row(what=words[0], baseline="", note=f"ended with status {done.returncode}")]
        return read_rows(out) if out.is_file() else [Row(what=words[0], baseline="", note="see its own table above")]


if __name__ == "__main__":
    config.run_command(main)
