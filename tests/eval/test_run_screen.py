"""The screen of a run: how it stands in words, and curves whose dots are its numbers."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ecgfm.errors import ConfigError
from ecgfm.eval.run_screen import ago, chart, screen, sparkline

BEGAN = 1_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run of 1,000 steps that has just been started."""
    (tmp_path / "run.json").write_text(json.dumps({"optim": {"schedule_steps": 1000}, "steps": None}))
    os.utime(tmp_path / "run.json", (BEGAN, BEGAN))
    return tmp_path


def log(run: Path, steps: range, **more: Any) -> None:
    """Write a line each ten steps, 4 s apart."""
    lines = [{"step": s, "time": BEGAN + 0.4 * s, "loss": 1 / s, "lr": 1e-3, "loader_wait": 0.25} for s in steps]
    lines[-1] |= more
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def text(run: Path, after_s: float, width: int = 100, height: int = 40) -> str:
    console = Console(width=width, height=height, file=io.StringIO(), record=True)
    console.print(screen(run, BEGAN + after_s, width=width, height=height))
    said = console.export_text()
    assert max(map(len, said.splitlines())) <= width
    assert len(said.splitlines()) <= height
    return said


def test_a_run_that_has_logged_nothing_says_when_it_was_started(run: Path) -> None:
    assert "no step is logged yet; it was started 3 min 20 s ago" in text(run, 200)


def test_a_run_under_way_says_where_it_is_and_what_is_left(run: Path) -> None:
    log(run, range(10, 510, 10))
    (run / "checkpoints" / "step-00000400").mkdir(parents=True)
    (run / "checkpoints" / "step-00000450.tmp").mkdir()
    os.utime(run / "checkpoints" / "step-00000400", (BEGAN + 160, BEGAN + 160))
    said = text(run, 210)
    assert "training" in said and "step 500 of 1,000" in said
    # 500 steps of 0.4 s.
    assert "3 min 20 s left" in said
    assert "last checkpoint: step 400, 50 s ago" in said
    assert "0.002" in said and "25.0%" in said
    assert "alarm" not in said and "skipped" not in said


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (60, 11)])
def test_it_fits_the_terminal(run: Path, width: int, height: int) -> None:
    log(run, range(10, 510, 10))
    said = text(run, 210, width, height)
    assert ("step 10 " in said) == (height > 11)


def test_a_run_that_fell_silent_is_told_from_one_that_is_slow_and_one_that_has_ended(run: Path) -> None:
    log(run, range(10, 510, 10))
    assert "training" in text(run, 200 + 59)
    assert "no line since 5 min 0 s, and there was one every 4.0 s" in text(run, 200 + 300)
    log(run, range(10, 1010, 10))
    assert "finished" in text(run, 100_000)
    # Clocks of two machines: the line is from the future.
    log(run, range(10, 510, 10))
    assert "training" in text(run, 150)


def test_alarms_and_skipped_steps_are_counted_and_told(run: Path) -> None:
    log(run, range(10, 510, 10), alarm="spike: loss 9, usually 1")
    (run / "bad_steps.jsonl").write_text('{"step": 33}\n{"step": 44}\n')
    said = text(run, 210)
    assert "2 skipped steps, the last at 44" in said
    assert "1 logged steps in alarm; now, the last at 500: spike: loss 9, usually 1" in said


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run: it has no run.json"):
        screen(tmp_path, 0.0)
    with pytest.raises(ConfigError, match="holds no run: it is not there"):
        screen(tmp_path / "nothing", 0.0)


def dots(rows: list[str]) -> np.ndarray:
    """Return the dots of Braille rows as a boolean picture; bits as in Unicode's table, column by column."""
    bits = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    picture = np.zeros((4 * len(rows), 2 * len(rows[0])), dtype=bool)
    for row, line in enumerate(rows):
        for column, letter in enumerate(line):
            for bit, (down, right) in enumerate(bits):
                picture[4 * row + down, 2 * column + right] = bool(ord(letter) - 0x2800 >> bit & 1)
    return picture


def test_the_dots_of_a_straight_line_lie_on_it() -> None:
    picture = dots(chart(np.arange(40.0), np.arange(40.0), 20, 10))
    assert picture.shape == (40, 40)
    height, place = np.nonzero(picture)
    # A line of slope one, joined with the column before: on it, or one dot below.
    assert set((39 - height - place).tolist()) <= {0, -1}
    assert picture.any(axis=0).all()


def test_a_single_point_among_many_is_not_averaged_away() -> None:
    y = np.zeros(10_000)
    y[5_000] = 7.0
    picture = dots(chart(np.arange(10_000.0), y, 20, 5))
    assert picture[0].sum() == 1 and picture[-1].all()


def test_a_sparkline_goes_from_its_least_to_its_greatest() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8) == "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
    assert sparkline([1.0, 1.0, 5.0, 5.0], 2) == "\u2581\u2588"
    assert len(set(sparkline([3.0] * 50, 10))) == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (42, "42 s"), (59.7, "60 s"), (61, "1 min 1 s"), (7300, "2 h 1 min"), (260_000, "3 d 0 h")],
)
def test_times_are_told_in_two_units(seconds: float, words: str) -> None:
    assert ago(seconds) == words
