"""Pretrain every recipe on equal terms, probe what comes of each, and put all into one table.

    python tools/compare_recipes.py --pretrain shards/ludb shards/cinc2011-set-a --probe shards/ludb
        --label "ludb:Rhythm: Sinus rhythm" --label "ludb:Left ventricular hypertrophy" --out comparison

Each recipe is pretrained by its own command line on the same number of windows, with several seeds, and one thread a
run. Its published encoder and one of random weights are probed on records that no run has trained on. OUT gets the
runs, their logs, encoders and probes, and table.md, table.json and table.png, written anew after every run. The same
command again does only what is missing; Ctrl-C saves what is in work. A run that fails is a line of the table.
"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ecgfm import config, parts
from ecgfm.errors import ConfigError, EcgfmError
from ecgfm.eval.plots import save
from ecgfm.eval.recipe_probe import RecipeProbe
from ecgfm.eval.recipe_table import Outcome, as_markdown, plot_recipes, summarise
from ecgfm.hub.recipe_notes import pretraining_recipes
from ecgfm.objectives.base import objective_class
from ecgfm.run_folder import read_metrics, read_settings, read_state
from ecgfm.shards.manifest import write_bytes, write_json
from ecgfm.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
SMALL_ENCODER = {
    "vit": "--encoder.width 96 --encoder.depth 4 --encoder.num-heads 4 --encoder.patch-samples 50 "
    "--engine.precision float32 --data.window-s 5",
    "vit_leadtime": "--encoder.width 96 --encoder.depth 3 --encoder.patch-samples 125 "
    "--engine.precision float32 --data.window-s 5",
    "resnet1d": "--encoder.width 128 --encoder.layers 1 1 1 1 --encoder.doubles --encoder.kernels 3 3 "
    "--encoder.stem-stride 2 --encoder.stem-pool --encoder.patch-samples 32 --data.window-s 4.992",
    "xresnet1d": "--encoder.width 64 --encoder.layers 1 1 1 1 --data.window-s 4.992",
    "ts_cnn": "--encoder.channels 8 16 16 32 32 64 --encoder.pools 5 5 5 2 1 1 --encoder.spatial 64 --data.window-s 5",
    "u_resnet": "--encoder.width 96 --encoder.widths 12 16 24 48 --encoder.kernel 9 --data.window-s 5",
    "s4": "--encoder.width 96 --encoder.depth 2 --data.window-s 2.5",
    "lstm": "--encoder.width 96 --encoder.depth 1 --data.window-s 2.5",
}
"""What --size small makes of the preset `laptop`: encoders of which a processor's core trains on a hundred windows a
second or more. On a processor narrow transformers are faster in float32, and convolutions with bfloat16."""
SMALL_OBJECTIVE = {
    # A hidden block is as long as in the paper, in tokens of 100 ms; the averages follow within some hundred steps.
    "jepa_vit": "--objective.min-block 5 --objective.momentum 0.98 0.999",
    "jepa_vit_leadtime": "--objective.momentum 0.98 0.999",
    "dino_vit": "--objective.num-short 2",
    "mae_vit_time": "--objective.decoder-width 64 --objective.decoder-depth 2",
}
"""And of the objectives of some recipes."""


@dataclass(frozen=True, kw_only=True)
class CompareRecipes:
    """Pretrain and probe every recipe on equal terms; run again, it goes on with what is missing."""

    pretrain: tuple[Path, ...]
    """Folders of shards to pretrain on."""
    probe: tuple[Path, ...]
    """Folders of labelled shards. Of those that are pretrained on, the records held out are probed."""
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCHEME:CODE"), tyro.conf.UseAppendAction]
    """A label to probe; may be given several times. `tools/probe.py ENCODER SHARDS --list-labels` lists them."""
    out: Path
    """Folder for all that is made."""
    recipes: tuple[str, ...] = ()
    """Files of recipes/, without the ending; all of them by default."""
    seeds: int = 3
    """Runs of each recipe, of seeds 0, 1 and so on."""
    records_seen: int = 20_480
    """Windows that each run is trained on, in whole steps; the schedules are as long."""
    size: Literal["small", "recipe"] = "small"
    """Small: preset laptop with encoders of at most half a million parameters. Recipe: as the recipe says."""
    held_out_share: float = 0.5
    """Where shards are pretrained on and probed: share of the patients (records, where there are none) of all
    pretraining shards that no run trains on. 0 trains on all: then the probe is of records that pretraining saw,
    without their labels, and the table says so."""
    option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RECIPE=OPTIONS"), tyro.conf.UseAppendAction] = ()
    """More options of one recipe, such as "dino_vit=--optim.lr 1e-3 --objective.num-short 2"; may be given several
    times."""
    folds: int = 5
    """Folds of patients of the probe."""
    jobs: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    """Runs at a time."""

    def __post_init__(self) -> None:
        for name in ("seeds", "records_seen", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not self.pretrain or not self.probe or not self.label:
            raise ConfigError("--pretrain, --probe and --label need at least one value each")
        if not 0 <= self.held_out_share < 1 or not 2 <= self.folds <= 100:
            raise ConfigError(
                f"--held-out-share must be 0 to below 1 and --folds 2 to 100, got {self.held_out_share:g}, {self.folds}"
            )

    @property
    def both(self) -> tuple[Path, ...]:
        """Folders that are pretrained on and probed."""
        training = {folder.resolve() for folder in self.pretrain}
        return tuple(folder for folder in self.probe if folder.resolve() in training)

    @property
    def share(self) -> float:
        """Share of the patients that is held out: none where others are probed."""
        return self.held_out_share if self.both else 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be made."""

    recipe: str
    seed: int
    words: tuple[str, ...]
    """Of its command line."""
    run: Run
    """What they come to."""

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.recipe}-seed{self.seed}"

    def finished(self) -> bool:
        """Tell whether the run is there, with these settings and all of its steps."""
        folder = self.run.out
        if not (folder / "run.json").is_file() or read_state(folder).get("step") != self.run.last_step:
            return False
        return not config.differences(read_settings(folder), config.to_dict(self.run))


