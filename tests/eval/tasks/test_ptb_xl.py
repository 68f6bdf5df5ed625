"""The tasks of PTB-XL against a slow version, written from the benchmark's description over the published tables."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import task_examples
from ecgfm.eval.tasks.ptb_xl import PtbXl
from ecgfm.labels.scp import TASKS
from tests.eval.tasks.conftest import Make

PARTS = {9: "validation", 10: "test"}


def rows(ecg_data: Path) -> list[dict[str, str]]:
    with (ecg_data / "ptb-xl/ptbxl_database.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shards_of(table: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "record": f"{int(row['ecg_id']):05d}",
            "patient": row["patient_id"],
            "fold": int(row["strat_fold"]),
            "labels": {"scp": list(ast.literal_eval(row["scp_codes"]))},
        }
        for row in table
    ]


def benchmark(
    ecg_data: Path, table: list[dict[str, str]], task: str, minimum: int
) -> tuple[list[str], list[int], list[list[int]]]:
    """Return classes, ecg_ids and multi-hot rows, straight from scp_statements.csv."""
    with (ecg_data / "ptb-xl/scp_statements.csv").open(encoding="utf-8", newline="") as file:
        statements = {row[""]: row for row in csv.DictReader(file)}
    flag, column = {
        "all": (None, None),
        "diagnostic": ("diagnostic", None),
        "subdiagnostic": ("diagnostic", "diagnostic_subclass"),
        "superdiagnostic": ("diagnostic", "diagnostic_class"),
        "form": ("form", None),
        "rhythm": ("rhythm", None),
    }[task]
    said: list[set[str]] = []
    for row in table:
        codes = set()
        for code in ast.literal_eval(row["scp_codes"]):
            if flag is None or statements[code][flag] == "1.0":
                codes.add(statements[code][column] if column else code)
        said.append(codes)
    counts = {code: sum(code in codes for codes in said) for codes in said for code in codes}
    classes = sorted(code for code, number in counts.items() if number > minimum)
    kept = [(row, codes & set(classes)) for row, codes in zip(table, said, strict=True) if codes & set(classes)]
    hot = [[int(code in codes) for code in classes] for _, codes in kept]
    return classes, [int(row["ecg_id"]) for row, _ in kept], hot


@pytest.mark.parametrize("minimum", [0, 20])
@pytest.mark.parametrize("statements", TASKS)
def test_labels_records_and_folds_are_those_of_the_benchmark(
    statements: Any, minimum: int, ecg_data: Path, told: Make
) -> None:
    table = rows(ecg_data)
    got = task_examples(told(shards_of(table), "ptb-xl"), PtbXl.Config(statements=statements, min_records=minimum))
    classes, identities, hot = benchmark(ecg_data, table, statements, minimum)
    assert list(got.labels) == classes and len(classes) > 1
    assert [int(table[index]["ecg_id"]) for index in got.index_N] == identities
    np.testing.assert_array_equal(got.target_NC, hot)
    folds = [int(table[index]["strat_fold"]) for index in got.index_N]
    assert got.folds is not None and got.folds.tolist() == folds
    assert got.split_N.tolist() == [PARTS.get(fold, "train") for fold in folds]
    assert got.left_out.get("without a label of the task", 0) == len(table) - len(identities)


def test_a_single_superclass_excludes_the_others(ecg_data: Path, told: Make) -> None:
    table = rows(ecg_data)
    got = task_examples(told(shards_of(table), "ptb-xl"), PtbXl.Config(statements="superdiagnostic", single_label=True))
    classes, identities, hot = benchmark(ecg_data, table, "superdiagnostic", 0)
    one = [(identity, row) for identity, row in zip(identities, hot, strict=True) if sum(row) == 1]
    assert got.kind == "multiclass" and got.labels == ("CD", "HYP", "MI", "NORM", "STTC") == tuple(classes)
    assert [int(table[index]["ecg_id"]) for index in got.index_N] == [identity for identity, _ in one]
    np.testing.assert_array_equal(got.target_NC, [row for _, row in one])
    assert got.left_out["with several labels"] == len(hot) - len(one) > 0


def test_a_likelihood_of_0_is_a_statement_too(ecg_data: Path, told: Make) -> None:
    table = rows(ecg_data)
    assert table[0]["scp_codes"] == "{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}"
    got = task_examples(told(shards_of(table), "ptb-xl"), PtbXl.Config())
    assert {label for label, value in zip(got.labels, got.target_NC[0], strict=True) if value} == {
        "NORM", "LVOLT", "SR",
    }  # fmt: skip


def test_a_record_without_a_fold_is_refused(ecg_data: Path, told: Make) -> None:
    records = shards_of(rows(ecg_data))
    records[4]["fold"] = None
    with pytest.raises(ConfigError, match="record 00005 of ptb-xl has fold None"):
        task_examples(told(records, "ptb-xl"), PtbXl.Config())
