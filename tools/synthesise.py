"""Make a database of synthetic 12-lead ECGs, to try everything without a download.

    python tools/synthesise.py OUT --records 2000

OUT gets WFDB files that `tools/convert.py synthetic OUT SHARDS` reads. The same call again writes only what is
missing, and a larger --records extends the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from ecgfm import config
from ecgfm.databases.synthetic import write
from ecgfm.progress import RecordBar


@dataclass(frozen=True, kw_only=True)
class Synthesise:
    """Make a database of synthetic 12-lead ECGs."""

    out: tyro.conf.Positional[Path]
    """Folder for the database; new, empty, or made with the same settings."""
    records: int
    """How many recordings; four patients have ten."""
    first: int = 0
    """Number of the first recording."""
    seed: int = 0
    """Another seed is another database, with other patients."""
    rate_hz: float = 500.0
    """Samples per second, 100 to 2000."""
    seconds: float = 10.0
    """Length of each recording, 5 to 600."""
    workers: int = 1
    """Processes; their number changes no byte."""


def main() -> None:
    """Write the database, with a progress bar."""
    settings = tyro.cli(Synthesise, description=__doc__)
    console = Console()
    with RecordBar("synthetic", console) as bar:
        write(
            settings.out,
            records=settings.records,
            first=settings.first,
            seed=settings.seed,
            rate_hz=settings.rate_hz,
            seconds=settings.seconds,
            workers=settings.workers,
            progress=bar.update,
        )
    ready = bar.ready or 0
    made = settings.records - ready
    rate = f"{bar.rate:,.0f} records/s" if made else "nothing was missing"
    console.print(f"{settings.out}: {made:,} recordings written, {ready:,} were there ({rate})", soft_wrap=True)


if __name__ == "__main__":
    config.run_command(main)
