"""What a report says about its data: parts, labels, databases, and whether anything leaks between them.

All of it is computed from the predictions and the shards' manifests, and what cannot be known is said to be so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.predictions import PREDICTIONS, SPLITS, Predictions
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.manifest import Manifest, read_manifest
from ecgfm.shards.same import match
from ecgfm.signal.fingerprint import to_bytes

State = Literal["good", "bad", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the statement about leakage."""

    state: State
    text: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of train, validation and test."""

    name: str
    records: int
    patients: int
    positives: tuple[int, ...]
    """Of each label; of a regression, records whose target is known."""


def parts_of(model: Predictions) -> list[Part]:
    """Return what each part holds."""
    parts = []
    for name in SPLITS:
        records, patients, positives = model.counted(name)
        parts.append(Part(name=name, records=records, patients=patients, positives=positives))
    return parts


def findings(model: Predictions, shards: Sequence[Path], pretraining: Sequence[Path]) -> list[Finding]:
    """Return what was looked for between the parts, and between pretraining and test.

    Args:
        model: Its parts and patients.
        shards: Folders that `record_N` counts through; none where they are not at hand.
        pretraining: Folders of shards that the encoder was pretrained on; none where nobody says.

    Raises:
        ConfigError: The shards have fewer records than the predictions name.
        ShardError: A manifest is missing or damaged.
    """
    found = [_patients(model)]
    if not shards:
        found.append(
            Finding(
                state="unknown", text="Copies of one recording in two parts were not looked for: no shards were given."
            )
        )
    else:
        content = np.asarray(_contents([read_manifest(folder) for folder in shards]))
        if model.record_N.max() >= len(content):
            raise ConfigError(
                f"--shards hold {len(content)} records and the predictions name number {model.record_N.max()}: give "
                "the folders that were evaluated, in their order"
            )
        test = content[model.record_N[model.split_N == "test"]]
        if (model.split_N == "train").any():
            others, where = content[model.record_N[model.split_N != "test"]], "training or validation"
        else:  # the file leaves the training part out: what is not tested holds it
            rest = np.setdiff1d(np.arange(len(content)), model.record_N[model.split_N == "test"])
            others, where = content[rest], "the shards' other records"
        found.append(_copies(where, others, test))
        if pretraining:
            found.append(_copies("pretraining", np.asarray(_pretraining(pretraining)), test))
    if not pretraining or not shards:
        found.append(
            Finding(
                state="unknown",
                text="Whether the encoder saw test recordings in pretraining was not looked for: neither predictions "
                "nor encoder say what it was pretrained on (--pretraining takes the folders of shards).",
            )
        )
    return found


def manifests(shards: Sequence[Path]) -> list[Manifest]:
    """Return the manifests of folders that are there."""
    return [read_manifest(folder) for folder in shards]


def _patients(model: Predictions) -> Finding:
    people = {name: set(model.patient_N[model.split_N == name].tolist()) for name in SPLITS}
    shared = {pair: len(people[pair[0]] & people[pair[1]]) for pair in combinations(SPLITS, 2)}
    if any(shared.values()):
        listed = ", ".join(f"{number:,} in {one} and {two}" for (one, two), number in shared.items() if number)
        return Finding(state="bad", text=f"Patients are in more than one part: {listed}.")
    if not people["train"]:
        said = model.result.get("splits_share_no_patient")
        if said is True:
            return Finding(state="good", text="No patient is in two parts, as the evaluation found when it made them.")
        text = "Patients are in more than one part, as the evaluation found when it made them."
        if said is False:
            return Finding(state="bad", text=text)
        text = f"{PREDICTIONS} leaves the training part out: whether its patients are tested too is not known."
        return Finding(state="unknown", text=text)
    number, records = len(set().union(*people.values())), len(model.patient_N)
    if number == records:
        text = f"No patient is in two parts; each of the {records:,} records counts as a patient of its own."
    else:
        text = f"No patient is in two parts ({number:,} patients, {records:,} records)."
    return Finding(state="good", text=text)


def _copies(name: str, read: NDArray[np.str_], held: NDArray[np.str_]) -> Finding:
    known, kept = read[read != ""], held[held != ""]
    missing = len(read) + len(held) - len(known) - len(kept)
    note = f" {missing:,} records give no fingerprint and were not compared." if missing else ""
    number = 0
    if len(known) and len(kept):
        nearest, _ = match(to_bytes(kept.tolist()), to_bytes(known.tolist()))
        number = int((nearest >= 0).sum())
    if number:
        return Finding(
            state="bad", text=f"{number:,} of {len(held):,} test recordings are in {name} too, by their signal.{note}"
        )
    return Finding(
        state="good",
        text=f"None of {len(held):,} test recordings is among the {len(read):,} of {name}, by its signal.{note}",
    )


def _contents(found: Sequence[Manifest]) -> list[str]:
    return [content for manifest in found for shard in manifest.shards for content in shard.members.content]


def _pretraining(folders: Sequence[Path]) -> list[str]:
    return [
        content
        for folder in folders
        for shard in read_manifest(folder).shards
        if shard.split in PRETRAINING_SPLITS
        for content in shard.members.content
    ]
