"""The comparison of recipes as a user makes it: real runs, one that fails, a second call, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ecgfm import config
from ecgfm.databases import synthetic
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError
from ecgfm.eval.probe import embed_shards, probe, untrained
from ecgfm.eval.recipe_probe import RecipeProbe
from ecgfm.hub.export import load_export
from ecgfm.hub.recipe_notes import pretraining_recipes
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert
from ecgfm.train.plan import open_shards
from tools import compare_recipes
from tools.compare_recipes import CompareRecipes, Comparison, Job, plan, prober_of

LABEL = "sex:female"
LAST_BY_NAME = "synthetic:sinus"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of 60 recordings of a synthetic heart."""
    folder = tmp_path_factory.mktemp("comparison")
    synthetic.write(folder / "recordings", records=60)
    convert(load_database("synthetic"), folder / "recordings", folder / "shards", Options())
    return folder / "shards"


def settings_of(shards: Path, out: Path, *recipes: str, **more: Any) -> CompareRecipes:
    whole = {"label": (LABEL,), "records_seen": 128, "seeds": 1, "folds": 2, "jobs": 2, **more}
    return CompareRecipes(pretrain=(shards,), probe=(shards,), out=out, recipes=recipes, **whole)


def comparison(settings: CompareRecipes) -> tuple[Comparison, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, width=300)
    return Comparison(settings, plan(settings), prober_of(settings), console), said


# Some 25 s on one processor, nearly all of it two processes that import torch and DeepSpeed.
def test_recipes_are_trained_and_probed_on_what_was_held_out_and_a_failure_is_a_row(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(
        shards,
        tmp_path,
        "simclr_resnet",
        "supervised_xresnet",
        option=("supervised_xresnet=--objective.labels a:b",),
        label=(LAST_BY_NAME, LABEL),
    )
    first, said = comparison(settings)
    first.go()
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert "no record of the shards has the label a:b" in rows["supervised_xresnet"]["reason"]
    assert "supervised_xresnet-seed0 failed" in said.getvalue() and "left" in said.getvalue()
    lines = (tmp_path / "runs/simclr_resnet-seed0/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 128 // 64
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")

    # The figures are those of tools/probe.py on the records that the run says it did not read.
    prober, run = prober_of(settings), plan(settings)[0].run
    assert sorted(prober.index_N) == np.flatnonzero(open_shards(run).split_of == "val").tolist()
    assert 10 < len(prober.index_N) < 50
    encoder = load_export(tmp_path / "encoders/simclr_resnet-seed0")
    every = [embed_shards(one, Shards([shards]))[prober.index_N] for one in (encoder, untrained(encoder, 0))]
    wanted = probe(every[0], every[1:], prober.targets[1], folds=2, seed=0)
    (_, first_label, found) = rows["simclr_resnet"]["figures"]
    assert first_label["label"] == LAST_BY_NAME
    assert found["label"] == LABEL and not found["learnt"] and found["deviation"] is None
    # Draws are kept with six digits; features of records in other batches differ by rounding.
    assert found["pretrained"] == pytest.approx(wanted.pretrained.value, abs=1e-6)
    assert found["untrained"] == pytest.approx(wanted.untrained.value, abs=1e-6)
    for which in ("value", "low", "high"):
        assert found["difference"][which] == pytest.approx(getattr(wanted.difference, which), abs=1e-5)

    # Again: what is finished is neither trained nor probed, what failed is tried again.
    trained: list[str] = []

    def train(self: Comparison, job: Job) -> str:
        trained.append(job.name)
        return "still no label"

    monkeypatch.setattr(Comparison, "_train", train)
    monkeypatch.setattr(RecipeProbe, "_content", lambda *_: pytest.fail("it was probed already"))
    comparison(settings)[0].go()
    again = {row["recipe"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert trained == ["supervised_xresnet-seed0"]
    assert again["simclr_resnet"] == rows["simclr_resnet"]
    assert again["supervised_xresnet"]["reason"] == "still no label"


FAKE = """
import sys
if __name__ == "__main__":
    import pathlib, signal
    out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    out.mkdir(parents=True)
    def save(*_):
        (out / "saved").touch()
        sys.exit(130)
    signal.signal(signal.SIGINT, save)
    (out / "begun").touch()
    signal.pause()
from recipes import simclr_resnet
RUN = simclr_resnet.RUN
PRESETS = simclr_resnet.PRESETS
"""


def test_ctrl_c_lets_the_runs_in_work_save_and_begins_no_other(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("one", "three", "two"):
        (tmp_path / "recipes" / f"{name}.py").write_text(FAKE)
    monkeypatch.setattr(compare_recipes, "ROOT", tmp_path)
    runs = tmp_path / "out" / "runs"

    def press() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if len(list(runs.glob("*/begun"))) == 2:
                os.kill(os.getpid(), signal.SIGINT)  # never later, when it would be another test's
                return
            time.sleep(0.05)

    made, said = comparison(settings_of(shards, tmp_path / "out"))
    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        made.go()
    assert sorted(path.parent.name for path in runs.glob("*/saved")) == ["one-seed0", "three-seed0"]
    assert not (runs / "two-seed0").exists()
    assert "are being saved" in said.getvalue()


def test_every_recipe_has_small_settings_with_the_same_budget(shards: Path, tmp_path: Path) -> None:
    jobs = plan(settings_of(shards, tmp_path, seeds=2, records_seen=6400))
    recipes = [path.stem for path in pretraining_recipes(compare_recipes.ROOT / "recipes")]
    assert [(job.recipe, job.seed) for job in jobs] == [(recipe, seed) for seed in (0, 1) for recipe in recipes]
    for job in jobs:
        assert job.run.optim.schedule_steps * job.run.data.batch_size == 6400, job.name
        assert job.run.data.validation_share == 0.5
        assert (job.run.seed, job.run.out.name) == (job.seed, job.name)
        small = compare_recipes.SMALL_ENCODER[config.to_dict(job.run.encoder)["kind"]]
        assert "--data.window-s" in small


def test_other_shards_are_probed_whole_and_kept_from_the_runs_and_mistakes_are_named(
    shards: Path, training_shards: Path, tmp_path: Path
) -> None:
    settings = CompareRecipes(
        pretrain=(training_shards,), probe=(shards,), label=(LABEL,), out=tmp_path, recipes=("jepa_vit",), folds=2
    )
    assert prober_of(settings).index_N.tolist() == list(range(60))
    for job in plan(settings):
        assert job.run.data.held_out == (shards,) and not job.run.data.validation_share
    # Nothing is held out: the records that are trained on are probed, and the table says so.
    whole = settings_of(shards, tmp_path, "jepa_vit", held_out_share=0.0)
    made, _ = comparison(whole)
    made.write()
    assert prober_of(whole).index_N.tolist() == list(range(60))
    assert "Transductive" in (tmp_path / "table.md").read_text()
    with pytest.raises(ConfigError, match=r"'jepa' is no recipe: there are advmask_resnet"):
        plan(settings_of(shards, tmp_path, "jepa"))
    with pytest.raises(ConfigError, match=r"--seeds must be at least 1, got 0"):
        settings_of(shards, tmp_path, seeds=0)