def main() -> None:
    """Train, probe, and write the table."""
    settings = tyro.cli(CompareRecipes, description=__doc__)
    torch.set_num_threads(1)
    # However it is asked to stop, the runs in work are saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    jobs = plan(settings)
    prober = prober_of(settings)
    console = Console()
    Comparison(settings, jobs, prober, console).go()
    for ending in ("md", "json", "png"):
        console.print(f"wrote {settings.out / f'table.{ending}'}", highlight=False)


def prober_of(settings: CompareRecipes) -> RecipeProbe:
    """Return what probes the runs."""
    return RecipeProbe(
        settings.pretrain, settings.probe, share=settings.share, labels=settings.label, folds=settings.folds
    )


def plan(settings: CompareRecipes) -> list[Job]:
    """Return the runs, a seed of every recipe before the next seed.

    Raises:
        ConfigError: There is no such recipe, or its options do not work.
    """
    there = [path.stem for path in pretraining_recipes(ROOT / "recipes")]
    more: dict[str, list[str]] = {}
    for option in settings.option:
        recipe, _, text = option.partition("=")
        more.setdefault(recipe, []).extend(shlex.split(text))
    for recipe in (*settings.recipes, *more):
        if recipe not in there:
            raise ConfigError(f"{recipe!r} is no recipe: there are {', '.join(there)}")
    jobs = []
    for recipe in settings.recipes or there:
        words, run = _settings_of(settings, recipe, more.get(recipe, []))
        for seed in range(settings.seeds):
            out = settings.out / "runs" / f"{recipe}-seed{seed}"
            own = ("--seed", str(seed), "--out", str(out))
            jobs.append(Job(recipe=recipe, seed=seed, words=(*words, *own), run=replace(run, seed=seed, out=out)))
    return sorted(jobs, key=lambda job: job.seed)


