"""Whose each record is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ecgfm.data.patients import number_people, people


def folder(database: str, *rows: tuple[str, str]) -> Any:
    patients, records = zip(*rows, strict=True)
    shards = [
        SimpleNamespace(members=SimpleNamespace(patient=patients[part], record=records[part]))
        for part in (slice(0, 2), slice(2, None))
    ]
    return SimpleNamespace(database=database, shards=shards)


def test_a_patient_is_one_over_folders_of_a_database_and_a_record_without_one_is_its_own() -> None:
    shards: Any = SimpleNamespace(
        manifests=[
            folder("ptb-xl", ("p1", "a"), ("p2", "b"), ("p1", "c")),
            folder("ptb", ("p1", "d"), ("", "e"), ("", "f"), ("", "e")),
            folder("ptb-xl", ("p2", "g")),
        ]
    )
    number_N, everyone = number_people(shards)
    assert number_N.tolist() == [0, 1, 0, 2, 3, 4, 3, 1]
    assert [everyone[number] for number in number_N] == list(people(shards))
