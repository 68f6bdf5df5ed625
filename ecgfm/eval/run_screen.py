"""A run as one screen of a terminal, drawn from its folder alone, whoever writes it or wrote it."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ecgfm.run_folder import BAD_STEPS, METRICS, RUN, last_step, newest_checkpoint, read_metrics, read_settings, step_of

SILENT_S = 60.0
"""Seconds without a line that mean nothing, whatever is usual."""
RECENT = 20
"""Logged steps whose median time is the usual one."""
SHARES = ("loader_wait", "mfu", "target_entropy", "usage_entropy")
FIRST = ("loss", "val_loss", "lr", "momentum", "gradient_norm", "records_per_s", "tokens_per_s", "mfu", "tflops")
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character's dots, by row and column."""


def screen(run: Path, now: float, *, width: int = 100, height: int = 30) -> RenderableType:
    """Return a picture of a run as it is now.

    Args:
        run: Folder of the run.
        now: Seconds since 1970.
        width: Columns of the terminal.
        height: Rows of it.

    Raises:
        ConfigError: The folder holds no run.
    """
    settings = read_settings(run)
    lines = read_metrics(run)
    end = last_step(settings)
    word, style = status(run, lines, end, now)
    parts: list[RenderableType] = [
        Text(str(run), style="bold", no_wrap=True, overflow="ellipsis"),
        Text(word, style=style),
    ]
    if lines and end:
        step = lines[-1]["step"]
        row = Table.grid(padding=(0, 2))
        shown = ProgressBar(total=end, completed=step, width=max(20, width - 50))
        row.add_row(f"step {step:,} of {end:,}", shown, _left(lines, end))
        parts.append(row)
    events = _events(run, lines, now)
    figures = _figures(lines, width)
    parts += [events, figures]
    above = 4 + sum(-(-len(line) // width) for line in events.plain.split("\n"))
    room = height - above - figures.row_count
    if sum("loss" in line for line in lines) > 1 and room >= 4:
        parts.append(_loss(lines, width, min(room, 16)))
    return Group(*parts)


def status(run: Path, lines: list[dict[str, Any]], end: int | None, now: float) -> tuple[str, str]:
    """Return how a run is in words, and the style to write them in."""
    if not lines:
        began = (run / RUN).stat().st_mtime
        return f"no step is logged yet; it was started {ago(now - began)} ago", "yellow"
    last = lines[-1]
    if end is not None and last["step"] >= end:
        return "finished", "green"
    silent = max(now - _time(run, last), 0.0)
    usual = _seconds_a_line(lines)
    if silent <= max(SILENT_S, 10 * (usual or 0.0)):
        return "training", "green"
    often = f", and there was one every {ago(usual)}" if usual else ""
    return f"no line since {ago(silent)}{often}: it has stopped, died or hangs", "bold red"


def _time(run: Path, line: dict[str, Any]) -> float:
    """Return when a line was written; a run of before had no times in it."""
    return float(line.get("time", (run / METRICS).stat().st_mtime))


def _seconds_a_line(lines: list[dict[str, Any]]) -> float | None:
    times = [line["time"] for line in lines[-RECENT - 1 :] if "time" in line]
    steps = [later - before for before, later in pairwise(times) if later >= before]
    return median(steps) if steps else None


def _left(lines: list[dict[str, Any]], end: int) -> str:
    """Return the time that is left at the usual speed, in words."""
    recent = [line for line in lines[-RECENT - 1 :] if "time" in line]
    rates = [
        (later["time"] - before["time"]) / (later["step"] - before["step"])
        for before, later in pairwise(recent)
        if later["step"] > before["step"] and later["time"] >= before["time"]
    ]
    if not rates or lines[-1]["step"] >= end:
        return ""
    return f"{ago((end - lines[-1]['step']) * median(rates))} left"


def _events(run: Path, lines: list[dict[str, Any]], now: float) -> Text:
    """Return the last checkpoint, skipped steps and alarms."""
    text = Text()
    newest = newest_checkpoint(run)
    if newest:
        age = ago(max(now - newest.stat().st_mtime, 0.0))
        text.append(f"last checkpoint: step {step_of(newest) or 0:,}, {age} ago")
    else:
        text.append("no checkpoint yet", style="yellow")
    bad = read_metrics(run, BAD_STEPS)
    if bad:
        text.append(f"\n{len(bad):,} skipped steps, the last at {bad[-1]['step']:,} ({BAD_STEPS})", style="red")
    alarms = [line for line in lines if "alarm" in line]
    if alarms:
        over = alarms[-1]["step"] != lines[-1]["step"]
        tail = "; over since" if over else "; now"
        text.append(f"\n{len(alarms):,} logged steps in alarm{tail}, the last at {alarms[-1]['step']:,}: ")
        text.append(alarms[-1]["alarm"], style="dim red" if over else "bold red")
    return text


def _figures(lines: list[dict[str, Any]], width: int) -> Table:
    """Return the last value of each figure, with its course."""
    there = {name for line in lines for name, value in line.items() if isinstance(value, int | float)}
    names = [name for name in FIRST if name in there]
    names += sorted(there - set(names) - {"step", "time"})
    columns = 2 if width >= 96 else 1
    wide = max(8, min(24, (width - 4) // columns - 32))
    table = Table.grid(padding=(0, 1))
    cells = []
    for name in names:
        values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
        cells.append((Text(name.replace("_", " "), style="cyan"), _number(name, values[-1]), sparkline(values, wide)))
    rows = -(-len(cells) // columns)
    for _ in range(columns):
        table.add_column(width=18)
        table.add_column(justify="right", width=10)
        table.add_column(width=wide + 1)
    for row in range(rows):
        table.add_row(*(part for at in range(row, len(cells), rows) for part in cells[at]))
    return table


def _number(name: str, value: float) -> str:
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _loss(lines: list[dict[str, Any]], width: int, height: int) -> Panel:
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    steps, losses = (np.asarray(column, dtype=np.float64) for column in zip(*points))
    low, high = losses.min(), losses.max()
    drawn = chart(steps, losses, max(10, width - 16), height - 3)
    marks = {0: f"{high:.4g}", len(drawn) - 1: f"{low:.4g}"}
    body = "\n".join(f"{marks.get(row, ''):>9} {text}" for row, text in enumerate(drawn))
    foot = f"{'':>9} step {steps[0]:,.0f}" + f"{steps[-1]:,.0f}".rjust(max(1, width - 22 - len(f"{steps[0]:,.0f}")))
    return Panel(Text(f"{body}\n{foot}", style="blue", no_wrap=True), title="loss", title_align="left", width=width)


def chart(x: np.ndarray, y: np.ndarray, width: int, height: int) -> list[str]:
    """Return a line through points as rows of Braille, two dots wide and four high a character.

    Where several points share a column of dots, all from their least to their greatest is drawn.
    """
    columns, rows = 2 * width, 4 * height
    span = max(x[-1] - x[0], 1e-300)
    course = np.interp(np.linspace(x[0], x[-1], columns), x, y)
    low, high = course.copy(), course.copy()
    at = np.rint((x - x[0]) / span * (columns - 1)).astype(int)
    np.minimum.at(low, at, y)
    np.maximum.at(high, at, y)
    # Joined with the column before, as a pen does.
    low[1:] = np.minimum(low[1:], np.minimum(course[:-1], course[1:]))
    high[1:] = np.maximum(high[1:], np.maximum(course[:-1], course[1:]))
    scale = (rows - 1) / max(y.max() - y.min(), 1e-300)
    top = rows - 1 - np.rint((high - y.min()) * scale).astype(int)
    bottom = rows - 1 - np.rint((low - y.min()) * scale).astype(int)
    cells = np.zeros((height, width), dtype=int)
    for column in range(columns):
        for row in range(top[column], bottom[column] + 1):
            cells[row // 4, column // 2] |= DOTS[row % 4][column % 2]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def sparkline(values: list[float], width: int) -> str:
    """Return the course of a figure in one line: means of equal parts of it, from its least to its greatest."""
    parts = [float(part.mean()) for part in np.array_split(np.asarray(values, dtype=np.float64), width) if len(part)]
    low, high = min(parts), max(parts)
    if not high - low > 1e-12 * max(abs(high), abs(low)):
        return BLOCKS[3] * len(parts)
    return "".join(BLOCKS[min(int((part - low) / (high - low) * len(BLOCKS)), len(BLOCKS) - 1)] for part in parts)


def ago(seconds: float) -> str:
    """Return a length of time in words, in the two largest of its units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = timedelta(seconds=round(seconds)) // timedelta(minutes=1)
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
