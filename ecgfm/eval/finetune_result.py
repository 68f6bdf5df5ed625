"""What a fine-tuning run or a probe leaves: predictions.npz, result.json, the classifier; and a summary over runs.

The test part is predicted here for the first time; thresholds and calibration are those of the validation part.

Shapes: N records, C labels, D features.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfm import __version__, config
from ecgfm.eval import calibration
from ecgfm.eval.finetune_bench import Bench
from ecgfm.eval.finetune_config import Finetune
from ecgfm.eval.metrics import LOWER_IS_BETTER, Scores, choose_thresholds, evaluate
from ecgfm.eval.predictions import PREDICTIONS, RESULT
from ecgfm.eval.splits import TEST, TRAIN, VALIDATION
from ecgfm.hub.calibration import Calibration, sigmoid, softmax
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.run_folder import RUN
from ecgfm.shards.manifest import write_bytes, write_json

CLASSIFIER = "classifier"
SUMMARY = "summary.json"
LISTED = 50


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a model says of records."""

    place_N: NDArray[np.int64]
    """Among the examples; see `reported_places`."""
    logit_NC: NDArray[np.float64]
    feature_ND: NDArray[np.float32]
    probability_NC: NDArray[np.float64]
    """Calibrated where that was asked for; of a regression the values."""
    calibration: Calibration | None
    thresholds_C: NDArray[np.float64] | None
    """Of multilabel tasks."""


def answers(
    bench: Bench,
    settings: Finetune,
    place_N: NDArray[np.int64],
    logit_NC: NDArray[np.float64],
    feature_ND: NDArray[np.float32],
) -> Answers:
    """Return probabilities of logits, with a calibration and thresholds fitted on the validation part."""
    kind, target_NC = bench.examples.kind, bench.target_NC[place_N]
    chosen = bench.examples.split_N[place_N] == VALIDATION
    fitted: Calibration | None = None
    if kind == "regression":
        probability_NC = logit_NC
    elif settings.calibration == "none":
        probability_NC = sigmoid(logit_NC) if kind == "multilabel" else softmax(logit_NC)
    else:
        fitted = calibration.fit(settings.calibration, logit_NC[chosen], target_NC[chosen], outputs=kind)
        probability_NC = fitted.apply(logit_NC)
    thresholds_C = choose_thresholds(target_NC[chosen], probability_NC[chosen]) if kind == "multilabel" else None
    return Answers(
        place_N=place_N,
        logit_NC=logit_NC,
        feature_ND=feature_ND,
        probability_NC=probability_NC,
        calibration=fitted,
        thresholds_C=thresholds_C,
    )


def reported_places(bench: Bench, settings: Finetune) -> NDArray[np.int64]:
    """Return the places of what is predicted: the training part if wanted, validation, and test."""
    parts = (TRAIN, VALIDATION, TEST) if settings.predict_training else (VALIDATION, TEST)
    return np.concatenate([bench.places[part] for part in parts])


def write_settings(settings: Finetune) -> None:
    """Write run.json, from which `--from` repeats the run."""
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(settings.out / RUN, config.to_dict(settings))


