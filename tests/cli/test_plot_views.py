"""Drawing what a recipe's objective sees, as a user does, and that it is what a run sees."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ecgfm.data.batch import Draws
from ecgfm.errors import CheckpointError
from ecgfm.eval import view_plots
from ecgfm.train.plan import open_shards, run_loader, run_objective, run_prepare, signal_contract
from ecgfm.train.recipe_words import split
from ecgfm.train.run import Run
from tools import plot_views

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/jepa_vit.py"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the tool with words, in this process: a new one imports for long."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        full = ["tools/plot_views.py", *map(str, words)]
        monkeypatch.setattr(sys, "argv", full)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / full[0]), run_name="__main__")
        said = capsys.readouterr()
        return subprocess.CompletedProcess(full, int(end.value.code or 0), said.out, said.err)

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], run_ranks: Callable[..., list[int]]) -> Path:
    """Return the folder of a run of one step."""
    folder = tmp_path_factory.mktemp("plot_views")
    words = [*tiny, "--steps", "1", "--out", str(folder / "run")]
    assert run_ranks(0, RECIPE, *words, log=folder / "log") == [0], (folder / "log").read_text()[-3000:]
    return folder / "run"


def run_of(words: list[str], shards: Path) -> Run:
    """Return the settings that the tool reads."""
    settings = plot_views.PlotViews(recipe=ROOT / RECIPE, shards=(shards,))
    return plot_views.read_run(settings, words)


def test_words_are_the_tools_or_the_recipes() -> None:
    ours = ["recipes/x.py", "a", "b", "--out", "x.png", "--leads", "II", "V1", "--records=2"]
    theirs = ["--optim.lr", "1", "--data.weights", "a=1", "b=2", "--seed", "3"]
    mixed = [*ours[:3], *theirs[:2], *ours[3:5], *theirs[2:5], *ours[5:], *theirs[5:]]
    assert split(mixed, {each.name for each in fields(plot_views.PlotViews)}) == (ours, theirs)


def test_the_windows_of_a_step_are_those_that_a_run_sees(tiny: list[str], training_shards: Path) -> None:
    run = run_of(tiny, training_shards)
    shards = open_shards(run)
    contract = signal_contract(run, shards)
    loader = run_loader(run, shards, contract, rank=0, ranks=1, position=0, pin_memory=False)
    whole = run_prepare(run, shards, contract)(loader.read(5 * 8))
    objective = run_objective(run, contract)
    seen = objective.views(whole, Draws(seed=0, step=5, rows=(0, 8), all_rows=8, device=torch.device("cpu")))
    batch, draws, titles = plot_views.first_windows(run, shards, contract, 5, 3)
    assert torch.equal(batch.signal_BLT, whole.signal_BLT[:3])
    assert seen.hide_BM is not None
    assert torch.equal(objective.views(batch, draws).hide_BM, seen.hide_BM[:3])  # type: ignore[arg-type]
    names = [shards.name(int(record)) for record in loader.windows(40, 43)[0]]
    assert all(name in title for name, title in zip(names, titles, strict=True))


def test_a_run_is_drawn_with_its_settings_and_weights(
    trained: Path, training_shards: Path, draw: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def note(*args: Any, **options: Any) -> Any:
        given.update(options, batch=args[1])
        return real(*args, **options)

    real = view_plots.plot_views
    monkeypatch.setattr(view_plots, "plot_views", note)
    out = tmp_path / "new" / "views.png"
    done = draw(RECIPE, training_shards, "--run", trained, "--records", "1", "--windows", "4", "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert given["heading"][0] == f"jepa on vit, weights of {trained} at step 1" and len(given["titles"]) == 1
    assert len(given["batch"].signal_BLT) == 4
    assert "hidden from the encoder covers" in done.stdout and "samples of 4 windows" in done.stdout

    run = plot_views.read_run(
        plot_views.PlotViews(recipe=ROOT / RECIPE, shards=(training_shards,), run=trained), ["--seed", "7"]
    )
    assert run.encoder.width == 32 and run.data.batch_size == 8 and run.seed == 7
    objective = run_objective(run, signal_contract(run, open_shards(run)))
    assert plot_views.load_(objective, trained) == 1
    written = load_file(trained / "checkpoints" / "step-00000001" / "encoder.safetensors")
    torch.testing.assert_close(objective.published().state_dict(), written, rtol=0, atol=0)

    other = replace(run, encoder=replace(run.encoder, width=48))
    with pytest.raises(CheckpointError, match="does not fit these settings"):
        plot_views.load_(run_objective(other, signal_contract(run, open_shards(run))), trained)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recipes/jepa.py", "SHARDS"], "recipes/jepa.py does not exist; give a recipe"),
        (["tools/convert.py", "SHARDS"], "tools/convert.py is no recipe: it has no RUN"),
        ([RECIPE], "give one or more folders of shards after the recipe"),
        ([RECIPE, "SHARDS", "--records", "0"], "--records must be at least 1, got 0"),
        ([RECIPE, "SHARDS", "--objective.mask-ration", "0.5"], "--objective.mask-ratio"),
        ([RECIPE, "SHARDS", "--out", "views.xyz", "--leads", "II"], "--out views.xyz: the ending must be one of"),
        (
            ["recipes/mae_vit.py", "SHARDS", "--run", "RUN"],
            "is a run of jepa, and recipes/mae_vit.py is a recipe of mae",
        ),
        ([RECIPE, "SHARDS", "--run", "nowhere"], "nowhere/run.json does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_answered_with_a_sentence(
    words: list[str], expected: str, trained: Path, training_shards: Path, draw: Command
) -> None:
    places = {"SHARDS": str(training_shards), "RUN": str(trained)}
    done = draw(*[places.get(word, word) for word in words])
    assert done.returncode in (1, 2)
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_a_checkpoint_is_refused(
    trained: Path, training_shards: Path, draw: Command, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes((trained / "run.json").read_bytes())
    done = draw(RECIPE, training_shards, "--run", tmp_path)
    assert done.returncode == 1 and "has no checkpoint yet; leave --run out" in done.stderr
