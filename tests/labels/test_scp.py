"""SCP statements and the tasks of PTB-XL, against the published table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ecgfm.errors import ConfigError
from ecgfm.labels.scp import TASKS, statements, task, task_labels

SIZES = {"all": 71, "diagnostic": 44, "subdiagnostic": 23, "superdiagnostic": 5, "form": 19, "rhythm": 12}


def published(ecg_data: Path) -> list[dict[str, str]]:
    with (ecg_data / "ptb-xl/scp_statements.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tasks_have_the_published_sizes() -> None:
    assert {name: len(task_labels(name)) for name in TASKS} == SIZES


def test_statements_are_those_published(ecg_data: Path) -> None:
    table = published(ecg_data)
    assert list(statements()) == [row[""] for row in table]
    for row in table:
        one = statements()[row[""]]
        groups = (one.diagnostic, one.form, one.rhythm)
        assert groups == tuple(row[name] == "1.0" for name in ("diagnostic", "form", "rhythm"))
        assert one.description == row["description"]
        assert (one.superclass, one.subclass) == (row["diagnostic_class"], row["diagnostic_subclass"])
        assert any(groups)
        assert one.diagnostic == bool(one.superclass) == bool(one.subclass)


def test_a_statement_goes_to_its_classes_and_nowhere_else() -> None:
    assert {name: task(name).get("INJAS") for name in TASKS} == {
        "all": "INJAS",
        "diagnostic": "INJAS",
        "subdiagnostic": "AMI",
        "superdiagnostic": "MI",
        "form": None,
        "rhythm": None,
    }
    assert task("form")["NDT"] == task("diagnostic")["NDT"] == "NDT"
    assert task("rhythm").keys().isdisjoint(task("form").keys() | task("diagnostic").keys())
    assert task_labels("superdiagnostic") == ("CD", "HYP", "MI", "NORM", "STTC")


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="'super' is no task of PTB-XL; there are: all, diagnostic,"):
        task("super")
