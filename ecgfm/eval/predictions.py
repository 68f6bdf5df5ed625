"""What an evaluation leaves behind, read back: `predictions.npz`, and `result.json` where there is one.

`predictions.npz` holds, for N records of all parts: `logit_NC`, `probability_NC` (calibrated where a calibration was
fitted), `target_NC` (NaN where it is unknown), `split_N` ("train", "validation" or "test"), `record_N` (numbers in the
shards), `patient_N`, `labels_C`, and, where features were kept, `feature_ND`. Nothing in it is unpickled.

Shapes: N records, C labels, D features.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.metrics import Floats, Kind, choose_thresholds
from ecgfm.hub.calibration import sigmoid, softmax

PREDICTIONS = "predictions.npz"
RESULT = "result.json"
RUN = "run.json"
SPLITS = ("train", "validation", "test")
NEEDED = ("logit_NC", "probability_NC", "target_NC", "split_N", "record_N", "patient_N", "labels_C")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of one model for the records of one task."""

    folder: Path
    kind: Kind
    labels: tuple[str, ...]
    logit_NC: Floats
    probability_NC: Floats
    target_NC: Floats
    split_N: NDArray[np.str_]
    record_N: NDArray[np.int64]
    patient_N: NDArray[np.str_]
    feature_ND: NDArray[np.float32] | None
    result: Mapping[str, Any]
    """result.json, or nothing."""
    settings: Mapping[str, Any]
    """run.json, or nothing."""

    @cached_property
    def uncalibrated_NC(self) -> Floats:
        """What the logits say before any calibration; of a regression, the values."""
        if self.kind == "regression":
            return self.logit_NC
        return sigmoid(self.logit_NC) if self.kind == "multilabel" else softmax(self.logit_NC)

    @property
    def is_calibrated(self) -> bool:
        """Whether the probabilities are not simply those of the logits."""
        # Both went through float32 on the way to the file.
        return self.kind != "regression" and not np.allclose(self.probability_NC, self.uncalibrated_NC, atol=1e-4)

    @cached_property
    def thresholds_C(self) -> Floats | None:
        """Thresholds that are best on the validation part; None where there are none to choose."""
        chosen = self.split_N == "validation"
        if self.kind != "multilabel" or not chosen.any():
            return None
        return choose_thresholds(self.target_NC[chosen], self.probability_NC[chosen])

    @property
    def train_records(self) -> int:
        """Records of training: those of the file, or, where it leaves them out, what result.json says."""
        number = int((self.split_N == "train").sum())
        return number or int(self._said("train").get("records", 0))

    def counted(self, split: str) -> tuple[int, int, tuple[int, ...]]:
        """Return records, patients, and records of each label (of a regression, known ones) of a part."""
        rows = np.flatnonzero(self.split_N == split)
        if len(rows):
            target = self.target_NC[rows]
            known = ~np.isnan(target) if self.kind == "regression" else target == 1
            return len(rows), len(np.unique(self.patient_N[rows])), tuple(map(int, known.sum(axis=0)))
        said = self._said(split)
        return (
            int(said.get("records", 0)),
            int(said.get("patients", 0)),
            tuple(int(said.get(label, 0)) for label in self.labels),
        )

    def _said(self, split: str) -> Mapping[str, Any]:
        found = self.result.get("examples", {}).get(split, {})
        return found if isinstance(found, Mapping) else {}

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a part whose target is known for a label at least."""
        return np.flatnonzero((self.split_N == split) & ~np.isnan(self.target_NC).all(axis=1))


def read_predictions(folder: Path) -> Predictions:
    """Return what an evaluation left in its folder.

    Raises:
        ConfigError: There are no predictions, or they are damaged or not of one form.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {PREDICTIONS}: give the --out of recipes/finetune.py or recipes/probe.py")
    try:
        # As a file: of a path that holds no zip, numpy would take a lone array too.
        with path.open("rb") as opened, np.lib.npyio.NpzFile(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}; evaluate again") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; evaluate again with this version")
    logits = arrays["logit_NC"]
    if logits.ndim != 2 or logits.shape[1] != len(arrays["labels_C"]):
        raise ConfigError(f"{path}: logits {logits.shape} are not (records, {len(arrays['labels_C'])} labels)")
    for name in NEEDED[:-1]:
        shape = logits.shape if name.endswith("_NC") else logits.shape[:1]
        if arrays[name].shape != shape:
            raise ConfigError(f"{path}: {name} has shape {arrays[name].shape} where logits have {logits.shape}")
    unknown = sorted(set(arrays["split_N"].astype(str).tolist()) - set(SPLITS))
    if unknown:
        raise ConfigError(f"{path}: split {unknown[0]!r} is none of {', '.join(SPLITS)}")
    result = _read_json(folder / RESULT)
    target, features = arrays["target_NC"].astype(np.float64), arrays.get("feature_ND")
    return Predictions(
        folder=folder,
        kind=_kind(str(arrays["kind"]) if "kind" in arrays else result.get("kind"), target),
        labels=tuple(map(str, arrays["labels_C"])),
        logit_NC=logits.astype(np.float64),
        probability_NC=arrays["probability_NC"].astype(np.float64),
        target_NC=target,
        split_N=arrays["split_N"].astype(str),
        record_N=arrays["record_N"].astype(np.int64),
        patient_N=arrays["patient_N"].astype(str),
        feature_ND=None if features is None else features.astype(np.float32),
        result=result,
        settings=_read_json(folder / RUN),
    )


def _kind(said: Any, target_NC: Floats) -> Kind:
    """Return the kind that the file says; without one, what the targets look like."""
    if said in get_args(Kind):
        kind: Kind = said
        return kind
    known = target_NC[~np.isnan(target_NC)]
    if not np.isin(known, (0.0, 1.0)).all():
        return "regression"
    whole = target_NC[~np.isnan(target_NC).any(axis=1)]
    return "multiclass" if target_NC.shape[1] > 1 and (whole.sum(axis=1) == 1).all() else "multilabel"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; evaluate again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no JSON object; evaluate again")
    return content
