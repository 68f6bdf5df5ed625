"""Write one self-contained HTML page about an evaluation, and about what it is compared with.

    python tools/report.py OUT [OUT2 ...] --out report.html

OUT is what recipes/finetune.py or recipes/probe.py wrote. The first is what the report is about; the others, such as an
untrained control or smaller shares of the labels, stand beside it. The page opens without a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.report import Options, write_report


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Write a report of evaluations of one task."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with predictions.npz; one of several seeds stands for all of them."""
    out: Path
    """The HTML file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folders:
            raise ConfigError("give one or more folders of evaluations")


def main() -> None:
    """Write it."""
    settings = tyro.cli(Report, description=__doc__)
    print(write_report(settings.folders, settings.out, settings))


if __name__ == "__main__":
    config.run_command(main)
