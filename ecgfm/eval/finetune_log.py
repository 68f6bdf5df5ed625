"""What a fine-tuning run says while it trains: a live line, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ecgfm.run_folder import METRICS, read_metrics
from ecgfm.shards.manifest import write_bytes


class Log:
    """Writes metrics and shows where the run stands.

    Args:
        run: Folder of the run.
        first_step: Finished steps at the start; lines of later ones, which a kill left, are removed.
        console: Where to show it.
        writes: Whether this process writes.
    """

    def __init__(self, run: Path, first_step: int, console: Console, writes: bool) -> None:
        self._console, self._writes = console, writes
        self._crops, self._since = 0, time.perf_counter()
        self._bar: Progress | None = None
        if not writes:
            return
        run.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(run) if line["step"] <= first_step]
        if kept or (run / METRICS).exists():
            write_bytes(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def stage(self, name: str, first_step: int, steps: int, what: str) -> None:
        """Begin a phase, whose first step is `first_step` + 1."""
        self.say(f"phase {name}: {steps:,} steps, {what}")
        self._crops, self._since = 0, time.perf_counter()
        if not self._console.is_terminal or not self._writes:
            return
        if self._bar is not None:
            self._bar.stop()
        columns = (BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
        self._bar = Progress(
            TextColumn("{task.description} {task.completed:,.0f} of {task.total:,.0f}"),
            *columns,
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._first = first_step
        self._task = self._bar.add_task(name, total=steps, figures="")
        self._bar.start()

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def count(self, crops: int) -> None:
        """Count crops of a step, for the speed."""
        self._crops += crops

    def advance(self, step: int) -> None:
        """Move the live line."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step - self._first)

    def metrics(self, step: int, found: dict[str, Any]) -> None:
        """Write a line of metrics."""
        if not self._writes:
            return
        if self._crops:
            speed = self._crops / max(time.perf_counter() - self._since, 1e-9)
            if "lr" in found:
                found = {**found, "crops_per_s": round(speed, 1)}
                self._crops, self._since = 0, time.perf_counter()
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 1), **found}) + "\n")
        self._file.flush()
        for name, value in found.items():
            if not isinstance(value, str):
                self._board.add_scalar(name, value, step)
        if self._bar is not None and "loss" in found:
            self._bar.update(
                self._task, figures=f"loss {found['loss']:.4f}  {found.get('crops_per_s', 0):,.0f} crops/s"
            )

    def close(self) -> None:
        """End the live line and the files."""
        if self._bar is not None:
            self._bar.stop()
        if self._writes:
            self._file.close()
            self._board.close()
