"""Every recipe's default run made so small that a step takes milliseconds, on real recordings."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

from ecgfm.config import cli
from ecgfm.databases.base import load_database
from ecgfm.hub.recipe_notes import pretraining_recipes
from ecgfm.objectives.base import objective_class
from ecgfm.shards.writer import Options, convert
from ecgfm.train.run import Run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [path.stem for path in pretraining_recipes(ROOT / "recipes")]
BATCH_SIZE = 8
LUDB_RECORDS = 40
EVERYWHERE = f"--data.batch-size {BATCH_SIZE} --engine.precision float32 --log-every 1"
TRANSFORMER = "--data.window-s 5 --encoder.width 32 --encoder.depth 2 --encoder.num-heads 2 --encoder.patch-samples"
RESIDUAL = "--data.window-s 4.992 --encoder.width 32 --encoder.layers 1 1 1 1"
CONTEXTUAL = (
    "--data.window-s 2.5 --encoder.width 32 --encoder.patch-samples 10 --encoder.kernels 11 1 --encoder.strides 10 1"
)
DECODER = "--objective.decoder-width 32 --objective.decoder-depth 1"
SMALL = {
    "advmask_resnet": f"{RESIDUAL} --objective.projector 64 32 --objective.masker-widths 4 8",
    "byol_resnet": f"{RESIDUAL} --objective.hidden 64 --objective.projection 32",
    "cmsc_resnet": "--data.window-s 4.992 --encoder.width 32",
    "cpc_lstm": f"{CONTEXTUAL} --encoder.depth 1",
    "cpc_s4": f"{CONTEXTUAL} --encoder.depth 2",
    "dino_vit": (
        f"{TRANSFORMER} 100 --objective.prototypes 64 --objective.head-hidden 64 --objective.head-bottleneck 32 "
        "--objective.num-short 2"
    ),
    "jepa_vit": f"{TRANSFORMER} 100 --objective.min-block 4",
    "jepa_vit_leadtime": f"{TRANSFORMER} 250 --objective.predictor-depth 1",
    # Fewer dimensions than windows: no more can be Gaussian, or uncorrelated.
    "lejepa_vit": (
        f"{TRANSFORMER} 100 --objective.projector 64 4 --objective.num-directions 64 --objective.num-short 2"
    ),
    "mae_vit": f"{TRANSFORMER} 250 {DECODER}",
    "mae_vit_time": f"{TRANSFORMER} 100 {DECODER}",
    # A queue of four steps goes round.
    "moco_cnn": (
        "--data.window-s 2.5 --encoder.width 32 --encoder.channels 4 4 8 8 8 8 --encoder.spatial 16 "
        "--objective.queue 32 --objective.projector 32 32"
    ),
    "reconstruct_uresnet": "--data.window-s 2.5 --encoder.width 16 --encoder.widths 4 8 8 16",
    "simclr_resnet": "--data.window-s 5 --encoder.width 32 --objective.projector 64 32",
    "supervised_xresnet": "--encoder.width 32 --encoder.layers 1 1 1 1 --objective.hidden 16",
    "vicreg_resnet": f"{RESIDUAL} --objective.expander 64 4",
}
"""What is smaller than by default, recipe by recipe."""


def small_words(recipe: str) -> list[str]:
    """Return the options of a small run, without its shards and folder."""
    if recipe not in SMALL:
        pytest.fail(
            f"recipes/{recipe}.py is new: give SMALL in tests/recipes/small.py options that make its run small, and "
            "write its golden curve with `make golden`"
        )
    return [*EVERYWHERE.split(), *SMALL[recipe].split()]


def small_run(recipe: str, shards: Path) -> Run:
    """Return the settings of a small run on the folders of `convert_records`."""
    default = defaults(recipe)["RUN"]
    run = cli(default, args=[*small_words(recipe), *shard_words(recipe, shards)])
    assert isinstance(run, Run)
    return run


def shard_words(recipe: str, shards: Path) -> list[str]:
    """Return what names a recipe's shards among the folders of `convert_records`."""
    objective = defaults(recipe)["RUN"].objective
    # LUDB's statements are no codes that the others have, and an objective that learns labels refuses it.
    names = ["georgia", "ningbo"] + ([] if objective_class(objective).labels(objective) else ["ludb"])
    return ["--data.shards", *(str(shards / name) for name in names)]


def defaults(recipe: str) -> dict[str, Any]:
    """Return the names that a recipe's file defines, RUN and PRESETS among them."""
    return runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))


def convert_records(ecg_data: Path, out: Path) -> Path:
    """Write shards of 60 recordings of 10 s at 500 Hz, whose counts are the published ones; return their folder."""
    training = ecg_data / "challenge-2021" / "training"
    some = out / "ludb-source" / "data"
    some.mkdir(parents=True)
    for number in range(1, LUDB_RECORDS + 1):
        for ending in ("hea", "dat"):
            shutil.copy(ecg_data / "ludb" / "data" / f"{number}.{ending}", some)
    for name, source in (("georgia", training / "georgia"), ("ningbo", training / "ningbo"), ("ludb", some.parent)):
        convert(load_database(name), source, out / name, Options())
    return out
