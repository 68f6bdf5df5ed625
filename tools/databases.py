"""List the databases that can be converted, or tell all about one.

    python tools/databases.py
    python tools/databases.py ptb

The second prints the database's facts, its rules for `--mend`, and the manual of its reader.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config, parts
from ecgfm.databases.base import Database, load_database


@dataclass(frozen=True, kw_only=True)
class Databases:
    """List the databases that can be converted, or tell all about one."""

    name: tyro.conf.Positional[str | None] = None
    """A database, to be told all about it; all of them in a table when left out."""


def main() -> None:
    """Print the table, or one database's facts and the manual of its reader."""
    settings = tyro.cli(Databases, description=__doc__)
    console = Console()
    if settings.name is None:
        console.print(_table([load_database(name) for name in parts.names("ecgfm.databases")]))
        return
    database = load_database(settings.name)
    console.print(_facts(database))
    console.print(sys.modules[type(database).__module__].__doc__, markup=False, highlight=False)


def _table(databases: list[Database]) -> Table:
    table = Table("name", "records", "Hz", "licence", "title")
    for database in databases:
        records = f"{database.expected_records:,}" if database.expected_records else ""
        table.add_row(database.name(), records, _rates(database), database.licence, database.title)
    return table


def _facts(database: Database) -> Table:
    table = Table(title=database.title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("name", database.name())
    for fact in ("version", "licence", "citation", "address"):
        table.add_row(fact, str(getattr(database, fact)))
    table.add_row("records", f"{database.expected_records:,}" if database.expected_records else "any number")
    table.add_row("rate", f"{_rates(database)} Hz" if database.native_rates_hz else "as its headers or tables say")
    table.add_row("leads", " ".join(database.native_leads) or "as its headers or tables say")
    table.add_row("unit", database.native_unit)
    table.add_row("high-pass", f"{database.highpass_hz:g} Hz by default" if database.highpass_hz else "none by default")
    for rule, what in database.mends.items():
        table.add_row(f"--mend {rule}", what)
    download = database.download
    way = "not published file by file" if download is None else download.steps or f"tools/download.py {database.name()}"
    table.add_row("download", way)
    return table


def _rates(database: Database) -> str:
    return ", ".join(f"{rate:g}" for rate in database.native_rates_hz)


if __name__ == "__main__":
    config.run_command(main)
