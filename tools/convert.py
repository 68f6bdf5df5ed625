"""Convert an ECG database into shards.

    python tools/convert.py georgia SOURCE OUT --workers 8

SOURCE is the folder as published, and is only read. OUT gets the shards (tars of some 120 MB), manifest.json, which
says what was done and counted, and refused.jsonl, with a line and a reason for every record that was left out. The same
call again writes only what is missing; Ctrl-C loses at most the shards in work. Other options need another OUT.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config, parts
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.progress import RecordBar
from ecgfm.shards.manifest import REFUSED, Manifest
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import INTERPOLATED, Policy
from ecgfm.signal.flags import FLAGS

SHORTEST_SEGMENT_S = 2.0
"""A segment is called by its start in whole seconds."""


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert an ECG database into shards; run again, it goes on with what is missing."""

    database: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATABASE")]
    """Name of the database, from the list above."""
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder of the database, as published."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder for the shards; made if need be."""
    workers: int = field(default_factory=lambda: min(os.cpu_count() or 1, 16))
    """Processes that work side by side; their number changes no byte of the shards."""
    rate_hz: float | Literal["native"] = 500.0
    """Sampling rate of the shards, in samples per second; native keeps each record's own."""
    highpass_hz: float | Literal["database", "none"] = "database"
    """Corner of a zero-phase high-pass filter; by default the one that the database needs, which is 0.5 Hz for code-15
    and st-petersburg-incart and none for all others."""
    max_gap_s: float = 0.1
    """Longest run of missing samples, in seconds, that is filled by a straight line; a longer one refuses the
    segment."""
    min_s: float = 10.0
    """Recordings of fewer seconds are refused, and counted."""
    segment_s: float | Literal["none"] = 60.0
    """Recordings of more seconds are cut into segments of this length; none keeps them whole."""
    refuse: tuple[str, ...] = ()
    """Quality flags that refuse a segment instead of being noted beside it: flat-lead, dead-lead, saturated-lead,
    implausible-amplitude, powerline, limb-leads-disagree, lead-swap, interpolated."""
    mend: tuple[str, ...] = ()
    """Named rules of the database that correct what its files are known to say wrongly. A refusal that has a rule
    names it."""
    records_per_shard: int | None = None
    """Records of one tar; by default as many as make 120 MB at 500 Hz."""
    max_refused: float | None = None
    """Share of refused records, 0 to 1, above which the command ends as failed, with all shards written; by default
    0.5, not counting those that are too short. It fails in any case when no record was kept."""

    def __post_init__(self) -> None:
        for name in ("workers", "records_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name, low in (("min_s", 0.0), ("max_gap_s", 0.0), ("segment_s", SHORTEST_SEGMENT_S)):
            value = getattr(self, name)
            if value != "none" and not low <= value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} must be {low:g} seconds or more, got {value:g}")
        if self.max_refused is not None and not 0 <= self.max_refused <= 1:
            raise ConfigError(f"--max-refused is a share from 0 to 1, got {self.max_refused:g}")
        if self.rate_hz != "native" and not 1 <= self.rate_hz <= 10_000:
            raise ConfigError(f"--rate-hz must be native or 1 to 10000, got {self.rate_hz}")
        for flag in self.refuse:
            if flag not in (*FLAGS, INTERPOLATED):
                raise ConfigError(f"--refuse {flag}: the quality flags are {', '.join((*FLAGS, INTERPOLATED))}")

    def options(self) -> Options:
        """Return what decides the shards' bytes."""
        policy = Policy(
            rate_hz=None if self.rate_hz == "native" else self.rate_hz,
            highpass_hz=None if self.highpass_hz == "none" else self.highpass_hz,
            max_gap_s=self.max_gap_s,
            min_s=self.min_s,
            segment_s=None if self.segment_s == "none" else self.segment_s,
            refuse=self.refuse,
        )
        return Options(signal=policy, mend=self.mend, records_per_shard=self.records_per_shard)


def main() -> None:
    """Convert, with a progress bar, and print what was kept and refused."""
    names = ", ".join(name.replace("_", "-") for name in parts.names("ecgfm.databases"))
    settings = tyro.cli(Convert, description=f"{__doc__}\nDatabases: {names}.")
    console = Console()
    database = load_database(settings.database, mend=settings.mend)
    options = settings.options()
    with RecordBar(database.name(), console) as bar:
        manifest = convert(
            database, settings.source, settings.out, options, workers=settings.workers, progress=bar.update
        )
    console.print(_table(manifest, settings.out, bar))
    if manifest.expected_records and manifest.seen < manifest.expected_records:
        console.print(
            f"[yellow]not the whole database:[/yellow] {manifest.seen:,} of the {manifest.expected_records:,} records "
            f"that are published are below {settings.source}",
            highlight=False,
        )
    _fail_if_most_were_refused(manifest, settings)


def _fail_if_most_were_refused(manifest: Manifest, settings: Convert) -> None:
    refused = manifest.seen - manifest.kept
    if settings.max_refused is None:
        # Two thirds of CODE-15 are shorter than ten seconds: that is known, and not a sign of a fault.
        refused -= manifest.refused.get("too-short", 0)
    share = 0.5 if settings.max_refused is None else settings.max_refused
    if manifest.kept == 0 or refused > share * manifest.seen:
        with (settings.out / REFUSED).open(encoding="utf-8") as file:
            (line,) = (json.loads(text) for text in itertools.islice(file, 1))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.refused.items())
        limit = f"more than --max-refused {share:g} allows" if manifest.kept else "and none kept"
        raise ShardError(
            f"{manifest.seen - manifest.kept:,} of {manifest.seen:,} records were refused ({reasons}), {limit}. The "
            f"first is {line['record']}: {line['message']}. {settings.out / REFUSED} has a line for each"
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
    if manifest.segments != manifest.kept or manifest.refused_segments:
        table.add_row("segments", f"{manifest.segments:,}")
        for reason, count in manifest.refused_segments.items():
            table.add_row(f"  refused, {reason}", f"{count:,}")
        table.add_row("left over at the ends", f"{manifest.cut_s:,.0f} s")
    for name, counts in (("mended by", manifest.mended), ("derived lead", manifest.derived), ("flag", manifest.flags)):
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
