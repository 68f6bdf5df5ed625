"""Labels in batches: known, absent and unknown, whichever way the records are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.data.labels import LabelTable, label_names, label_sets
from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.validation import hold_out_, validation_windows
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert
from tests.conftest import Write

AF, SINUS, BLOCK = "164889003", "426783006", "270492004"
# Three databases of eight, the codes of each: CPSC 2018's have no first-degree block, CPSC-extra's none of the three.
CODES = {
    "georgia": ((AF,), (SINUS,), (AF, BLOCK), (), (BLOCK,), (SINUS, BLOCK), (AF,), (SINUS,)),
    "cpsc_2018": ((AF,), (SINUS,), (SINUS,), (AF,), (SINUS,), (AF,), (SINUS,), (AF,)),
    "cpsc_extra": (("426177001",),) * 8,
}
PREFIX = {"georgia": "E", "cpsc_2018": "A", "cpsc_extra": "Q"}
NAMES = (f"snomed:{AF}", f"snomed:{BLOCK}", "sex:female")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_challenge: Write) -> dict[str, Path]:
    """Return shards of the three; records of even number are women, and the first of each says nothing of sex."""
    found = {}
    random = np.random.default_rng(0)
    for name, records in CODES.items():
        root = tmp_path_factory.mktemp(name)
        for number, codes in enumerate(records, start=1):
            counts_LT = np.rint(500 * np.sin(np.arange(5000) / 79 + random.uniform(0, 6, (12, 1)))).astype(np.int16)
            sex = ("Unknown", "Male", "Female")[0 if number == 1 else 1 + (number % 2 == 0)]
            comments = ("# Age: 50", f"# Sex: {sex}", f"# Dx: {','.join(codes) or 'Unknown'}")
            write_challenge(root / "in", f"{PREFIX[name]}{number:05d}", counts_LT, comments=comments)
        convert(load_database(name), root / "in", root / "out", Options(records_per_shard=3))
        found[name] = root / "out"
    return found


def wanted(shards: Shards, index: NDArray[np.int64]) -> Tensor:
    """Return what the records of the first two databases should have for NAMES, from CODES."""
    rows = []
    for record in index.tolist():
        georgia = shards.folder_of[record] == 0
        number = int(shards.name(record).lstrip("EA"))
        codes = CODES["georgia" if georgia else "cpsc_2018"][number - 1]
        block = float(BLOCK in codes) if georgia else np.nan
        sex = np.nan if number == 1 else float(number % 2 == 0)
        rows.append([float(AF in codes), block, sex])
    return torch.tensor(rows)


def same(found: Tensor | None, expected: Tensor) -> bool:
    assert found is not None and found.dtype == torch.float32
    return torch.equal(found.nan_to_num(9), expected.float().nan_to_num(9))


def build(shards: Shards, *, stream: bool = False, skip: bool = False) -> Loader:
    def read_shard(number: int) -> memoryview:
        return memoryview(shards.path(number).read_bytes())

    return Loader(
        shards,
        window_samples=4000,
        batch_size=8,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=3,
        streaming=Streaming(read_shard=read_shard, block_shards=2, readers=2) if stream else None,
        skip_damaged=skip,
        labels=LabelTable(shards, NAMES),
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_batch_has_the_labels_of_its_records(folders: dict[str, Path], stream: bool) -> None:
    shards = Shards([folders["georgia"], folders["cpsc_2018"]], here=not stream)
    loader = build(shards, stream=stream)
    for position in range(0, 48, 8):  # three epochs: read, then remembered
        index, _ = loader.windows(position, position + 8)
        assert same(loader.read(position).labels_BC, wanted(shards, index))


@pytest.mark.parametrize("stream", [False, True])
def test_validation_windows_have_theirs(folders: dict[str, Path], stream: bool) -> None:
    shards = Shards([folders["georgia"], folders["cpsc_2018"]], here=not stream)
    hold_out_(shards, 0.5)
    windows = validation_windows(shards, 4000, (), 64)
    assert windows is not None and windows.labels is None

    def read_shard(number: int) -> memoryview:
        return memoryview(shards.path(number).read_bytes())

    batch = windows.read(0, 2, read_shard if stream else None)
    assert batch.labels_BC is None
    labelled = type(windows)(**{**vars(windows), "labels": LabelTable(shards, NAMES)})
    batch = labelled.read(0, len(labelled), read_shard if stream else None)
    assert same(batch.labels_BC, wanted(shards, windows.index_N))


def test_a_record_that_stands_in_for_a_damaged_one_brings_its_own_labels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards([folders["georgia"]])
    loader = build(shards, skip=True)
    index, _ = loader.windows(0, 8)
    bad, copy = int(index[0]), shards.copy_windows

    def fail(index_B: NDArray[np.int64], *rest: NDArray[Any], hashed: bool) -> dict[int, ShardError]:
        wrong = copy(index_B, *rest, hashed=hashed)
        return wrong | {row: ShardError("it is damaged") for row in np.flatnonzero(index_B == bad).tolist()}

    monkeypatch.setattr(shards, "copy_windows", fail)
    batch = loader.read(0)
    assert loader.replacements
    (replaced,) = loader.replacements.take(8)
    names = [shards.name(record) for record in range(len(shards))]
    stood_in = np.array([names.index(replaced.by), *index[1:]])
    assert stood_in[0] != bad
    assert same(batch.labels_BC, wanted(shards, stood_in))


def test_a_batch_of_zeros_knows_nothing(folders: dict[str, Path]) -> None:
    labels_BC = build(Shards([folders["georgia"]])).blank().labels_BC
    assert labels_BC is not None and labels_BC.shape == (8, 3) and labels_BC.isnan().all()


def test_damaged_labels_are_an_error_that_names_the_record(folders: dict[str, Path]) -> None:
    shards = Shards([folders["georgia"]])
    content = bytearray(shards.path(0).read_bytes())
    start = content.index(b'{"')
    content[start : start + 2] = b"#!"
    with pytest.raises(ShardError, match=shards.name(0)):
        LabelTable(shards, NAMES).learn(0, memoryview(bytes(content)))


@pytest.mark.parametrize(
    ("databases", "names", "said"),
    [
        (("georgia",), ("snomed:16488900",), f"did you mean snomed:{AF}"),
        (("georgia",), ("scp:AFIB",), "scp:AFIB"),
        (("georgia", "cpsc_extra"), NAMES[:2], "cpsc-extra.* says nothing about"),
    ],
)
def test_labels_that_the_shards_do_not_have_are_refused(
    databases: tuple[str, ...], names: tuple[str, ...], said: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=said):
        LabelTable(Shards([folders[name] for name in databases]), names)


def test_a_set_may_have_labels_that_nobody_has(folders: dict[str, Path]) -> None:
    names = label_names(("shared18",))
    table = LabelTable(Shards([folders["georgia"]]), names)
    for index in range(8):
        table.learn(index)
    rows_BC = table.rows(np.arange(8))
    known = {name.partition(":")[2] for name, column in zip(names, rows_BC.T) if not column.isnan().all()}
    assert known == {"AF", "NSR", "IAVB"}
    assert not rows_BC[:, names.index("shared18:AF")].isnan().any()


def test_sets_are_those_of_the_label_maps() -> None:
    assert {name: len(codes) for name, codes in label_sets().items()} == {
        "shared18": 18, "challenge": 26, "chapman-rhythm": 4, "sex": 1, "scp": 71, "scp-diagnostic": 44,
        "scp-subdiagnostic": 23, "scp-superdiagnostic": 5, "scp-form": 19, "scp-rhythm": 12,
    }  # fmt: skip
    assert label_names(("sex", "snomed:1")) == ("sex:female", "snomed:1")
