"""One self-contained HTML page about an evaluation: figures with intervals, curves, examples, data, settings.

Everything is computed from `predictions.npz` with the functions of `metrics`, `paired` and `curves`. The page asks for
nothing outside of itself, and its content security policy forbids it to.

Shapes: N records, C labels.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from ecgfm import __version__
from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import DRAWS, Interval
from ecgfm.eval.curve_plots import Layout, require_layout
from ecgfm.eval.metrics import LOWER_IS_BETTER, evaluate
from ecgfm.eval.paired import Difference, compare
from ecgfm.eval.predictions import PREDICTIONS, Predictions, read_predictions
from ecgfm.eval.report_examples import Example, draw_examples, shards_of
from ecgfm.eval.report_facts import Finding, Part, findings, manifests, parts_of
from ecgfm.eval.report_figures import NAMES, Model, Picture, calibration, curves, efficiency, features
from ecgfm.eval.saliency import Method
from ecgfm.shards.manifest import Manifest
from ecgfm.shards.reader import Shards

TEMPLATE = "report_template.html"
IN_CLASS_TABLE = ("auc", "average_precision", "sensitivity", "specificity", "ece", "mae", "rmse", "r2", "pearson")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What goes into a report."""

    title: str = ""
    """Of the page; by default that of the task, and the evaluation's name."""
    names: tuple[str, ...] = ()
    """What to call the evaluations, in their order; their folders' names by default."""
    shards: tuple[Path, ...] = ()
    """Folders of the shards that were evaluated; those that run.json names by default."""
    pretraining: tuple[Path, ...] = ()
    """Folders of the shards that the encoder was pretrained on, to look for test recordings in."""
    examples: int = 4
    """Recordings to show."""
    saliency: Method | None = None
    """What is drawn behind them; grad-cam of the label in question by default."""
    layout: Layout = "pca"
    """How features are laid out in the plane; umap needs umap-learn."""
    draws: int = DRAWS
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.examples < 0 or self.draws < 1:
            raise ConfigError(f"--examples must be 0 or more and --draws 1 or more, got {self.examples}, {self.draws}")


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the template needs."""

    title: str
    version: str
    day: str
    models: Sequence[Model]
    macro: Sequence[str]
    per_class: Sequence[str]
    named: Sequence[str]
    """All figures of both, each once."""
    curves: Sequence[Picture]
    calibration: Sequence[Picture]
    features: Sequence[Picture]
    efficiency: Sequence[Picture]
    examples: Sequence[Example]
    notes: Sequence[str]
    parts: Sequence[Part]
    findings: Sequence[Finding]
    manifests: Sequence[Manifest]
    settings: Sequence[tuple[str, Sequence[str], bool]]
    left_out: Sequence[str]
    options: Options
    bar_from: float
    names: Mapping[str, tuple[str, str]] = field(default_factory=lambda: NAMES)
    lower_is_better: Sequence[str] = LOWER_IS_BETTER


def write_report(folders: Sequence[Path], out: Path, options: Options | None = None) -> Path:
    """Write a report of one evaluation, or of one and what it is compared with, and return its path.

    Args:
        folders: What recipes/finetune.py or recipes/probe.py wrote; the first is what the report is about. A folder of
            several seeds stands for all of them.
        out: The HTML file.
        options: What goes into it.

    Raises:
        ConfigError: The folders hold no predictions, or not of one task; or the page cannot be written.
        ShardError: Shards are damaged.
        ContractError: The classifier cannot be loaded.
    """
    options = options or Options()
    require_layout(options.layout)
    page = make_page(folders, options)
    text = render(page)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error
    return out


def render(page: Page) -> str:
    """Return the page as HTML in which no name, however written, is more than text."""
    source = (importlib.resources.files("ecgfm.eval") / TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert script, "the template has its script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return environment.from_string(source).render(page=page, script_hash=f"sha256-{digest}", is_interval=is_interval)


def is_interval(value: object) -> bool:
    """Tell an interval from nothing."""
    return isinstance(value, Interval)


def make_page(folders: Sequence[Path], options: Options) -> Page:
    """Return what a report says; see `write_report`."""
    found = [read_predictions(each) for folder in folders for each in _seeds(folder)]
    if not found:
        raise ConfigError("give one or more folders of evaluations")
    first = found[0]
    for other in found[1:]:
        if other.labels != first.labels or other.kind != first.kind:
            raise ConfigError(
                f"{other.folder} answers another question than {first.folder}: {_question(other)} instead of "
                f"{_question(first)}; one report is of one task"
            )
    names = options.names or _folder_names([each.folder for each in found])
    if len(names) != len(found) or len(set(names)) != len(names):
        raise ConfigError(f"--names needs {len(found)} different names, got {list(names)}")
    rows = first.rows("test")
    if not len(rows):
        raise ConfigError(f"{first.folder} has no test part: there is nothing to report")
    kept = np.flatnonzero(~np.isnan(first.target_NC[rows]).all(axis=0))
    left_out = [label for number, label in enumerate(first.labels) if number not in kept]
    found = [_with_labels(each, kept) for each in found]
    models = _measure(found, names, options)
    first = found[0]
    examples: list[Example] = []
    notes: list[str] = []
    shards, why = shards_of(first, options.shards)
    if options.examples:
        if not shards or not (first.folder / "classifier").is_dir():
            notes.append(f"No recordings are shown: {why or f'{first.folder.name} holds no classifier.'}")
        else:
            examples, notes = draw_examples(first, Shards(shards), options.examples, options.saliency)
    macro = [name for name in NAMES if any(name in model.scores.macro for model in models)]
    if len(first.labels) == 1:  # it is the accuracy
        macro = [name for name in macro if name != "exact_match"]
    per_class = [name for name in IN_CLASS_TABLE if models[0].scores.per_class.get(name)]
    lows = [part.low for model in models for part in model.scores.per_class.get("auc", {}).values()]
    return Page(
        title=options.title or f"{_task(first)}: {names[0]}",
        version=__version__,
        day=date.today().isoformat(),
        models=models,
        macro=macro,
        per_class=per_class,
        named=[name for name in NAMES if name in (*macro, *per_class)],
        curves=curves(models, options.seed),
        calibration=calibration(models[0], options.seed) if first.kind != "regression" else [],
        features=features(first, options.layout, options.seed),
        efficiency=efficiency(models),
        examples=examples,
        notes=notes,
        parts=parts_of(first),
        findings=findings(first, shards, options.pretraining),
        manifests=manifests(shards),
        settings=_settings(found),
        left_out=left_out,
        options=options,
        bar_from=max(0.0, np.floor(min(lows, default=0.0) * 10) / 10),
    )


def _seeds(folder: Path) -> list[Path]:
    """Return the folder itself, or those of its seeds."""
    if (folder / PREDICTIONS).is_file():
        return [folder]
    inner = sorted(path.parent for path in folder.glob(f"*/{PREDICTIONS}"))
    return inner or [folder]


def _folder_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return names that differ: as few of each path's last parts as it takes."""
    for depth in range(1, 10):
        names = tuple("/".join(folder.resolve().parts[-depth:]) for folder in folders)
        if len(set(names)) == len(names):
            return names
    raise ConfigError("a folder is given twice; give each once")


