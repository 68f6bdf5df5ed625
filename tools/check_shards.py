"""Verify folders of shards: every hash, name, shape, type and unit range.

    python tools/check_shards.py OUT [OUT ...]

Prints each manifest as a table; ends with status 1 when anything is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.errors import ConfigError, ShardError
from ecgfm.leads import LEADS
from ecgfm.progress import RecordBar
from ecgfm.shards.check import check_shards
from ecgfm.shards.manifest import Manifest, read_manifest


@dataclass(frozen=True, kw_only=True)
class Check:
    """Verify folders of shards, to the last byte."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise ConfigError("give one or more folders of shards")


def main() -> None:
    """Check every folder; raise when one has a fault."""
    settings = tyro.cli(Check, description=__doc__)
    console = Console()
    broken = 0
    for folder in settings.folders:
        manifest = read_manifest(folder)
        with RecordBar(f"checking {folder}", console, keep=False) as bar:
            faults = check_shards(folder, bar.update)
        console.print(_table(folder, manifest))
        console.print(_leads(manifest))
        for fault in faults:
            console.print(f"[red]fault[/red] {fault}", highlight=False)
        broken += bool(faults)
        if not faults:
            console.print(f"{folder}: {manifest.kept:,} records in {len(manifest.shards)} shards are whole")
    if broken:
        raise ShardError(f"{broken} of {len(settings.folders)} folders have faults; see above")


def _table(folder: Path, manifest: Manifest) -> Table:
    """Return the manifest for people."""
    table = Table(title=str(folder), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name in ("title", "version", "licence", "citation", "address"):
        table.add_row(name, str(getattr(manifest, name)))
    expected = f" of {manifest.expected_records:,} published" if manifest.expected_records else ""
    refused = ", ".join(f"{count:,} {reason}" for reason, count in manifest.refused.items()) or "none"
    table.add_row("records", f"{manifest.seen:,} seen{expected}, {manifest.kept:,} kept")
    table.add_row("refused", refused)
    table.add_row("mended", ", ".join(f"{count:,} by {rule}" for rule, count in manifest.mended.items()) or "none")
    if manifest.segments != manifest.kept or manifest.refused_segments:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in manifest.refused_segments.items()) or "none"
        table.add_row("segments", f"{manifest.segments:,} kept; refused: {lost}; {manifest.cut_s:,.0f} s left over")
    table.add_row("flags", ", ".join(f"{count:,} {flag}" for flag, count in manifest.flags.items()) or "none")
    corner = manifest.options["signal"]["highpass_hz"]
    table.add_row("high-pass", f"{corner:g} Hz, zero phase" if corner else "none")
    table.add_row("patients", f"{manifest.patients:,}")
    table.add_row("rate", ", ".join(f"{rate} Hz ({count:,} records)" for rate, count in manifest.rates_hz.items()))
    for scheme, counts in manifest.labels.items():
        most = sorted(counts.items(), key=lambda item: -item[1])[:8]
        table.add_row(f"labels: {scheme}", ", ".join(f"{code} {count:,}" for code, count in most))
    return table


def _leads(manifest: Manifest) -> Table:
    """Return mean and standard deviation per lead."""
    table = Table("lead", "mean mV", "std mV")
    for lead, mean, std in zip(LEADS, manifest.mean_mv, manifest.std_mv, strict=True):
        table.add_row(lead, f"{mean:.4f}", f"{std:.4f}")
    return table


if __name__ == "__main__":
    config.run_command(main)
