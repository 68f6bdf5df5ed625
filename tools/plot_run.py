"""Draw a run's loss, collapse figures and learning rate.

python tools/plot_run.py RUN --out run.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.eval.plots import plot_losses, save


@dataclass(frozen=True, kw_only=True)
class PlotRun:
    """Draw a run's figures."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""


def main() -> None:
    """Draw metrics.jsonl."""
    settings = tyro.cli(PlotRun, description=__doc__)
    save(plot_losses(settings.run / "metrics.jsonl"), settings.out)
    print(settings.out)


if __name__ == "__main__":
    config.run_command(main)
