"""Shards without signals: tasks read what is known of records, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ecgfm.labels import derived
from ecgfm.shards.reader import Shards

Make = Callable[..., Shards]


class Told:
    """What tasks ask of `Shards`."""

    def __init__(self, records: Iterable[dict[str, Any]], database: str) -> None:
        self._about = []
        for number, given in enumerate(records):
            about = {
                "database": database, "record": f"r{number}", "patient": None, "age": None, "sex": None, "fold": None,
                "split": "all", "labels": {}, **given,
            }  # fmt: skip
            labels = {scheme: list(codes) for scheme, codes in about["labels"].items()}
            more = derived({scheme: tuple(codes) for scheme, codes in labels.items()}, about["database"])
            self._about.append(
                {**about, "labels": {**labels, **{scheme: list(codes) for scheme, codes in more.items()}}}
            )
        self.split_of = np.asarray([about["split"] for about in self._about])
        self.folder_of = np.zeros(len(self._about), dtype=np.int64)
        self.folders = ("shards",)
        counts: dict[str, dict[str, int]] = {}
        for about in self._about:
            for scheme, codes in about["labels"].items():
                here = counts.setdefault(scheme, {})
                for code in codes:
                    here[code] = here.get(code, 0) + 1
        self.manifests = (SimpleNamespace(database=database, labels=counts, sex={}),)

    def __len__(self) -> int:
        return len(self._about)

    def about(self, index: int, shard: memoryview | None = None) -> dict[str, Any]:
        """Return what is known of a record."""
        return self._about[index]


@pytest.fixture
def told() -> Make:
    """Return a function that makes shards of records with `labels`, `patient`, `fold` and the like."""

    def make(records: Iterable[dict[str, Any]], database: str = "wfdb-folder") -> Shards:
        return cast(Shards, Told(records, database))

    return make