def _with_labels(model: Predictions, kept_C: NDArray[np.int64]) -> Predictions:
    if len(kept_C) == len(model.labels):
        return model
    if model.kind == "multiclass":
        raise ConfigError(f"{model.folder}: no test record is known of some classes that exclude each other")
    return replace(
        model,
        labels=tuple(model.labels[column] for column in kept_C),
        logit_NC=model.logit_NC[:, kept_C],
        probability_NC=model.probability_NC[:, kept_C],
        target_NC=model.target_NC[:, kept_C],
    )


def _measure(found: Sequence[Predictions], names: Sequence[str], options: Options) -> list[Model]:
    models: list[Model] = []
    one, at = found[0], found[0].rows("test")
    for name, each in zip(names, found, strict=True):
        rows = each.rows("test")
        people = each.patient_N[rows].tolist()
        scores = evaluate(
            each.kind,
            each.target_NC[rows],
            each.probability_NC[rows],
            people,
            labels=each.labels,
            thresholds_C=each.thresholds_C,
            draws=options.draws,
            seed=options.seed,
        )
        differences: Mapping[str, Difference] = {}
        same = np.array_equal(one.record_N[at], each.record_N[rows]) and np.array_equal(
            one.target_NC[at], each.target_NC[rows], equal_nan=True
        )
        if each is not one and same:
            differences = compare(
                each.kind,
                each.target_NC[rows],
                one.probability_NC[at],
                each.probability_NC[rows],
                people,
                labels=each.labels,
                thresholds=(one.thresholds_C, each.thresholds_C),
                draws=options.draws,
                seed=options.seed,
            )
        models.append(Model(name=name, predictions=each, scores=scores, differences=differences))
    return models


def _settings(found: Sequence[Predictions]) -> list[tuple[str, Sequence[str], bool]]:
    """Return name, value of each evaluation, and whether they differ; those that differ first."""
    flat = [_flat(each.settings) for each in found]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = []
    for name in names:
        values = [each.get(name, "") for each in flat]
        rows.append((name, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _flat(settings: Any, where: str = "") -> dict[str, str]:
    if not isinstance(settings, Mapping):
        if isinstance(settings, list):
            return {where: ", ".join(map(str, settings))}
        return {where: "" if settings is None else str(settings)}
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{where}.{name}" if where else str(name))
    return flat


def _question(model: Predictions) -> str:
    """Return what is asked, with as many labels as a message bears."""
    named = ", ".join(model.labels[:5]) + (f" and {len(model.labels) - 5} more" if len(model.labels) > 5 else "")
    return f"{model.kind} of {named}"


def _task(model: Predictions) -> str:
    """Return the task's title, or its name where no title is known."""
    told, task = model.result.get("task"), model.settings.get("task")
    title = told.get("title") if isinstance(told, Mapping) else None
    name = task.get("kind") if isinstance(task, Mapping) else task
    return str(title or name or "evaluation")
