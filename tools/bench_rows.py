"""Rows of the benches' tables, the clock that all of them read, and who is measured when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ecgfm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was compared with what."""

    what: str
    baseline: str
    """What stands for 1 in the ratio."""
    ratio: float | None = None
    """Of speeds, or a share; None where it could not be measured here."""
    aim: float | None = None
    """None is told, and has no aim."""
    at_most: bool = False
    """Whether the ratio must not be above the aim, instead of not below it."""
    note: str = ""
    """What else is to be said, or what is needed to measure it."""

    @property
    def reached(self) -> str:
        """Whether the aim was reached, in a word."""
        if self.ratio is None:
            return "not measured"
        if self.aim is None:
            return ""
        return "yes" if (self.ratio <= self.aim if self.at_most else self.ratio >= self.aim) else "no"


def show(rows: Sequence[Row], title: str, out: Path | None = None) -> None:
    """Print a table, and write it as JSON where a file is named."""
    table = Table("what", "against", "ratio", "aim", "reached", "note", title=title)
    for row in rows:
        sign = "<=" if row.at_most else ">="
        aim = "" if row.aim is None else f"{sign} {row.aim:g}"
        table.add_row(
            row.what, row.baseline, "" if row.ratio is None else f"{row.ratio:.3g}", aim, row.reached, row.note
        )
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return what `show` wrote."""
    return [Row(**content) for content in json.loads(path.read_text())]


def best(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Return the least seconds of each way, of `repeats` rounds in which all of them have their turn.

    On a CPU with one thread they are of the process, not of the clock on the wall: others may use the machine. A round
    that does not count comes first.
    """
    found = dict.fromkeys(ways, float("inf"))
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for number in range(repeats + 1):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = clock()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                found[name] = min(found[name], clock() - began)
    return found


def device_of(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ConfigError: It is not.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used: {reason}; 'cpu' always can") from error


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a large matrix product, the best of some."""
    size = 8192 if device.type == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best({"product": lambda: one @ one}, device, 10)["product"]
