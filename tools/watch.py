"""Watch a run in the terminal, from any process or machine that sees its folder. Ctrl-C leaves; the run goes on.

python tools/watch.py RUN
python tools/watch.py RUN --once
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console, RenderableType
from rich.live import Live

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.run_screen import screen


@dataclass(frozen=True, kw_only=True)
class WatchRun:
    """Watch a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    once: bool = False
    """Print one picture and end."""
    every_s: float = 2.0
    """Seconds between two pictures."""

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise ConfigError(f"--every-s must be above 0, got {self.every_s}")


def main() -> None:
    """Draw the run until Ctrl-C."""
    settings = tyro.cli(WatchRun, description=__doc__)
    console = Console()

    def now() -> RenderableType:
        return screen(settings.run, time.time(), width=console.width, height=console.height)

    if settings.once:
        console.print(now())
        return
    first = now()
    # A shell that starts this in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Live(first, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(settings.every_s)
                live.update(now(), refresh=True)
    except KeyboardInterrupt:
        # What was seen last stays in the terminal.
        console.print(now())


if __name__ == "__main__":
    config.run_command(main)
