"""Download a public ECG database, checked against its published hashes.

    python tools/download.py ptb-xl OUT --only 'records100/*' '*.csv'

Ctrl-C, a lost connection or a full disk lose nothing that is whole: the same command goes on where it was, and
a later one fetches only what is missing. --verify computes the hashes of all that is there again. Nothing of you
is sent: no password, no token, no cookie.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ecgfm import config, parts
from ecgfm.databases._download import Choice, Tally, facts, fetch_database
from ecgfm.databases._download_http import Patience
from ecgfm.databases.base import Database, load_database
from ecgfm.errors import ConfigError, DatabaseError


@dataclass(frozen=True, kw_only=True)
class DownloadDatabase:
    """Download a public ECG database; run again, it goes on with what is missing."""

    database: tyro.conf.Positional[str]
    """Name of the database; one of the files in ecgfm/databases/."""
    out: tyro.conf.Positional[Path]
    """Folder for the database, in its published layout."""
    workers: int = 4
    """Connections at once. Servers that are free for all are slowed by many; 4 is polite, 32 the most."""
    address: str = ""
    """A mirror to use instead of the published address: the folder that the published paths are below."""
    only: tuple[str, ...] = ()
    """Patterns of the paths that are wanted, such as 'records100/*', instead of all that the reader needs."""
    verify: bool = False
    """Compute the hashes of files that are there again, instead of going by their size and time."""
    attempts: int = 6
    """Tries without a new byte before a file is given up."""
    silence_s: float = 60.0
    """Time without a byte after which a connection counts as broken."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"--attempts must be at least 1, got {self.attempts}")
        if not self.silence_s > 0:
            raise ConfigError(f"--silence-s must be more than 0, got {self.silence_s:g}")


def main() -> None:
    """Download, with a progress bar, and print what came and what to do next."""
    names = ", ".join(name.replace("_", "-") for name in parts.names("ecgfm.databases"))
    settings = tyro.cli(DownloadDatabase, description=f"{__doc__}\nDatabases: {names}.")
    choice = Choice(
        address=settings.address,
        only=settings.only,
        workers=settings.workers,
        verify=settings.verify,
        patience=Patience(attempts=settings.attempts, silence_s=settings.silence_s),
    )
    database = load_database(settings.database)
    download = facts(database)
    console = Console()
    address = settings.address or download.address
    console.print(f"{database.title} {database.version}, licence {database.licence}, from {address}", highlight=False)
    with DownloadBar(database.name(), console) as bar:
        tally = fetch_database(download, settings.out, choice, progress=bar.update)
    console.print(_table(database, settings.out, tally), highlight=False)
    if tally.failed:
        raise DatabaseError(
            f"{tally.failed:,} of {tally.files:,} files could not be had; "
            f"{settings.out / '.download' / 'failed.txt'} lists them. The first: {tally.examples[0]}. "
            "The same command tries them again"
        )


class DownloadBar:
    """Shows files and bytes done, the speed, and the time left. Use as a context; hand `update` to the work."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._doing = ""
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=None, done="")

    def __enter__(self) -> DownloadBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, tally: Tally) -> None:
        """Show how far the work is: by bytes where their number is known, otherwise by files."""
        files = tally.there + tally.fetched + tally.failed
        done, total = files, tally.files
        if tally.total_bytes is not None:
            done, total = tally.bytes, tally.total_bytes
        if tally.doing != self._doing:
            # What was there before does not count as speed.
            self._doing, self._start = tally.doing, time.perf_counter()
            self._bar.reset(
                self._task, total=total or None, completed=done, description=f"{self._title}: {tally.doing}"
            )
        rate = tally.received / max(time.perf_counter() - self._start, 1e-9)
        words = f"{files:,} of {tally.files:,} files, {_size(tally.received)}, {rate / 1e6:,.1f} MB/s"
        self._bar.update(self._task, completed=done, done=words if total else "")


def _table(database: Database, out: Path, tally: Tally) -> Table:
    """Return the closing table."""
    table = Table(title=f"{database.title} -> {out}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("fetched", f"{tally.fetched:,} files, {_size(tally.received)}")
    table.add_row("already there", f"{tally.there:,} files")
    table.add_row("failed", f"{tally.failed:,} files")
    table.add_row("licence", database.licence)
    table.add_row("cite", database.citation)
    if not tally.failed:
        table.add_row("next", f"python tools/convert.py {database.name()} {out} SHARDS")
    return table


def _size(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    config.run_command(main)
