"""Fine-tune a pretrained encoder on a task, or probe it frozen, and write what came of it.

    python recipes/finetune.py --encoder out/encoder --shards shards/ptb-xl --task ptb-xl --out runs/finetuned

The folder gets run.json, metrics.jsonl, TensorBoard files, checkpoints, classifier, predictions.npz, result.json; with
several seeds (or learning rates) each run has a folder of its own, and summary.json stands beside them. The same
command goes on with what was stopped or killed.

Shapes: N records, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from ecgfm.errors import ConfigError
from ecgfm.eval.finetune_bench import Bench, make_bench
from ecgfm.eval.finetune_config import Finetune, require_told
from ecgfm.eval.finetune_loop import Stop, Training
from ecgfm.eval.finetune_model import Network
from ecgfm.eval.finetune_result import answers, reported_places, write_outcome, write_settings, write_summary
from ecgfm.eval.finetune_worker import Worker, validation_figures
from ecgfm.eval.knn import Neighbours, log_odds
from ecgfm.eval.metrics import LOWER_IS_BETTER
from ecgfm.eval.probe import untrained
from ecgfm.eval.splits import TEST, TRAIN, VALIDATION
from ecgfm.hub.classifier import ECGClassifier

LAST_PHASE = {"probe": "frozen", "direct": "full", "after-probe": "full", "gradual": "full"}


def finetune(settings: Finetune, stop: Stop = lambda: None) -> bool:
    """Do all runs of the settings; return False when told to stop before the end.

    Several processes (`accelerate launch`) call it alike.

    Args:
        settings: Of all seeds.
        stop: Asked after each step; returns why to stop, or None.

    Raises:
        EcgfmError: Settings, shards, encoder or checkpoints are at fault; the message says which.
    """
    require_told(settings)
    bench = make_bench(settings)
    _check_known(bench)
    results: list[tuple[Path, float | None, dict[str, Any]]] = []
    runs = runs_of(settings)
    # Dropout's numbers are torch's own; the caller's shall not be moved.
    with torch.random.fork_rng():
        for one, lr in runs:
            if len(runs) > 1:
                bench.console.rule(str(one.out))
            result = _run_one(one, bench, stop)
            if result is None:
                return False
            results.append((one.out, lr, result))
    if bench.accelerator.is_main_process and len(runs) > 1:
        summary = write_summary(settings.out, results)
        bench.console.print(_summary_table(settings, summary))
    bench.accelerator.wait_for_everyone()
    return True


def runs_of(settings: Finetune) -> list[tuple[Finetune, float | None]]:
    """Return the single runs of settings, each with the learning rate that it tries."""
    last, runs = LAST_PHASE[settings.method], []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for lr in settings.lrs or (None,):
            out = settings.out / f"seed-{seed}" if settings.seeds > 1 else settings.out
            one = replace(settings, seed=seed, seeds=1, lrs=(), out=out)
            if lr is not None:
                phase = getattr(settings, last)
                one = replace(one, out=out / f"lr-{lr:g}")
                one = replace(one, **{last: replace(phase, lr=lr, final_lr=min(phase.final_lr, lr))})
            runs.append((one, lr))
    return runs


def _run_one(settings: Finetune, bench: Bench, stop: Stop) -> dict[str, Any] | None:
    """Return a run's result on all processes; None when told to stop."""
    if settings.head == "knn":
        return _knn(settings, bench)
    training = Training(settings, bench, stop)
    trained = training.run_from_folder()
    if trained is None:
        return None
    worker = Worker(bench, settings, trained.network, frozen=False)
    place_N = reported_places(bench, settings)
    logit_NC, feature_ND = worker.predict(place_N)
    about = {
        "selected": {
            "by": training.selects_by,
            "value": trained.state.best,
            "step": trained.state.best_step if settings.keep == "best" else trained.state.step,
            "steps": trained.state.step,
        },
        "seconds": round(trained.seconds, 1),
    }
    found = answers(bench, settings, place_N, logit_NC, feature_ND)
    result: dict[str, Any] = {"selected": about["selected"], "seed": settings.seed}
    if bench.accelerator.is_main_process:
        result = write_outcome(bench, settings, found, trained.classifier, about)
        bench.console.print(_table(settings, result))
    bench.accelerator.wait_for_everyone()
    return result


