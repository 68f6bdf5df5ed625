"""Which records of shards have which label, and who their patients are.

A record that says nothing in a label's scheme is unknown and left out; one that has the scheme without
the code is negative.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.shards.reader import Shards

LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What is known of the records, in the order of the shards."""

    patients: tuple[str, ...]
    """With the database before it: two databases may number their patients alike."""
    labels: tuple[Mapping[str, Sequence[str]], ...]
    """Codes by scheme."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return records and patients of each `scheme:code`, the most frequent first."""
        found: dict[str, list[str]] = {}
        for patient, labels in zip(self.patients, self.labels, strict=True):
            for scheme, codes in labels.items():
                for code in set(codes):
                    found.setdefault(f"{scheme}:{code}", []).append(patient)
        counts = {name: (len(patients), len(set(patients))) for name, patients in found.items()}
        return dict(sorted(counts.items(), key=lambda item: (-item[1][0], item[0])))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One label as a question to the records that can answer it."""

    label: str
    index_N: NDArray[np.int64]
    """Records whose scheme is known."""
    positive_N: NDArray[np.bool_]
    patients: tuple[str, ...]
    unknown: int
    """Records left out, because they say nothing in this scheme."""


def read_labels(shards: Shards, records: NDArray[np.int64] | None = None) -> Labelled:
    """Return labels and patients of all records, or of some; no signal is read.

    Sex is a scheme of its own, `sex:female`.
    """
    patients, labels = [], []
    for index in range(len(shards)) if records is None else records.tolist():
        about = shards.about(index)
        patients.append(patient_of(about))
        labels.append({**about["labels"], **({"sex": [about["sex"]]} if about["sex"] else {})})
    return Labelled(patients=tuple(patients), labels=tuple(labels))


def patient_of(about: Mapping[str, Any]) -> str:
    """Return whose a record is, from its JSON: database and patient, or the record where no patient is known."""
    who = f"patient {about['patient']}" if about["patient"] is not None else f"record {about['record']}"
    return f"{about['database']} {who}"


def target(labelled: Labelled, label: str, folds: int) -> Target:
    """Return the records and answers of `scheme:code`.

    Raises:
        ConfigError: Nobody has the label (the message lists near ones), everybody has it, or it has too
            few patients for so many folds.
    """
    scheme, separator, code = label.partition(":")
    counts = labelled.counts()
    if not separator or label not in counts:
        raise ConfigError(f"--label {label}: no record has it; {_near(label, counts)}")
    index = np.asarray([number for number, labels in enumerate(labelled.labels) if scheme in labels])
    positive = np.asarray([code in labelled.labels[number][scheme] for number in index])
    patients = tuple(labelled.patients[number] for number in index)
    if positive.all():
        raise ConfigError(
            f"--label {label}: all {len(index)} records with {scheme} labels have it; there is no contrast"
        )
    for what, chosen in (("with", positive), ("without", ~positive)):
        number = len({patients[place] for place in np.flatnonzero(chosen)})
        if number < 2 * folds:
            most = number // 2
            fix = f"give --folds {most} or another label" if most >= 2 else "give another label"
            raise ConfigError(
                f"--label {label}: {number} patients {what} it are too few for --folds {folds}, "
                f"which need 2 in each: {fix}"
            )
    return Target(
        label=label,
        index_N=index,
        positive_N=positive,
        patients=patients,
        unknown=len(labelled.labels) - len(index),
    )


def _near(label: str, counts: Mapping[str, tuple[int, int]]) -> str:
    if not counts:
        return "the shards hold no label at all"
    lower = {name.lower(): name for name in counts}
    near = [lower[name] for name in difflib.get_close_matches(label.lower(), lower, n=3, cutoff=0.5)]
    code = (label.partition(":")[2] or label).lower()
    near += [name for name in counts if code in name.lower() and name not in near][:3]
    shown = near or list(counts)[:LISTED]
    listed = ", ".join(f"{name!r} ({counts[name][0]})" for name in shown)
    return f"{'did you mean' if near else 'the most frequent are'} {listed}? tools/probe.py --list-labels shows all"
