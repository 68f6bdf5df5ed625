"""What a run tells: a live line, metrics.jsonl, bad_steps.jsonl, TensorBoard and other boards. Only rank 0 has one.

metrics.jsonl has a line for each logged step, bad_steps.jsonl one for each skipped step, flushed as they are written.
A run that goes on from a checkpoint removes the lines after it first, so that each step stands there once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ecgfm.run_folder import BAD_STEPS, METRICS, read_metrics
from ecgfm.shards.manifest import write_bytes
from ecgfm.train.monitor import Monitor, MonitorConfig


class RunLog:
    """Writes metrics and shows where the run stands.

    Args:
        run: Folder of the run.
        first_step: Finished steps at the start.
        last_step: Finished steps at the end.
        monitor: Other boards.

    Raises:
        ConfigError: Another board does not let us in.
    """

    def __init__(self, run: Path, first_step: int, last_step: int, monitor: MonitorConfig) -> None:
        self._monitor = Monitor(monitor, run)
        self.console = Console()
        for name in (METRICS, BAD_STEPS):
            keep_lines(run, name, lambda line: line["step"] <= first_step)
        self._run = run
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f} of {task.total:,.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=last_step, completed=first_step, figures="")
        self._began = (time.perf_counter(), first_step)
        self._last_step = last_step
        self._bar.start()

    def say(self, message: str) -> None:
        """Print a line above the live one."""
        # As it is: a path may have brackets, and a label colons.
        self._bar.console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the live line."""
        self._bar.update(self._task, completed=step)

    def metrics(self, figures: dict[str, Any]) -> None:
        """Write one line of metrics; `step` is among the figures, and words are among them where there is an alarm."""
        self._file.write(json.dumps({"step": figures["step"], "time": round(time.time(), 1), **figures}) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in figures.items() if name != "step" and not isinstance(value, str)}
        for name, value in figures.items():
            if isinstance(value, str):
                self._board.add_text(name, value, figures["step"])
        for name, value in numbers.items():
            self._board.add_scalar(name, value, figures["step"])
        self._monitor.write(figures["step"], numbers)
        loss = f"loss {figures['loss']:.4f}" if "loss" in figures else "no good step"
        shown = f"{loss}  lr {figures['lr']:.2e}  {figures['records_per_s']:,.0f} records/s"
        if figures.get("loader_wait", 0) > 0.1:
            shown += f" ({figures['loader_wait']:.0%} of the time waiting for the loader)"
        self._bar.update(self._task, figures=shown)
        if not self.console.is_terminal:
            now, (then, first) = time.perf_counter(), self._began
            left = (self._last_step - figures["step"]) * (now - then) / max(figures["step"] - first, 1)
            self.say(f"step {figures['step']:,} of {self._last_step:,}  {shown}  {left:,.0f} s left")

    def bad_step(self, line: dict[str, Any]) -> None:
        """Write down a step that was skipped; `step` is in the line."""
        with (self._run / BAD_STEPS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """End the live line and the files."""
        self._bar.stop()
        self._file.close()
        self._board.close()


def keep_lines(run: Path, name: str, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Remove the lines of a file that a run which goes on will write again, and return how many are left."""
    kept = [line for line in read_metrics(run, name) if wanted(line)]
    if (run / name).exists():
        write_bytes(run / name, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return len(kept)
