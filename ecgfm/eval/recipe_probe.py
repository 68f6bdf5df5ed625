"""The probe of a comparison of recipes: every run's encoder on the same records, beside one of random weights.

No record is probed that a run trains on: of shards that are pretrained on, those that are held out (see
`data.validation`); of others what is published as held out, or all. What an encoder refuses is left out for all.

Shapes: N records, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.data.validation import SPLIT, hold_out_
from ecgfm.errors import ConfigError, SignalError
from ecgfm.eval.labels import read_labels, target
from ecgfm.eval.probe import embed_shards, measure, untrained
from ecgfm.eval.recipe_table import Collapse, Outcome, Score, collapse
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.export import export, load_export
from ecgfm.hub.recordings import to_contract
from ecgfm.leads import LEADS
from ecgfm.run_folder import read_settings, read_state
from ecgfm.shards.leaks import HELD_OUT_SPLITS, PRETRAINING_SPLITS
from ecgfm.shards.manifest import manifest_sha256, write_json
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract

Look = tuple[dict[str, dict[str, Any]], Collapse]
"""AUROC by label, as `value` and `draws`, and how the features fill their space."""


class RecipeProbe:
    """Probes encoders on the same records and labels.

    Args:
        pretrain: Folders of shards that are pretrained on.
        probe: Folders of labelled shards.
        share: Of the patients of `pretrain` that no run trains on; with 0 the records that are trained on are probed.
        labels: As `scheme:code`.
        folds: Of patients.

    Raises:
        ConfigError: A label is unknown, or in too few of the records that may be probed.
        ShardError: Shards are missing or damaged.
    """

    def __init__(
        self, pretrain: Sequence[Path], probe: Sequence[Path], *, share: float, labels: Sequence[str], folds: int
    ) -> None:
        training = Shards(pretrain)
        hold_out_(training, share)
        self.records = len(training)
        """Of the shards that are pretrained on."""
        self.records_read = int(np.isin(training.split_of, PRETRAINING_SPLITS).sum())
        """Those of them that pretraining may read."""
        self.shards = Shards(probe)
        allowed = _allowed(self.shards, training, share)
        self.index_N = np.asarray([index for index in allowed if _taken(self.shards, index)], dtype=np.int64)
        """Records that are probed."""
        self.refused = len(allowed) - len(self.index_N)
        """Records that no encoder takes."""
        labelled = read_labels(self.shards, self.index_N)
        self.targets = [target(labelled, label, folds) for label in labels]
        self._labels, self._folds = labels, folds
        content = [manifest_sha256(folder) for folder in (*pretrain, *probe)]
        self._identity = {"labels": list(labels), "folds": folds, "share": share, "content": content}
        self._untrained: dict[str, Look] = {}

    def outcome(self, recipe: str, seed: int, run: Path, out: Path) -> Outcome:
        """Return what the probe of a finished run says, or said before.

        Args:
            recipe: Its name.
            seed: Of the run; the random weights have it too.
            run: Folder of the run.
            out: Folder for `encoders` and `probes`, where they get the name of the run's folder.

        Raises:
            EcgfmError: The run has no encoder that can be used.
        """
        path = out / "probes" / f"{run.name}.json"
        identity = {**self._identity, "run": read_settings(run), "files": read_state(run).get("files")}
        content = config.read_json(path) if path.is_file() else {}
        if content.get("identity") != config.fingerprint(identity):
            content = {
                "identity": config.fingerprint(identity),
                **self._content(run, out / "encoders" / run.name, seed),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        # In the order of the labels that were asked for: the file has its own.
        found = ((label, content["scores"][label]) for label in self._labels)
        scores = {
            label: Score(
                pretrained=score["pretrained"]["value"],
                untrained=score["untrained"]["value"],
                pretrained_R=np.asarray(score["pretrained"]["draws"], dtype=np.float64),
                untrained_R=np.asarray(score["untrained"]["draws"], dtype=np.float64),
            )
            for label, score in found
        }
        looks = content["collapse"]
        return Outcome(
            recipe=recipe,
            seed=seed,
            scores=scores,
            pretrained=Collapse(**looks["pretrained"]),
            untrained=Collapse(**looks["untrained"]),
        )

    def _content(self, run: Path, out: Path, seed: int) -> dict[str, Any]:
        """Probe the encoder of a run, and one of its settings with random weights."""
        encoder = load_export(export(run, out))
        settings = config.to_dict({"encoder": encoder.encoder.config, "signal": encoder.signal})
        key = config.fingerprint({**settings, "seed": seed})
        if key not in self._untrained:  # recipes share encoders
            self._untrained[key] = self._look(untrained(encoder, seed))
        looks = {"pretrained": self._look(encoder), "untrained": self._untrained[key]}
        return {
            "scores": {label: {which: look[0][label] for which, look in looks.items()} for label in self._labels},
            "collapse": {which: config.to_dict(look[1]) for which, look in looks.items()},
        }

    def _look(self, encoder: ECGEncoder) -> Look:
        features_ND = embed_shards(encoder, self.shards, records=self.index_N)
        scores = {}
        for one in self.targets:
            value, draws_R = measure(features_ND, one, folds=self._folds, seed=0)
            draws = [None if math.isnan(draw) else round(draw, 6) for draw in draws_R.tolist()]
            scores[one.label] = {"value": value, "draws": draws}
        return scores, collapse(encoder, self.shards, self.index_N, features_ND)


def _allowed(shards: Shards, training: Shards, share: float) -> list[int]:
    """Return the records of the probe's shards that may be probed."""
    chosen = np.zeros(len(shards), dtype=bool)
    for number, folder in enumerate(shards.folders):
        here = shards.folder_of == number
        same = [place for place, other in enumerate(training.folders) if other.resolve() == folder.resolve()]
        splits = training.split_of[training.folder_of == same[0]] if same else shards.split_of[here]
        allowed: NDArray[np.bool_] = np.isin(splits, [SPLIT] if same else HELD_OUT_SPLITS)
        if same and share and not allowed.any():
            raise ConfigError(f"--held-out-share {share:g} holds out no record of {folder}: give a larger one")
        chosen[here] = allowed if allowed.any() else True
    return np.flatnonzero(chosen).tolist()


def _taken(shards: Shards, index: int) -> bool:
    """Tell whether an encoder takes a record at all: not when nearly all leads are flat or beyond belief."""
    one, level = shards.sample(index), (1.0,) * len(LEADS)
    contract = SignalContract(rate_hz=one.rate_hz, mean_mv=level, std_mv=level, window_samples=1)
    try:
        to_contract(one.signal_LT, rate_hz=one.rate_hz, leads=LEADS, unit="mV", contract=contract, name=one.record)
    except SignalError:
        return False
    return True
