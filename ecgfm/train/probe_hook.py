"""A linear probe during the run: how well a label can be read from the features as they are now.

Rank 0 takes what a checkpoint would publish, and does what tools/probe.py would do with it: the same windows,
normalisation, folds by patient, and figures, on fewer records. The other ranks wait. Test records are never looked at,
and no record that the run trains on.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm import config
from ecgfm.data.validation import SPLIT
from ecgfm.errors import ConfigError, EcgfmError
from ecgfm.eval.bootstrap import interval
from ecgfm.eval.labels import Labelled, Target, read_labels, target
from ecgfm.rng import generator
from ecgfm.shards.leaks import HELD_OUT_SPLITS
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train.checkpoint_writer import published
from ecgfm.train.engine import Engine

LEAST_RECORDS = 50


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Look during the run at what a linear model reads from the features."""

    shards: Path | None = None
    """Folder of labelled records that the run does not train on. Of a folder with published splits its `val` records
    are taken; of one that the run trains on, what --data.validation-share holds out."""
    label: str | None = None
    """The label, as scheme:code; `python tools/probe.py ENCODER SHARDS --list-labels` lists them."""
    every: int | None = None
    """Steps between two probes; --checkpoint-every by default. The last step has one too."""
    records: int = 512
    """At most so many records, half of them with the label where there are so many."""

    folds: int = 5
    """Folds of patients; each needs two with the label and two without."""

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 100:
            raise ConfigError(f"--probe.folds must be 2 to 100, got {self.folds}")
        if (self.shards is None) != (self.label is None):
            raise ConfigError("--probe.shards and --probe.label belong together: give both, or neither")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"--probe.every must be at least 1, got {self.every}")
        if self.records < LEAST_RECORDS:
            raise ConfigError(f"--probe.records must be at least {LEAST_RECORDS}, got {self.records}")


class ProbeHook:
    """Measures the AUROC of one label. All ranks must make it, and the leak gate have passed its folder.

    Args:
        settings: Which records and label.
        training: Of the run, with what is held out of it.
        encoder: Settings of the run's encoder, with their kind.
        contract: What the encoder will demand of a signal.

    Raises:
        ConfigError: scikit-learn is missing, there is no such label, too few patients have it, or the run trains on
            these records.
        ShardError: The shards are missing or damaged.
    """

    def __init__(
        self, settings: ProbeConfig, training: Shards, encoder: dict[str, object], contract: SignalContract
    ) -> None:
        assert settings.shards is not None and settings.label is not None
        if importlib.util.find_spec("sklearn") is None:
            raise ConfigError('--probe.shards needs scikit-learn: pip install "ecgfm[eval]"')
        self._encoder, self._contract, self._folds = encoder, contract, settings.folds
        self.shards = Shards([settings.shards])
        index = _allowed(self.shards, training)
        try:
            labelled = read_labels(self.shards, index)
            chosen = _choose(labelled, settings.label, settings.records) or list(range(len(index)))
            part = Labelled(
                patients=tuple(labelled.patients[place] for place in chosen),
                labels=tuple(labelled.labels[place] for place in chosen),
            )
            found = target(part, settings.label, settings.folds)
        except ConfigError as error:
            said = str(error).replace("--label ", "--probe.label ").replace("--folds", "--probe.folds")
            raise ConfigError(said) from error
        self.index_N = index[chosen][found.index_N]
        # Of these records, and no longer of all that were looked at.
        self.target: Target = replace(found, index_N=np.arange(len(self.index_N)))

    def figures(self, engine: Engine) -> dict[str, float]:
        """Return `probe_auc` and its 95 % interval. All ranks must call it.

        Raises:
            SignalError: A record is not what the encoder takes.
        """
        whole = engine.collect()
        found: dict[str, float] = {}
        fault: EcgfmError | None = None
        if engine.world.rank == 0:
            try:
                found = self._measure(engine, whole)
            except EcgfmError as error:
                fault = error
        engine.world.agree(fault, patient=True)
        return engine.world.from_first(found)

    def _measure(self, engine: Engine, whole: dict[str, Tensor]) -> dict[str, float]:
        # What a run without a probe need not have installed or loaded.
        from ecgfm.eval.probe import embed_shards, measure
        from ecgfm.hub.encoder import ECGEncoder

        with torch.random.fork_rng(devices=[]):
            encoder = ECGEncoder(encoder=self._encoder, signal=config.to_dict(self._contract))
        encoder.encoder.load_state_dict(published(engine.objective, whole), strict=True)
        encoder.to(engine.world.device).eval()
        features_ND = embed_shards(encoder, self.shards, records=self.index_N)
        auc = interval(*measure(features_ND, self.target, folds=self._folds, seed=0))
        return {"probe_auc": auc.value, "probe_auc_low": auc.low, "probe_auc_high": auc.high}


def _allowed(shards: Shards, training: Shards) -> NDArray[np.int64]:
    """Return the records of a folder that a probe may look at during the run."""
    folder = shards.folders[0]
    here = [number for number, other in enumerate(training.folders) if other.resolve() == folder.resolve()]
    splits = training.split_of[training.folder_of == here[0]] if here else shards.split_of
    if SPLIT in splits:
        return np.flatnonzero(splits == SPLIT)
    if here:
        raise ConfigError(
            f"--probe.shards {folder} is trained on: give a folder that is not, or hold patients of it out with "
            "--data.validation-share"
        )
    if np.isin(splits, HELD_OUT_SPLITS).any():
        raise ConfigError(
            f"--probe.shards {folder} has a test split, which is not looked at during a run, and no val split; give "
            "another folder"
        )
    return np.arange(len(shards))


def _choose(labelled: Labelled, label: str, most: int) -> list[int]:
    """Return at most so many records whose scheme is known: patients in turn with the label and without, at random."""
    scheme, _, code = label.partition(":")
    of: dict[str, list[int]] = {}
    have: set[str] = set()
    for place, (patient, labels) in enumerate(zip(labelled.patients, labelled.labels, strict=True)):
        if scheme in labels:
            of.setdefault(patient, []).append(place)
            if code in labels[scheme]:
                have.add(patient)
    names = np.asarray(sorted(of), dtype=object)
    shuffled = generator(0, "probe patients").permutation(names).tolist()
    sides = [[name for name in shuffled if (name in have) is wanted] for wanted in (True, False)]
    chosen: list[int] = []
    for name in chain.from_iterable(zip_longest(*sides)):
        if name is not None and len(chosen) + len(of[name]) <= most:
            chosen += of[name]
    return sorted(chosen)