def write_outcome(
    bench: Bench,
    settings: Finetune,
    found: Answers,
    classifier: ECGClassifier | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write predictions, classifier and result; return the result. One process calls it.

    A classifier is written only where the encoder was given what the signal contract says: a study's input is nothing
    that `predict_proba` would make.

    Args:
        bench: The records.
        settings: Of one seed.
        found: What the model says.
        classifier: None where there is none.
        about: More for the result.
    """
    _write_predictions(bench, settings, found)
    if classifier is not None and settings.input.plain():
        classifier.calibration = found.calibration
        classifier.thresholds = None if found.thresholds_C is None else tuple(found.thresholds_C.tolist())
        classifier.save_pretrained(settings.out / CLASSIFIER)
    scores = {split: _scores(bench, settings, found, split) for split in (VALIDATION, TEST)}
    result = {
        "kind": bench.examples.kind,
        "labels": list(bench.examples.labels),
        "task": {"name": bench.task.name(), "title": bench.task.title, "source": bench.task.source},
        "method": settings.method,
        "head": settings.head,
        "init": settings.init,
        "seed": settings.seed,
        "encoder": {
            "name": settings.encoder,
            "settings": config.to_dict(bench.encoder.encoder.config),
            "parameters": sum(weight.numel() for weight in bench.encoder.parameters()),
            "sha256": bench.encoder_sha256,
            "revision": bench.encoder.revision,
        },
        "shards": [
            {
                "folder": str(folder),
                "manifest_sha256": digest,
                "database": manifest.database,
                "licence": manifest.licence,
            }
            for folder, digest, manifest in zip(settings.shards, bench.content, bench.shards.manifests, strict=True)
        ],
        "examples": bench.examples.subset(np.sort(np.concatenate(list(bench.places.values())))).counts(),
        "left_out": dict(bench.examples.left_out),
        "refused": {
            "records": len(bench.signals.refused),
            "first": list(bench.signals.refused.values())[:LISTED],
        },
        "splits_share_no_patient": _apart(bench),
        "calibration": None if found.calibration is None else found.calibration.to_dict(),
        "scores": config.to_dict(scores),
        "settings": config.to_dict(settings),
        "processes": bench.accelerator.num_processes,
        "device": str(bench.accelerator.device),
        "versions": _versions(),
        **about,
    }
    write_json(settings.out / RESULT, result)
    return result


def write_summary(out: Path, results: Sequence[tuple[Path, float | None, dict[str, Any]]]) -> dict[str, Any]:
    """Write the mean and the standard deviation of the test figures over seeds; return what was written.

    Of runs of one seed with several learning rates the one that validated best counts.

    Args:
        out: Folder above the runs.
        results: Folder, learning rate that was tried (None of the setting's own), and result of each run.
    """
    best: dict[int, tuple[Path, float | None, dict[str, Any]]] = {}
    for run in results:
        selected, before = run[2]["selected"], best.get(run[2]["seed"])
        if before is None or _better(selected["by"], selected["value"], before[2]["selected"]["value"]):
            best[run[2]["seed"]] = run
    chosen = [run[2]["scores"][TEST]["macro"] for run in best.values()]
    names = [name for name in chosen[0] if all(name in macro for macro in chosen)]
    values = {name: [macro[name]["value"] for macro in chosen] for name in names}
    summary = {
        "runs": [
            {
                "folder": str(folder.relative_to(out)),
                "seed": result["seed"],
                "lr": lr,
                "chosen": best[result["seed"]][0] == folder,
                "selected": result["selected"],
            }
            for folder, lr, result in results
        ],
        "test": {
            name: {
                "mean": statistics.fmean(each),
                "std": statistics.stdev(each) if len(each) > 1 else None,
                "values": each,
            }
            for name, each in values.items()
        },
        "seeds": list(best),
    }
    write_json(out / SUMMARY, summary)
    return summary


def _better(name: str, value: float, than: float) -> bool:
    return value < than if name in (*LOWER_IS_BETTER, "loss") else value > than


def _write_predictions(bench: Bench, settings: Finetune, found: Answers) -> None:
    place_N, examples = found.place_N, bench.examples
    index_N = examples.index_N[place_N]
    raw = io.BytesIO()
    np.savez(
        raw,
        kind=np.asarray(examples.kind),
        labels_C=np.asarray(examples.labels),
        logit_NC=found.logit_NC,
        probability_NC=found.probability_NC,
        target_NC=bench.target_NC[place_N],
        split_N=examples.split_N[place_N],
        record_N=index_N,
        name_N=np.asarray([bench.shards.name(int(index)) for index in index_N]),
        patient_N=np.asarray([examples.patients[place] for place in place_N.tolist()]),
        feature_ND=found.feature_ND,
    )
    write_bytes(settings.out / PREDICTIONS, raw.getvalue())


def _scores(bench: Bench, settings: Finetune, found: Answers, split: str) -> Scores:
    rows = bench.examples.split_N[found.place_N] == split
    place_N = found.place_N[rows]
    return evaluate(
        bench.examples.kind,
        bench.target_NC[place_N],
        found.probability_NC[rows],
        [bench.examples.patients[place] for place in place_N.tolist()],
        labels=bench.examples.labels,
        thresholds_C=found.thresholds_C,
        at_least_one=bench.task.at_least_one,
        draws=settings.draws,
        seed=settings.seed,
    )


def _apart(bench: Bench) -> bool:
    people = [{bench.examples.patients[place] for place in bench.places[split]} for split in (TRAIN, VALIDATION, TEST)]
    return not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])


def _versions() -> dict[str, str]:
    found = {"ecgfm": __version__, "torch": torch.__version__}
    for name in ("accelerate", "scikit-learn", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