def _knn(settings: Finetune, bench: Bench) -> dict[str, Any]:
    """Probe with the nearest neighbours; there is nothing to resume."""
    encoder = untrained(bench.encoder, settings.seed) if settings.init == "untrained" else bench.encoder
    examples = bench.examples
    # The head is never asked: it stands here because predictions come through a classifier.
    classifier = ECGClassifier.from_pretrained(encoder, labels=examples.labels, kind=examples.kind, unfreeze="none")
    classifier.to(bench.accelerator.device)
    worker = Worker(bench, settings, Network(classifier, settings.input), frozen=False)
    _, training_ND = worker.predict(bench.places[TRAIN])
    place_N = reported_places(bench, settings)
    _, feature_ND = worker.predict(place_N)
    neighbours = Neighbours(training_ND, examples.target_NC[bench.places[TRAIN]], most=max(settings.knn_neighbours))
    if examples.kind == "regression":
        target_NC = examples.target_NC[bench.places[TRAIN]]
        classifier.standardise_(np.nanmean(target_NC, axis=0).tolist(), np.nanstd(target_NC, axis=0).tolist())
    chosen = examples.split_N[place_N] == VALIDATION
    select = settings.select or ("mae" if examples.kind == "regression" else "auc")
    tried: dict[int, float] = {}
    best: tuple[float, int] | None = None
    for k in sorted(set(settings.knn_neighbours)):
        logits = _knn_logits(neighbours, feature_ND[chosen], k, settings, examples.kind)
        found = validation_figures(classifier, logits, examples.target_NC[place_N[chosen]], examples.labels, select)
        tried[k] = found[select]
        worth = -found[select] if select in (*LOWER_IS_BETTER, "loss") else found[select]
        if best is None or worth > best[0]:
            best = (worth, k)
    assert best is not None
    logit_NC = _knn_logits(neighbours, feature_ND, best[1], settings, examples.kind)
    about = {
        "selected": {"by": select, "value": tried[best[1]], "neighbours": best[1], "tried": tried, "step": 0},
        "seconds": 0.0,
    }
    result: dict[str, Any] = {"selected": about["selected"], "seed": settings.seed}
    if bench.accelerator.is_main_process:
        write_settings(settings)
        found_answers = answers(bench, settings, place_N, logit_NC, feature_ND)
        result = write_outcome(bench, settings, found_answers, None, about)
        bench.console.print(_table(settings, result))
    bench.accelerator.wait_for_everyone()
    return result


def _knn_logits(
    neighbours: Neighbours, feature_ND: NDArray[Any], k: int, settings: Finetune, kind: str
) -> NDArray[Any]:
    said = neighbours.ask(feature_ND, k, settings.knn_temperature)
    return said if kind == "regression" else log_odds(said, kind)


def _check_known(bench: Bench) -> None:
    """Refuse a part in which nobody knows about a label, before the time is spent.

    Raises:
        ConfigError: Which.
    """
    for split, place_N in bench.places.items():
        known_C = (~np.isnan(bench.target_NC[place_N])).sum(axis=0).tolist()
        if 0 in known_C:
            names = ", ".join(label for label, known in zip(bench.examples.labels, known_C) if not known)
            raise ConfigError(f"no record of the {split} part knows about {names}: leave it out of the task")


def _table(settings: Finetune, result: dict[str, Any]) -> Table:
    test = result["scores"][TEST]
    selected = result["selected"]
    how = "best validation" if settings.keep == "last" and settings.head != "knn" else "chosen on validation"
    table = Table(
        title=f"{result['task']['title']}: {test['records']:,} test records of {test['patients']:,} patients",
        caption=f"95 % intervals by patient; {how}: {selected['by']} {selected['value']:.4f}",
        title_justify="left",
    )
    table.add_column("test")
    table.add_column("value", justify="right")
    table.add_column("interval", justify="right")
    for name, each in test["macro"].items():
        table.add_row(name, f"{each['value']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}")
    return table


def _summary_table(settings: Finetune, summary: dict[str, Any]) -> Table:
    table = Table(title=f"test figures over {len(summary['seeds'])} seeds, {settings.out}", title_justify="left")
    for name in ("test", "mean", "std"):
        table.add_column(name, justify="left" if name == "test" else "right")
    for name, each in summary["test"].items():
        table.add_row(name, f"{each['mean']:.3f}", "" if each["std"] is None else f"{each['std']:.3f}")
    return table
