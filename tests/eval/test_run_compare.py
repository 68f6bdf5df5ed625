"""What differs between runs is told, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval.run_compare import as_csv, as_markdown, compare_runs


def write_run(folder: Path, lr: float, torch: str, records: int, val_loss: float) -> Path:
    """Write a run of two logged steps, of which the first was validated, with a checkpoint."""
    checkpoint = folder / "checkpoints" / "step-00000020"
    checkpoint.mkdir(parents=True)
    settings = {"out": str(folder), "optim": {"lr": lr, "schedule_steps": 20}, "data": {"shards": ["a", "b"]}}
    (folder / "run.json").write_text(json.dumps(settings))
    lines: list[dict[str, Any]] = [
        {"step": 10, "time": 1.0, "loss": 0.9, "lr": lr, "val_loss": val_loss, "probe_auc": 0.75},
        {"step": 20, "time": 2.0, "loss": 0.5, "lr": lr, "records_per_s": 12_345.6, "alarm": "spike: loss 9"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shards = [{"database": "ptb", "manifest_sha256": "0123456789", "records": 5}]
    shards.append({"database": "ludb", "manifest_sha256": f"{records:0>10}", "records": records})
    (checkpoint / "state.json").write_text(json.dumps({"versions": {"torch": torch, "numpy": "2"}, "shards": shards}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Return two runs that differ in a setting, a version, a database and a figure."""
    return (
        write_run(tmp_path / "one", 1e-3, "2.11", 200, 0.7),
        write_run(tmp_path / "two|", 5e-4, "2.15", 199, 0.6),
    )


def test_settings_versions_and_shards_are_told_where_they_differ_and_figures_always(runs: tuple[Path, Path]) -> None:
    names, sections = compare_runs(runs)
    assert names == ["one", "two|"]
    assert {section.title: section.rows for section in sections} == {
        "settings that differ": [("optim.lr", "0.001", "0.0005")],
        "versions that differ": [("torch", "2.11", "2.15")],
        "shards that differ": [
            ("ludb (00000002)", "200 records", "-"),
            ("ludb (00000001)", "-", "199 records"),
        ],
        "last figures": [
            ("step", "20 of 20", "20 of 20"),
            ("loss", "0.5", "0.5"),
            ("val_loss", "0.7", "0.6"),
            ("probe_auc", "0.75", "0.75"),
            ("records_per_s", "12,346", "12,346"),
            ("skipped steps", "0", "0"),
            ("steps in alarm", "1", "1"),
        ],
    }


def test_files_hold_what_is_shown(runs: tuple[Path, Path]) -> None:
    names, sections = compare_runs(runs)
    text = as_markdown(names, sections)
    assert "| settings that differ | one | two\\| |\n| --- | --- | --- |\n| optim.lr | 0.001 | 0.0005 |\n" in text
    rows = list(csv.reader(as_csv(names, sections).splitlines()))
    assert rows[0] == ["section", "name", "one", "two|"]
    assert ["last figures", "records_per_s", "12,346", "12,346"] in rows
    assert len(rows) == 1 + sum(len(section.rows) for section in sections)


def test_runs_without_a_checkpoint_or_a_step_are_compared_by_what_they_have(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"seed": 1}')
    _, sections = compare_runs((tmp_path / "one", tmp_path / "two"))
    assert [section.title for section in sections] == ["last figures"]
    assert sections[0].rows[0] == ("step", "0", "0")


def test_what_is_no_run_is_refused_by_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more runs to compare, got 1"):
        compare_runs(runs[:1])
    with pytest.raises(ConfigError, match=rf"{tmp_path} holds no run: it has no run.json"):
        compare_runs((runs[0], tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run.json is not JSON"):
        compare_runs((runs[0], tmp_path))
