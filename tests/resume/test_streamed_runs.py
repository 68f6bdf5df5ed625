"""Runs that stream their shards: they go on exactly, pass over damage, and all ranks hear of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.data.elsewhere import Server, damage, serving


@pytest.fixture
def folder(tmp_path: Path, training_shards: Path) -> Path:
    """Return a copy of the 30 records in four shards, to be damaged."""
    return Path(shutil.copytree(training_shards, tmp_path / "there"))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """Serve that copy."""
    with serving(folder) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, tiny: list[str], run_ranks: Callable[..., list[int]]) -> Callable[..., str]:
    """Return a function that runs the recipe on shards of its own to the end, and returns all that it said."""

    def go(*words: str | Path, ranks: int = 0, fails: bool = False) -> str:
        log = tmp_path / "said"
        log.unlink(missing_ok=True)
        status = run_ranks(ranks, "recipes/jepa_vit.py", *tiny[2:], *words, log=log)
        assert all((one != 0) == fails for one in status), log.read_text()[-3000:]
        return log.read_text()

    return go


def test_a_recipe_streams_from_a_server_goes_on_exactly_and_passes_over_damage(
    tmp_path: Path, folder: Path, server: Server, run: Callable[..., str], losses: Callable[[Path], list[float]]
) -> None:
    words = ["--data.shards", server.url, "--data.stream-block", "2", "--data.on-corrupt", "skip"]
    damage("a changed sample", folder)
    said = run(*words, "--steps", "8", "--out", tmp_path / "whole")
    assert f"streamed: 4 shards (0.00 GB) of {server.url}" in said
    assert "warning:" in said and "SHA-256" in said
    run(*words, "--steps", "3", "--out", tmp_path / "run")
    # The folder itself, in the order of streams: the place is free to change.
    words[1:2] = [str(folder), "--data.stream"]
    run(*words, "--steps", "8", "--out", tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    lines = [(tmp_path / name / "skipped_records.jsonl").read_text() for name in ("run", "whole")]
    assert lines[0] == lines[1]
    found = [json.loads(line) for line in lines[0].splitlines()]
    assert [(line["step"], line["position"]) for line in found] == [(2, 11), (6, 46)]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_records"] == 2
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000008" / "state.json").read_text())
    assert state["recipe"] == "jepa_vit.py"


def test_every_rank_hears_of_damage_that_one_has_met(
    tmp_path: Path, folder: Path, server: Server, run: Callable[..., str]
) -> None:
    damage("a changed sample", folder)
    words = ["--data.shards", server.url, "--data.stream-block", "2", "--out", tmp_path / "run"]
    said = run(*words, ranks=2, fails=True)
    # Position 11 is in the second step, and a row of rank 0; the other rank has it told.
    assert said.count("georgia-all-000001.tar: record E00011 is damaged") >= 2 and "rank 0: georgia" in said
    assert "hangs" not in said and not list((tmp_path / "run").glob("checkpoints/step-*"))
