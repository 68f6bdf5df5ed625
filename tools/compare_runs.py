"""Show what differs between runs: settings, versions, shards, and the last figures.

python tools/compare_runs.py RUN RUN [RUN ...] --out runs.md --picture runs.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.run_compare import as_csv, as_markdown, compare_runs

KINDS = {".md": as_markdown, ".csv": as_csv}


@dataclass(frozen=True, kw_only=True)
class CompareRuns:
    """Compare runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two or more runs."""
    out: Path | None = None
    """Also write the tables to this file, .md or .csv."""
    picture: Path | None = None
    """Also draw the runs over each other, as tools/plot_run.py does."""


def main() -> None:
    """Print the tables."""
    settings = tyro.cli(CompareRuns, description=__doc__)
    out = settings.out
    if out and out.suffix not in KINDS:
        raise ConfigError(f"--out {out}: the ending must be one of {', '.join(KINDS)}")
    names, sections = compare_runs(settings.runs)
    console = Console()
    for section in sections:
        table = Table(title=section.title, title_justify="left", title_style="bold")
        for place, name in enumerate(("", *names)):
            table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))  # as they are: a list of words in brackets is no markup
        console.print(table)
    if not any(section.title.startswith("settings") for section in sections):
        console.print("the settings are the same")
    if out:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(KINDS[out.suffix](names, sections), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error
        print(out)
    if settings.picture:
        from ecgfm.eval.plots import save
        from ecgfm.eval.run_plots import plot_runs

        save(plot_runs(settings.runs), settings.picture)
        print(settings.picture)


if __name__ == "__main__":
    config.run_command(main)
