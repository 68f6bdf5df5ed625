"""Convert a public ECG database into shards.

    python tools/convert.py georgia SOURCE OUT --workers 8

SOURCE is the folder as published; OUT gets tars of 1000 records, manifest.json and refused.jsonl. The
same call again writes only what is missing; Ctrl-C loses at most the shards in work.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config, parts
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.progress import RecordBar
from ecgfm.shards.manifest import REFUSED, Manifest
from ecgfm.shards.writer import Options, convert


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a public ECG database into shards; run again, it goes on with what is missing."""

    database: tyro.conf.Positional[str]
    """Name of the database; one of the files in ecgfm/databases/."""
    source: tyro.conf.Positional[Path]
    """Folder of the database, as published."""
    out: tyro.conf.Positional[Path]
    """Folder for the shards."""
    workers: int = field(default_factory=lambda: min(os.cpu_count() or 1, 16))
    """Processes; their number changes no byte of the shards."""
    rate_hz: float | Literal["native"] = 500.0
    """Sampling rate of the shards; native keeps each record's own."""
    min_s: float = 10.0
    """Shorter recordings are refused, and counted."""
    mend: tuple[str, ...] = ()
    """Named rules of the database that correct what its files are known to say wrongly."""
    records_per_shard: int = 1000
    """Records of one tar; 1000 ten-second records are 120 MB."""
    max_refused: float = 0.5
    """Share of refused records above which the command fails."""

    def __post_init__(self) -> None:
        for name in ("workers", "records_per_shard"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.rate_hz != "native" and not 1 <= self.rate_hz <= 10_000:
            raise ConfigError(f"--rate-hz must be native or 1 to 10000, got {self.rate_hz}")


def main() -> None:
    """Convert, with a progress bar, and print what was kept and refused."""
    names = ", ".join(name.replace("_", "-") for name in parts.names("ecgfm.databases"))
    settings = tyro.cli(Convert, description=f"{__doc__}\nDatabases: {names}.")
    console = Console()
    options = Options(
        rate_hz=None if settings.rate_hz == "native" else settings.rate_hz,
        min_s=settings.min_s,
        mend=settings.mend,
        records_per_shard=settings.records_per_shard,
    )
    database = load_database(settings.database, mend=settings.mend)
    with RecordBar(database.name(), console) as bar:
        manifest = convert(
            database, settings.source, settings.out, options, workers=settings.workers, progress=bar.update
        )
    console.print(_table(manifest, settings.out, bar))
    refused = manifest.seen - manifest.kept
    if refused > settings.max_refused * manifest.seen:
        line = json.loads((settings.out / REFUSED).read_text(encoding="utf-8").splitlines()[0])
        raise ShardError(
            f"{refused} of {manifest.seen} records were refused, more than --max-refused {settings.max_refused:g} of "
            f"them. The first is {line['record']}: {line['message']}. {settings.out / REFUSED} has a line for each"
        )


def _table(manifest: Manifest, out: Path, bar: RecordBar) -> Table:
    """Return the closing table."""
    table = Table(title=f"{manifest.title} -> {out}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    expected = f" of {manifest.expected_records:,} published" if manifest.expected_records else ""
    table.add_row("seen", f"{manifest.seen:,}{expected}")
    table.add_row("kept", f"{manifest.kept:,}")
    table.add_row("refused", f"{manifest.seen - manifest.kept:,}")
    for reason, count in manifest.refused.items():
        table.add_row(f"  {reason}", f"{count:,}")
    for name, counts in (("mended by", manifest.mended), ("derived lead", manifest.derived)):
        for rule, count in counts.items():
            table.add_row(f"{name} {rule}", f"{count:,}")
    if manifest.same_signal:
        table.add_row("groups with the same signal", f"{len(manifest.same_signal):,}")
    table.add_row("patients", f"{manifest.patients:,}")
    table.add_row("shards", f"{len(manifest.shards):,}, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB")
    table.add_row("speed", f"{bar.rate:,.0f} records/s" if bar.rate else "nothing was missing")
    return table


if __name__ == "__main__":
    config.run_command(main)
