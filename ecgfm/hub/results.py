"""Results for a card: read from what tools/probe.py and recipes/finetune.py wrote, never typed by hand.

A result without a control says little: an ECG's rate and amplitude survive random weights. So a result carries, where
they were measured, the same figure of an untrained encoder and of one trained on the labels alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ecgfm import config
from ecgfm.errors import ConfigError

PROBE = "probe.json"
FINETUNE = "result.json"
UNTRAINED = "untrained"
SUPERVISED = "supervised from scratch"
METRICS = {
    "auc": ("roc_auc", "AUROC"),
    "average_precision": ("average_precision", "average precision"),
    "f_max": ("f_max", "F-max"),
    "f_beta": ("f_beta", "F-beta (2, Challenge 2020)"),
    "g_beta": ("g_beta", "G-beta (2, Challenge 2020)"),
    "challenge_2021": ("challenge_2021", "score of the Challenge 2021"),
    "accuracy": ("accuracy", "accuracy"),
    "ece": ("expected_calibration_error", "calibration error (ECE)"),
    "brier": ("brier_score", "Brier score"),
    "mae": ("mae", "mean absolute error"),
    "rmse": ("rmse", "root mean squared error"),
    "r2": ("r_squared", "R2"),
}
"""Figures of ecgfm.eval.metrics that a card shows: the name in the metadata, and in the text."""
CALIBRATION = ("ece", "brier")
METHODS = {
    "probe": "probe of frozen features",
    "direct": "fine-tuned",
    "after-probe": "probe, then fine-tuned",
    "gradual": "gradually unfrozen",
}
"""Those of recipes/finetune.py."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with its interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure of one task."""

    task: str
    """What was told, such as a label."""
    databases: tuple[str, ...]
    split: str
    """Which records it was measured on."""
    method: str
    """How the encoder was used."""
    metric: str
    """A name of METRICS."""
    figure: Figure
    records: int
    patients: int
    controls: Mapping[str, Figure] = field(default_factory=dict)
    """The same figure of what the encoder must beat, by name."""
    init: str = "pretrained"
    """Or "untrained", of a control."""
    weights: str | None = None
    """Digest of the pretrained encoder's weights (`digest.weights_sha256`)."""

    @property
    def what(self) -> tuple[object, ...]:
        """What two results must share to be compared."""
        return self.task, self.databases, self.split, self.records, self.patients, self.metric


def read_results(path: Path) -> list[Result]:
    """Return the results in probe.json or result.json, or in a folder that holds one of them.

    Raises:
        ConfigError: There is none, or it is not what this version writes.
    """
    files = [path] if path.is_file() else [path / name for name in (PROBE, FINETUNE) if (path / name).is_file()]
    if not files:
        raise ConfigError(f"{path} holds no results; give what tools/probe.py or recipes/finetune.py wrote with --out")
    results = []
    for file in files:
        content = config.read_json(file)
        try:
            results += _probe(content) if "results" in content else _finetuned(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} is not what this version writes: {error!r}; make it again") from error
    return results


def with_controls(results: Iterable[Result], controls: Mapping[str, Sequence[Result]]) -> list[Result]:
    """Return results with the figures of controls that were measured on the same records.

    Raises:
        ConfigError: What is called a control began from pretrained weights, what is called a result did not, or the two
            have nothing in common.
    """
    results = list(results)
    if any(result.init != "pretrained" for result in results):
        raise ConfigError("a result was measured with random weights (--init untrained): give it as a control")
    for name, others in controls.items():
        if any(other.init == "pretrained" for other in others):
            raise ConfigError(f"the control {name!r} was measured with pretrained weights; it needs --init untrained")
        known = {other.what: other.figure for other in others}
        if not any(result.what in known for result in results):
            raise ConfigError(f"the control {name!r} was not measured on the same task and records as any result")
        results = [
            replace(result, controls={**result.controls, name: known[result.what]}) if result.what in known else result
            for result in results
        ]
    return results


def eval_results(results: Iterable[Result]) -> list[EvalResult]:
    """Return results as the metadata of a card has them."""
    return [
        EvalResult(
            task_type="tabular-regression" if result.metric in ("mae", "rmse", "r2") else "tabular-classification",
            task_name=result.task,
            dataset_type=database_id(result.databases),
            dataset_name=", ".join(result.databases) or "not stated",
            dataset_split=result.split,
            metric_type=METRICS[result.metric][0],
            metric_name=METRICS[result.metric][1],
            metric_value=round(result.figure.value, 6),
        )
        for result in results
    ]


def database_id(databases: Sequence[str]) -> str:
    """Return databases as a name that the metadata takes."""
    return re.sub(r"[^\w.-]+", "-", "-".join(databases)) or "not-stated"


def _figure(value: Mapping[str, Any]) -> Figure:
    return Figure(value=float(value["value"]), low=float(value["low"]), high=float(value["high"]))


def _probe(content: Mapping[str, Any]) -> list[Result]:
    return [
        Result(
            task=str(one["label"]),
            databases=tuple(map(str, content.get("databases", ()))),
            split=f"{content['folds']} folds of patients",
            method="logistic regression on frozen features",
            metric="auc",
            figure=_figure(one["pretrained"]),
            records=int(one["records"]),
            patients=int(one["patients"]),
            controls={UNTRAINED: _figure(one["untrained"])},
            weights=content.get("encoder_sha256"),
        )
        for one in content["results"]
    ]


def _finetuned(content: Mapping[str, Any]) -> list[Result]:
    scores, task, labels = content["scores"]["test"], content["task"], content["labels"]
    several = f", mean over {len(labels)} labels" if len(labels) > 1 else ""
    # Figures of whole records, see ecgfm/eval/metrics.py.
    whole = ("f_max", "challenge_2021", *(("accuracy", "ece") if content["kind"] == "multiclass" else ()))
    method = f"{METHODS.get(content['method'], content['method'])}, head {content['head']}, seed {content['seed']}"
    return [
        Result(
            task=f"{task['title']}{'' if name in whole else several}",
            databases=tuple(sorted({str(shard["database"]) for shard in content["shards"]})),
            split="test",
            method=method,
            metric=name,
            figure=_figure(scores["macro"][name]),
            records=int(scores["records"]),
            patients=int(scores["patients"]),
            init=str(content["init"]),
            weights=content["encoder"].get("sha256"),
        )
        for name in METRICS
        if name in scores["macro"]
    ]
