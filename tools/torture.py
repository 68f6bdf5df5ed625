"""Do to a training run what days on a cluster do to it, and look whether it goes on as if nothing had been.

    python tools/torture.py                          (or: make torture)
    python tools/torture.py --only rank-0 full-disk

Every row starts a real run of two ranks on synthetic shards, hurts it at a moment that --seed decides, starts the same
command again, and compares all losses with those of a run that nobody touched. Ends with 1 when a row is not as it
must be. On the CPU, where the losses are the same to the last bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from torture_cases import CASES, EVERY, ROOT, STEPS, Case, Victim, break_loader, mount  # type: ignore[import-not-found]

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.run_folder import read_metrics


@dataclass(frozen=True, kw_only=True)
class Torture:
    """Hurt a run in every way and see whether it goes on."""

    seed: int = 0
    """Decides the moments."""
    minutes: float = 20.0
    """No row is begun after this."""
    out: Path = Path("torture")
    """Folder for everything that is made; what an earlier call made there is deleted."""
    only: tuple[str, ...] = ()
    """Only these rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of it."""

    said: str
    status: int | None
    lost: int | None
    same: bool
    faults: tuple[str, ...]


def torture(name: str, folder: Path, shards: Path, whole: dict[int, float], moment: int) -> Row:
    """Start, hurt, start again, compare."""
    case = CASES[name]
    if case.own_shards:
        shutil.copytree(shards, folder.with_name(f"{name}-shards"))
        shards = folder.with_name(f"{name}-shards")
    victim = Victim(folder, shards, case, moment)
    try:
        case.prepare(victim)
        victim.start()
        if case.prepare is not break_loader:
            victim.wait_for_moment()
        case.hurt(victim)
        status = victim.end()
        first = victim.log.read_text(errors="replace")
        reached = victim.steps()
        case.heal(victim)
        again: int | None = 0
        if not (case.restarts and status == 0):
            victim.start()
            again = victim.end()
        text = victim.log.read_text(errors="replace")
        losses = {int(line["step"]): float(line["loss"]) for line in read_metrics(victim.run)}
    finally:
        victim.kill_all()
        if case.prepare is mount:
            subprocess.run(["umount", "--lazy", str(victim.run)], check=False)
    second = text if case.restarts else text[len(first) :]
    return judge(case, status, first, second, (reached, again), losses == whole)


def judge(case: Case, status: int | None, first: str, second: str, numbers: tuple[int, int | None], same: bool) -> Row:
    """Compare what came of it with what must."""
    reached, again = numbers
    went_on = re.search(r"going on from step ([\d,]+)", second)
    lost = None
    if went_on and not case.restarts:
        lost = reached - int(went_on[1].replace(",", ""))
    faults = []
    if status not in case.status:
        faults.append("it did not end" if status is None else f"status {status}, not {case.status}")
    if not re.search(case.says, first + second):
        faults.append(f"it did not say {case.says!r}")
    if lost is not None and not 0 <= lost <= case.lost:
        faults.append(f"{lost} steps lost, not up to {case.lost}")
    if again != 0:
        faults.append("the second start did not end" if again is None else f"the second start ended with {again}")
    if not same:
        faults.append("other losses than a run that nobody touched")
    # TensorBoard's thread writes one where the disk is full.
    if re.search(r"\[rank\d+\]: Traceback", first + second):
        faults.append("a traceback")
    found = [line for line in (first + second).splitlines() if re.search(case.says, line)]
    return Row(said=said(found or first.splitlines()), status=status, lost=lost, same=same, faults=tuple(faults))


def said(lines: list[str]) -> str:
    """Return the line that tells a person most."""
    telling = [line for line in lines if re.match(r"error|WARNING|stopped at", line)]
    return (telling or lines or ["nothing"])[0][:300]


def make_shards(out: Path) -> Path:
    """Make shards of a synthetic database."""
    shards = out / "shards"
    for words in (
        ["tools/synthesise.py", str(out / "recordings"), "--records", "48"],
        ["tools/convert.py", "synthetic", str(out / "recordings"), str(shards), "--records-per-shard", "16"],
    ):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    return shards


def main() -> None:
    """Do all rows, print the table."""
    settings = tyro.cli(Torture, description=__doc__)
    if unknown := [name for name in settings.only if name not in CASES]:
        raise ConfigError(f"--only {' '.join(unknown)}: the rows are {', '.join(CASES)}")
    out = settings.out.resolve()
    if out.exists():
        if not (out / "torture.json").exists():
            raise ConfigError(f"--out {out} exists and is not of an earlier call; give another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "torture.json").write_text(json.dumps(config.to_dict(settings)))
    # A shell that starts this with & has it ignored, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console, began = Console(width=None if sys.stdout.isatty() else 160), time.monotonic()
    rows: dict[str, Row | str] = {}
    with console.status("making shards"):
        shards = make_shards(out)
    with console.status("a run that nobody touches"):
        untouched = Case(what="", hurt=lambda victim: None, says="", status=(0,), lost=0)
        victim = Victim(out / "untouched", shards, untouched, 0)
        victim.start()
        if victim.end() != 0:
            raise ConfigError(f"the run that nobody touched failed: see {victim.log}")
        whole = {int(line["step"]): float(line["loss"]) for line in read_metrics(victim.run)}
    for name in settings.only or CASES:
        # Of the name too: a row alone is hurt at the moment at which it is among all.
        moment = random.Random(f"{settings.seed} {name}").randint(2 * EVERY + 5, STEPS // 2)
        if time.monotonic() - began > 60 * settings.minutes:
            rows[name] = "not done: --minutes is over"
        elif CASES[name].prepare is mount and os.geteuid() != 0:
            rows[name] = "not done: needs root, for a small disk"
        else:
            with console.status(f"{CASES[name].what}, after step {moment}"):
                rows[name] = torture(name, out / name, shards, whole, moment)
            row = rows[name]
            assert isinstance(row, Row)
            console.print(f"{name}: {'as it must be' if not row.faults else '; '.join(row.faults)}", highlight=False)
    console.print(table(rows, time.monotonic() - began))
    if any(isinstance(row, Row) and row.faults for row in rows.values()):
        console.print(f"what went wrong is in {out}/NAME/log")
        sys.exit(1)


def table(rows: dict[str, Row | str], seconds: float) -> Table:
    """Return what was done and what came of it."""
    shown = Table("row", "what was done", "what the run said", "status", "steps lost", "same losses", show_lines=True)
    shown.title = f"{seconds / 60:.0f} min"
    for name, row in rows.items():
        if isinstance(row, str):
            shown.add_row(name, CASES[name].what, row, "", "", "")
            continue
        numbers = ["stuck" if row.status is None else str(row.status), "" if row.lost is None else str(row.lost)]
        style = "red" if row.faults else None
        said = "\n".join([row.said, *(f"WRONG: {fault}" for fault in row.faults)])
        shown.add_row(name, CASES[name].what, said, *numbers, "yes" if row.same else "no", style=style)
    return shown


if __name__ == "__main__":
    config.run_command(main)
