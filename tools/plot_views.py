"""Draw what the objective of a recipe sees of recordings: views, masks, reconstructions.

    python tools/plot_views.py recipes/mae_vit.py out/shards --out out/views.png
    python tools/plot_views.py recipes/mae_vit.py out/shards --run runs/mae --out out/views.png
    python tools/plot_views.py recipes/moco_cnn.py shards/* --preset laptop --objective.augment.pick 1

The recipe and the folders of shards come first. Options that are not listed here are the recipe's own, as its --help
tells them. What is drawn are the first windows that a run with these settings sees in a step, as it sees them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors import safe_open

from ecgfm import config, parts
from ecgfm.config import cli
from ecgfm.data.augment.base import Augment
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import check_window
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.eval.plots import save
from ecgfm.eval.records import record_title
from ecgfm.eval.view_plots import plot_views, qrs_shares
from ecgfm.objectives.base import Objective
from ecgfm.run_folder import RUN
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.engine import ENGINE
from ecgfm.train.plan import open_shards, run_loader, run_objective, run_prepare, signal_contract
from ecgfm.train.recipe_words import load_recipe, split
from ecgfm.train.run import Run


@dataclass(frozen=True, kw_only=True)
class PlotViews:
    """Draw what an objective sees."""

    recipe: tyro.conf.Positional[Path]
    """File of the recipe."""
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    out: Path = Path("views.png")
    """Picture to write; the ending says which kind, such as .png or .pdf."""
    run: Path | None = None
    """Folder of a run of this recipe: its settings, and the weights of its newest checkpoint, are taken."""
    records: int = 3
    """Windows that are drawn."""
    windows: int = 0
    """Windows of which it is measured how much of the QRS complexes masks hide; those that are drawn by default."""
    step: int | None = None
    """Optimizer step whose windows and random numbers are drawn: the first, or of a run the next one, by default."""
    leads: tuple[str, ...] = ()
    """Leads that are drawn; all of them by default, or II, V1 and V5 where there are more than four panels."""
    dpi: int = 100
    """Dots per inch of a .png."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise ConfigError("give one or more folders of shards after the recipe")
        if self.records < 1:
            raise ConfigError(f"--records must be at least 1, got {self.records}")
        if self.step is not None and self.step < 0:
            raise ConfigError(f"--step must be 0 or more, got {self.step}")


def main() -> None:
    """Build the objective, let it make its views, and draw them."""
    words, rest = split(sys.argv[1:], {each.name for each in dataclasses.fields(PlotViews)})
    settings = tyro.cli(PlotViews, description=__doc__, args=words)
    run = read_run(settings, rest)
    shards = open_shards(run)
    contract = signal_contract(run, shards)
    check_window(run.encoder, contract.window_samples)
    objective = run_objective(run, contract)
    # Averages of a batch norm that has seen nothing yet say nothing: untrained, it goes by what is drawn.
    step = 0 if settings.run is None else load_(objective.eval(), settings.run)
    weights = f"weights of {settings.run} at step {step:,}" if settings.run else "untrained weights"
    step = step if settings.step is None else settings.step
    rows = max(settings.records, settings.windows)
    batch, draws, titles = first_windows(run, shards, contract, step, rows)
    heading = [f"{parts.kind_of(type(run.objective))} on {parts.kind_of(type(run.encoder))}, {weights}"]
    heading += _augmentations(run)
    heading += [f"signals as the encoder gets them: clipped at {run.data.clip:g} standard deviations of a lead"]
    panels = objective.picture(batch, draws)
    shares = qrs_shares(panels, contract.rate_hz)
    said = {name: f"{qrs:.0%} of QRS, {every:.0%} of all" for name, (qrs, every) in shares.items()}
    for name, text in said.items():
        print(f"{name} covers {text} samples of {rows} windows")
    figure = plot_views(
        panels, batch, heading=heading, titles=titles[: settings.records], leads=settings.leads, said=said
    )
    save(figure, settings.out, dpi=settings.dpi)
    print(settings.out)


def first_windows(
    run: Run, shards: Shards, contract: SignalContract, step: int, rows: int
) -> tuple[Batch, Draws, list[str]]:
    """Return the first windows that a run sees in a step, prepared, with their random numbers and titles."""
    few = replace(run, data=replace(run.data, batch_size=rows), engine=replace(run.engine, accumulation=1))
    position = step * run.data.batch_size
    loader = run_loader(few, shards, contract, rank=0, ranks=1, position=position, pin_memory=False)
    batch: Batch = run_prepare(run, shards, contract)(loader.read(position))
    draws = Draws(
        seed=run.seed,
        step=step,
        rows=(0, rows),
        all_rows=max(run.data.batch_size, rows),
        device=torch.device("cpu"),
    )
    index, starts = loader.windows(position, position + rows)
    titles = [
        f"{record_title(shards.sample(int(record)))}   window from {start / contract.rate_hz:g} s"
        for record, start in zip(index, starts, strict=True)
    ]
    return batch, draws, titles


def read_run(settings: PlotViews, words: Sequence[str]) -> Run:
    """Return the settings of the recipe, or of the run, with what the command line changes."""
    default, presets = load_recipe(settings.recipe)
    if settings.run:
        past: Run = config.from_dict(Run, config.read_json(settings.run / RUN), "run")
        kinds = [parts.kind_of(type(run.objective)) for run in (past, default)]
        if kinds[0] != kinds[1]:
            raise ConfigError(f"{settings.run} is a run of {kinds[0]}, and {settings.recipe} is a recipe of {kinds[1]}")
        default, presets = past, {}
    run = cli(default, presets=presets, args=words)
    places: dict[str, Any] = {"shards": tuple(map(str, settings.shards)), "stream": False, "cache": None}
    return replace(run, data=replace(run.data, **places))


def load_(objective: Objective, run: Path) -> int:
    """Put the weights of a run's newest checkpoint into the objective; return after which step it was written.

    Raises:
        CheckpointError: There is none, or it is damaged or not of this objective.
    """
    found = checkpoint.newest(run)
    if found is None:
        raise CheckpointError(f"{run} has no checkpoint yet; leave --run out to draw with untrained weights")
    folder, _ = found
    state = checkpoint.read_whole(folder)
    with safe_open(folder / ENGINE, framework="pt") as file:
        weights = {name[6:]: file.get_tensor(name) for name in set(file.keys()) if name.startswith("model.")}
    try:
        objective.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / ENGINE} does not fit these settings: {error}") from error
    return state.step


def _augmentations(run: Run) -> list[str]:
    """Return a line for each of the objective's settings that says what is done to views."""
    lines = []
    for field in dataclasses.fields(run.objective):
        augment = getattr(run.objective, field.name)
        if isinstance(augment, Augment):
            names = [
                parts.kind_of(type(chosen)) + (f" (p = {chosen.p:g})" if chosen.p < 1 else "")
                for chosen in augment.chosen()
            ]
            pick = f"{augment.pick} of " if augment.pick and augment.pick < len(names) else ""
            lines.append(f"augmentations: {pick}{', '.join(names) or 'none'}")
    return lines


if __name__ == "__main__":
    config.run_command(main)
