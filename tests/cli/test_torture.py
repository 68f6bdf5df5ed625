"""tools/torture.py: a rank killed under torchrun, which starts the run again; right is told from wrong."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_killed_rank_is_started_again_by_torchrun_and_the_run_ends_with_the_losses_of_a_whole_one(
    tmp_path: Path, command: Command
) -> None:
    done = command("tools/torture.py", "--only", "restarts", "--out", tmp_path / "out")
    assert done.returncode == 0 and "restarts: as it must be" in done.stdout, done.stdout + done.stderr


def test_a_row_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path, command: Command) -> None:
    done = command("tools/torture.py", "--only", "rank-7", "--out", tmp_path / "out")
    assert done.returncode == 1 and "rank-7" in done.stderr and "rank-0, rank-1" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"same": False}, "other losses"),
        ({"status": 0}, "status 0"),
        ({"status": None}, "did not end"),
        ({"first": "error: something else"}, "did not say"),
        ({"numbers": (31, 0)}, "21 steps lost"),
        ({"numbers": (15, 1)}, "the second start ended with 1"),
        ({"numbers": (15, None)}, "the second start did not end"),
        ({"second": "going on from step 10\n[rank0]: Traceback"}, "a traceback"),
    ],
)
def test_each_thing_that_may_be_wrong_is_found(
    changed: dict[str, Any], fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    judge, cases = (importlib.import_module(name) for name in ("torture", "torture_cases"))
    sound = {
        "status": 247,
        "first": "error: rank 1 on host ended without a word: it was killed, seen by rank 0 in step 16; the same",
        "second": "going on from step 10",
        "numbers": (15, 0),
        "same": True,
    }
    row = judge.judge(cases.CASES["rank-1"], **(sound | changed))
    assert [fault in found for found in row.faults] == [True] if fault else not row.faults
