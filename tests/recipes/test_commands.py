"""Each recipe's help, and the plan of its default run and of each preset, as its command prints them."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecgfm.config import to_dict
from ecgfm.databases.base import load_database
from ecgfm.shards.writer import Options, convert
from tests.recipes.small import RECIPES, ROOT, defaults

Say = Callable[..., str]
RUNS = [(recipe, preset) for recipe in RECIPES for preset in (None, *defaults(recipe)["PRESETS"])]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs a recipe's command in this process, and returns what it prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")

    def run(recipe: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_challenge: Callable[..., Path]) -> Path:
    """Return shards of four records of both sexes, long enough for the longest window, 10.24 s."""
    folder = tmp_path_factory.mktemp("shards")
    time_s = np.arange(5500) / 500
    for number in range(1, 5):
        signal = 500 * np.sin(2 * np.pi * time_s * number + np.arange(12)[:, None])
        comments = ("# Age: 50", f"# Sex: {('Female', 'Male')[number % 2]}", "# Dx: 426783006")
        write_challenge(folder / "georgia", f"E{number:05d}", np.rint(signal).astype(np.int16), comments=comments)
    convert(load_database("georgia"), folder / "georgia", folder / "out", Options())
    return folder / "out"


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_has_the_source_the_presets_and_the_options_of_the_recipes_own_parts(recipe: str, say: Say) -> None:
    said = say(recipe, "--help")
    docstring = ast.get_docstring(ast.parse((ROOT / "recipes" / f"{recipe}.py").read_text()))
    assert docstring is not None and docstring.splitlines()[0] in said
    assert "Ours: " in docstring and "--preset {" + ",".join(defaults(recipe)["PRESETS"]) + "}" in " ".join(
        said.split()
    )
    settings = to_dict(defaults(recipe)["RUN"])
    for part in ("encoder", "objective"):
        for name in settings[part].keys() - {"kind", "augment"}:
            assert f"--{part}.{name.replace('_', '-')}" in said, name


@pytest.mark.parametrize(("recipe", "preset"), RUNS, ids=lambda value: str(value))
def test_the_default_and_every_preset_can_be_run(
    recipe: str, preset: str | None, say: Say, shards: Path, tmp_path: Path
) -> None:
    words = ["--preset", preset] if preset else []
    said = say(recipe, *words, "--data.shards", str(shards), "--out", str(tmp_path / "run"), "--dry-run")
    run = defaults(recipe)["PRESETS"][preset] if preset else defaults(recipe)["RUN"]
    assert f"of schedules of {run.optim.schedule_steps:,}," in said
    assert f"batch: {run.data.batch_size:,} windows = 1 ranks" in said
    assert f" of {run.data.window_s:g} s, " in said
    assert not (tmp_path / "run").exists()
