"""Who is held out for validation, and which windows are looked at."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ecgfm.data.loader import usable_records
from ecgfm.data.validation import hold_out_, validation_windows
from ecgfm.databases.base import load_database
from ecgfm.errors import ShardError
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert

PEOPLE = 400


@dataclass
class Named:
    """As much of `Shards` as says whose a record is."""

    rows: list[tuple[str, str, str, str]]
    """Database, patient, record and split, one folder for each database in the order of appearance."""
    content: dict[str, str] = field(default_factory=dict)
    """Fingerprint by record."""

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(row[0] for row in self.rows))
        self.manifests = []
        for name in names:
            own = [row for row in self.rows if row[0] == name]
            members = SimpleNamespace(
                patient=[row[1] for row in own],
                record=[row[2] for row in own],
                content=[self.content.get(row[2], "") for row in own],
            )
            self.manifests.append(SimpleNamespace(database=name, shards=[SimpleNamespace(members=members)]))
        self.rows = [row for name in names for row in self.rows if row[0] == name]
        self.split_of = np.asarray([row[3] for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)


def held(rows: list[tuple[str, str, str, str]], share: float, content: dict[str, str] | None = None) -> set[str]:
    """Return the records that are of the split `val` afterwards."""
    shards: Any = Named(rows, content or {})
    hold_out_(shards, share)
    return {row[2] for row, split in zip(shards.rows, shards.split_of, strict=True) if split == "val"}


def crowd(database: str = "a", split: str = "all") -> list[tuple[str, str, str, str]]:
    """Return two records of each of many patients."""
    return [(database, f"p{who}", f"{database}-{who}-{n}", split) for who in range(PEOPLE) for n in range(2)]


def test_whole_patients_are_held_out_and_about_as_many_as_asked_for() -> None:
    found = held(crowd(), 0.25)
    patients = {name.split("-")[1] for name in found}
    assert len(found) == 2 * len(patients)
    # A binomial of 400 at 0.25 has a deviation of 8.7.
    assert 60 <= len(patients) <= 140


def test_the_same_patients_whatever_the_order_and_whoever_else_is_there() -> None:
    alone = held(crowd(), 0.25)
    beside = held([*crowd("b"), *reversed(crowd())], 0.25)
    assert {name for name in beside if name.startswith("a-")} == alone
    # And not those of the same name elsewhere.
    others = {name.removeprefix("b-") for name in beside if name.startswith("b-")}
    assert others != {name.removeprefix("a-") for name in alone}


def test_a_larger_share_holds_out_the_same_and_more() -> None:
    few, many = held(crowd(), 0.1), held(crowd(), 0.3)
    assert few < many


def test_segments_of_a_record_without_a_patient_stay_together() -> None:
    rows = [("a", "", f"r{number}", "all") for number in range(100) for _ in range(3)]
    shards: Any = Named(rows)
    hold_out_(shards, 0.3)
    for number in range(100):
        assert len(set(shards.split_of[3 * number : 3 * number + 3])) == 1


def test_only_what_pretraining_reads_is_moved() -> None:
    rows = [*crowd("a", "train"), *crowd("b", "test"), *crowd("c", "val")]
    shards: Any = Named(rows)
    hold_out_(shards, 0.25)
    splits = {name: shards.split_of[[row[0] == name for row in shards.rows]] for name in "abc"}
    assert set(splits["a"]) == {"train", "val"} and set(splits["b"]) == {"test"} and set(splits["c"]) == {"val"}
    before = np.asarray(rows)
    nobody: Any = Named(rows)
    hold_out_(nobody, 0.0)
    assert nobody.split_of.tolist() == before[:, 3].tolist()


def test_a_copy_of_a_held_out_recording_is_held_out_too() -> None:
    rng = np.random.default_rng(0)
    content = {row[2]: base64.b64encode(rng.bytes(48)).decode() for row in crowd("a")}
    # Another database has the same recordings under other names and patients.
    copies = [("b", f"q{number}", f"copy of {row[2]}", "all") for number, row in enumerate(crowd("a"))]
    content |= {f"copy of {name}": text for name, text in content.items()}
    found = held([*crowd("a"), *copies], 0.2, content)
    originals = {name for name in found if not name.startswith("copy")}
    assert originals
    assert {f"copy of {name}" for name in originals} == {name for name in found if name.startswith("copy")}
    # And of a patient of theirs nothing is left behind.
    assert len(originals) == 2 * len({name.split("-")[1] for name in originals}) < 2 * PEOPLE


@pytest.fixture
def folder(tmp_path: Path, write_challenge: Callable[..., Path]) -> Path:
    """Return shards of 12 records of noise, 10 to 11.5 s."""
    rng = np.random.default_rng(0)
    for number in range(12):
        counts = rng.integers(-800, 800, (12, 5000 + 250 * (number % 4))).astype(np.int16)
        write_challenge(tmp_path / "georgia", f"E{number + 1:05d}", counts)
    convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "out", Options(records_per_shard=5))
    return tmp_path / "out"


def test_training_and_validation_share_no_record_and_leave_none_out(folder: Path) -> None:
    shards = Shards([folder])
    hold_out_(shards, 0.4)
    trained = usable_records(shards, 5000).tolist()
    windows = validation_windows(shards, 5000, (), 100)
    assert windows is not None
    assert sorted([*trained, *windows.index_N.tolist()]) == list(range(12))
    assert windows.records == windows.patients == len(windows)


def test_windows_stay_where_they_are_and_a_smaller_set_is_their_beginning(folder: Path) -> None:
    def windows(folders: list[Path], most: int) -> list[bytes]:
        shards = Shards(folders)
        shards.split_of = np.full(len(shards), "val")
        found = validation_windows(shards, 4800, (), most)
        assert found is not None and len(found) == most
        return [window.numpy().tobytes() for window in found.read(0, most).signal_BLT]

    all_of_them = windows([folder], 12)
    assert len(set(all_of_them)) == 12
    assert windows([folder], 5) == all_of_them[:5]
    shards = Shards([folder])
    found = {
        counts[:, start : start + 4800].tobytes()
        for counts in map(shards.counts, range(12))
        for start in range(counts.shape[1] - 4799)
    }
    assert set(all_of_them) <= found


def test_windows_from_the_bytes_of_shards_are_those_of_the_memory_map(folder: Path) -> None:
    shards = Shards([folder])
    shards.split_of = np.full(len(shards), "val")
    found = validation_windows(shards, 5000, (), 7, by_shard=True)
    assert found is not None
    asked: list[int] = []

    def read_shard(number: int) -> memoryview:
        asked.append(number)
        return memoryview(shards.path(number).read_bytes())

    mapped, streamed = found.read(0, 7), found.read(0, 7, read_shard)
    assert torch.equal(mapped.signal_BLT, streamed.signal_BLT)
    assert torch.equal(mapped.microvolt_per_count_B, streamed.microvolt_per_count_B)
    assert len(asked) == len(set(asked)) == 2  # seven records of shards of five
    with pytest.raises(ShardError):
        found.read(0, 7, lambda number: memoryview(shards.path(number).read_bytes()[:1000]))