def _settings_of(settings: CompareRecipes, recipe: str, more: list[str]) -> tuple[list[str], Run]:
    """Return the options of a recipe's command line, and what they come to."""
    content = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))
    run, presets, words = content["RUN"], content["PRESETS"], list[str]()
    if settings.size == "small":
        words += ["--preset", "laptop"]
        kind = parts.kind_of(type(presets["laptop"].encoder))
        words += shlex.split(f"{SMALL_ENCODER.get(kind, '')} {SMALL_OBJECTIVE.get(recipe, '')}")
    words += ["--data.shards", *map(str, settings.pretrain), "--data.validation-windows", "0"]
    words += ["--data.validation-share", f"{settings.share:g}"]
    if apart := [str(folder) for folder in settings.probe if folder not in settings.both]:
        words += ["--data.held-out", *apart]
    words += more
    steps = max(1, settings.records_seen // config.cli(run, presets=presets, args=words).data.batch_size)
    words += ["--optim.schedule-steps", str(steps), "--log-every", str(max(1, steps // 20))]
    words += ["--checkpoint-every", str(max(1, steps // 4)), "--keep-checkpoints", "1"]
    return words, config.cli(run, presets=presets, args=words)


class Comparison:
    """Runs jobs side by side, probes each that is finished, and keeps the table up to date.

    Args:
        settings: Of the comparison.
        jobs: All of its runs.
        prober: For what they come to.
        console: For progress.
    """

    def __init__(self, settings: CompareRecipes, jobs: list[Job], prober: RecipeProbe, console: Console) -> None:
        self._settings, self._jobs, self._prober, self._console = settings, jobs, prober, console
        self._outcomes: dict[str, Outcome] = {}
        self._seconds: dict[str, list[float]] = {}
        """What runs of each recipe took."""
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._probing = threading.Lock()
        self._stopped = threading.Event()

    def go(self) -> None:
        """Make what is missing.

        Raises:
            KeyboardInterrupt: It was stopped; the runs in work are saved.
        """
        with Bar(self._console, len(self._jobs)) as bar, ThreadPoolExecutor(self._settings.jobs) as threads:
            futures = {threads.submit(self._make, job): job for job in self._jobs}
            try:
                for future in as_completed(futures):
                    job = futures[future]
                    self._outcomes[job.name] = future.result()
                    self.write()
                    bar.update(len(self._outcomes), self._left_s(), self._line(job))
            except BaseException:
                self._stopped.set()
                for waiting in futures:
                    waiting.cancel()
                for process in tuple(self._processes):
                    process.send_signal(signal.SIGINT)
                self._console.print("stopping: the runs in work are being saved")
                raise

    def _make(self, job: Job) -> Outcome:
        """Train what is not trained, and probe it."""
        began = time.perf_counter()
        trains = not job.finished()
        reason = self._train(job) if trains else None
        if reason is None:
            try:
                with self._probing:
                    outcome = self._prober.outcome(job.recipe, job.seed, job.run.out, self._settings.out)
            except EcgfmError as error:
                reason = str(error)
        if reason is not None:
            return Outcome(recipe=job.recipe, seed=job.seed, reason=reason, scores={})
        if trains:
            self._seconds.setdefault(job.recipe, []).append(time.perf_counter() - began)
        return outcome

    def _train(self, job: Job) -> str | None:
        """Run the recipe to its end; return why it did not get there."""
        log = self._settings.out / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "recipes" / f"{job.recipe}.py"), *job.words]
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            # In a session of its own: Ctrl-C in a terminal reaches it through us, once.
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._processes.add(process)
            if self._stopped.is_set():  # between our list of processes and now
                process.send_signal(signal.SIGINT)
            status = process.wait()
            self._processes.discard(process)
        if not status:
            return None
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("error:")]
        return f"status {status}: {(errors or said)[-1].removeprefix('error: ')}"

    def _left_s(self) -> float | None:
        """Return the seconds that are left, as the runs so far were; None before the first one."""
        known = {recipe: float(np.mean(seconds)) for recipe, seconds in self._seconds.items()}
        if not known:
            return None
        usual = float(np.mean(list(known.values())))
        waiting = [job.recipe for job in self._jobs if job.name not in self._outcomes]
        return sum(known.get(recipe, usual) for recipe in waiting) / self._settings.jobs

    def _line(self, job: Job) -> str:
        """Return what to say of a run that has ended."""
        outcome = self._outcomes[job.name]
        if outcome.reason is not None:
            return f"{job.name} failed: {outcome.reason}"
        loss = [line["loss"] for line in read_metrics(job.run.out) if "loss" in line]
        values = ", ".join(f"{score.pretrained:.3f} ({score.untrained:.3f})" for score in outcome.scores.values())
        return f"{job.name}: loss {loss[0]:.4g} to {loss[-1]:.4g}, AUROC (untrained) {values}"

    def write(self) -> None:
        """Write the table of what there is."""
        out = self._settings.out
        outcomes = [self._outcomes[job.name] for job in self._jobs if job.name in self._outcomes]
        encoders = {
            job.recipe: f"{parts.kind_of(type(job.run.encoder))}, {job.run.data.window_s:g} s" for job in self._jobs
        }
        learnt = {job.recipe: objective_class(job.run.objective).labels(job.run.objective) for job in self._jobs}
        rows = summarise(outcomes, encoders, learnt)
        caption = self._caption(learnt)
        write_bytes(out / "table.md", as_markdown(rows, caption).encode())
        write_json(out / "table.json", {"caption": caption, "rows": config.to_dict(rows)})
        save(plot_recipes(rows), out / "table.png")

    def _caption(self, learnt: dict[str, tuple[str, ...]]) -> list[str]:
        """Return what was done, in words."""
        settings, prober = self._settings, self._prober
        size = "preset laptop with a small encoder" if settings.size == "small" else "the recipe's own settings"
        lines = [
            f"Pretraining: {settings.records_seen:,} windows a run, {size}, seeds 0 to {settings.seeds - 1}, on "
            f"{', '.join(folder.name for folder in settings.pretrain)}: {prober.records_read:,} of {prober.records:,} "
            "records, less those with a flag of --data.exclude-flags.",
            f"Probe: logistic regression on frozen features, {settings.folds} folds of patients, "
            f"{len(prober.index_N):,} records ({prober.refused:,} more are no ECG that an encoder takes). AUROC: mean "
            "and standard deviation over the seeds. Differences are paired, with 95 % intervals over patients.",
        ]
        for one in prober.targets:
            lines.append(f"{one.label}: {int(one.positive_N.sum()):,} of {len(one.index_N):,} records.")
        both = ", ".join(folder.name for folder in settings.both)
        if settings.share:
            lines.append(
                f"Of {both} a share of {settings.share:g} of the patients is held out from all "
                "pretraining, and only they are probed. The normalisation's mean and deviation are of all records."
            )
        elif both:
            lines.append(f"Transductive: the records of {both} that are probed were pretrained on, without labels.")
        for recipe, labels in learnt.items():
            if labels:
                lines.append(f"{recipe} learns {', '.join(labels)} of the records that it trains on.")
        lines += [f"Changed by hand: {option}" for option in settings.option]
        return lines


class Bar:
    """A line for each run that has ended, and below it a bar with the time that is left.

    Args:
        console: Where to show it.
        total: Runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("runs", total=total, left="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, left_s: float | None, line: str) -> None:
        """Show that so many runs have ended, and say a line of the last one."""
        left = "" if left_s is None else f"some {left_s / 60:.0f} min left"
        self._bar.update(self._task, completed=done, left=left)
        text = f"{done}: {line}" + (f" [{left}]" if left else "")
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    config.run_command(main)
