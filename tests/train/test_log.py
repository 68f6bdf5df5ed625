"""What a run tells is told as it is, and a run that goes on tells each step once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecgfm.run_folder import read_metrics
from ecgfm.train.log import RunLog
from ecgfm.train.monitor import MonitorConfig

FIGURES = {"loss": 0.5, "lr": 1e-3, "records_per_s": 9.0}


def test_brackets_and_colons_of_paths_and_labels_are_said_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, 0, 3, MonitorConfig())
    said = "runs/[first]/x of [/data/ptb] with ludb:warning:sinus"
    log.say(said)
    log.close()
    assert capsys.readouterr().out == f"{said}\n"


def test_a_run_that_goes_on_keeps_the_lines_before_it_and_no_damaged_one(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 9, MonitorConfig())
    for step in range(1, 6):
        log.metrics({"step": step, **FIGURES})
        log.bad_step({"step": step, "not_finite": "loss"})
    log.close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    # The disk damages one line, and a kill cuts the last one short.
    path.write_text("\n".join([lines[0], "\0" + lines[1][1:], *lines[2:], '{"step": 6, "lo']))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 4, 5]
    RunLog(tmp_path, 4, 9, MonitorConfig()).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]
    assert [line["step"] for line in read_metrics(tmp_path, "bad_steps.jsonl")] == [1, 2, 3, 4]
