"""Whose each record is. A record of which the database does not say it has a patient of its own.

Shapes: N records.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ecgfm.shards.reader import Shards

Person = tuple[str, str, str]
"""Database, patient and, for lack of one, record."""


def people(shards: Shards) -> Iterator[Person]:
    """Yield whose each record is, in the order of the records."""
    for manifest in shards.manifests:
        for shard in manifest.shards:
            for patient, record in zip(shard.members.patient, shard.members.record, strict=True):
                yield manifest.database, patient, "" if patient else record


def number_people(shards: Shards) -> tuple[NDArray[np.int64], list[Person]]:
    """Return person_N, whose each record is as a number, and who has which number."""
    numbers: dict[Person, int] = {}
    person_N = np.fromiter((numbers.setdefault(who, len(numbers)) for who in people(shards)), dtype=np.int64)
    return person_N, list(numbers)
