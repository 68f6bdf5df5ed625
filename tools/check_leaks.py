"""Find recordings and patients that a pretraining mixture shares with held-out records, and recordings it has twice.

    python tools/check_leaks.py out/mimic-iv-ecg out/code-15 out/georgia --held-out out/ptb-xl

Recordings are recognised by their signal, in whatever database, gain, lead order or rate they are published. Reads the
manifests alone; a million records take some two minutes. Ends with status 1 when there is a leak.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ecgfm import config
from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards.leaks import EXAMPLES, Leak, LeakReport, check_leaks
from ecgfm.signal.fingerprint import SAME_BITS


@dataclass(frozen=True, kw_only=True)
class Check:
    """Find leaks in a pretraining mixture."""

    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the mixture. Pretraining reads their splits `all` and `train`; `val` and `test` are held out."""
    held_out: tuple[Path, ...] = ()
    """More folders that the mixture must share nothing with: their `val` and `test`, or all of one that has neither."""
    threshold: int = SAME_BITS
    """Bits, of 366, in which the fingerprints of one recording may differ."""

    def __post_init__(self) -> None:
        # An empty list, as a pattern in a script gives it, must not end as "no leak".
        if not self.shards:
            raise ConfigError("give one or more folders of shards")


def main() -> None:
    """Compare all folders; raise when there is a leak."""
    settings = tyro.cli(Check, description=__doc__)
    console = Console()
    columns = (TextColumn("comparing"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        report = check_leaks(
            settings.shards,
            settings.held_out,
            most_bits=settings.threshold,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{report.pretraining:,} samples for pretraining, {report.held_out:,} held out; {report.without_content:,} of "
        "them give no fingerprint (flat or short) and were compared by patient alone"
    )
    if report.leaks or report.doubled:
        console.print(_table(report))
    for note in report.notes:
        console.print(f"[yellow]note[/yellow] {note}", highlight=False)
    if report.leaks:
        raise ShardError(
            f"{len(report.leaks):,} leaks: leave out what the table lists, or convert it without these records"
        )
    console.print("no leak: no recording and no patient of these is both for pretraining and held out")


def _table(report: LeakReport) -> Table:
    """Return leaks and doubled recordings by pair of databases, with examples."""
    table = Table("", "databases", "count", "examples", show_lines=True)
    groups: dict[tuple[str, str, str], list[Leak]] = defaultdict(list)
    for leak in report.leaks:
        groups[leak.what, leak.pretraining.database, leak.held_out.database].append(leak)
    for (what, one, other), leaks in sorted(groups.items()):
        examples = "\n".join(map(str, leaks[:EXAMPLES]))
        table.add_row(f"[red]leak[/red]: {what}", f"{one} in held-out {other}", f"{len(leaks):,}", examples)
    for pair in report.doubled:
        one, other = pair.databases
        examples = "\n".join(f"{first} is {second}" for first, second in pair.examples)
        table.add_row("doubled", one if one == other else f"{one} and {other}", f"{pair.count:,}", examples)
    return table


if __name__ == "__main__":
    config.run_command(main)
