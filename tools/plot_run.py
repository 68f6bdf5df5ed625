"""Draw a run's figures, or those of several runs over each other, as one picture.

python tools/plot_run.py RUN [RUN ...] --out run.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.plots import save
from ecgfm.eval.run_plots import plot_runs


@dataclass(frozen=True, kw_only=True)
class PlotRun:
    """Draw the figures of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""


def main() -> None:
    """Draw metrics.jsonl."""
    settings = tyro.cli(PlotRun, description=__doc__)
    if not settings.runs:
        raise ConfigError("give the folder of a run, or of several")
    save(plot_runs(settings.runs), settings.out)
    print(settings.out)


if __name__ == "__main__":
    config.run_command(main)
