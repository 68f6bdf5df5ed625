"""A progress bar for long work: how much is done, how fast, how long it will take."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RecordBar:
    """Shows records done of all, records a second and the time left; what was done before does not count as speed.

    Use as a context; hand `update` to the work.

    Args:
        title: What is done.
        console: Where to show it.
        keep: Leave the bar on the screen at the end.
    """

    def __init__(self, title: str, console: Console, *, keep: bool = True) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=not keep,
        )
        self._task = self._bar.add_task(title, total=None, rate="")
        self._start = time.perf_counter()
        self.ready: int | None = None
        """Records that were done before the work began."""
        self.rate = 0.0
        """Records a second."""

    def __enter__(self) -> RecordBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` records are done."""
        if self.ready is None:
            self.ready, self._start = done, time.perf_counter()
        self.rate = (done - self.ready) / max(time.perf_counter() - self._start, 1e-9)
        self._bar.update(self._task, completed=done, total=total, rate=f"{self.rate:,.0f} records/s")
