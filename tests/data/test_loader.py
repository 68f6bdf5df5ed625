"""Batches from shards: every record once an epoch, whatever the number of ranks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.loader import Loader, usable_records
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert

RECORDS = 24
BATCH = 12


@pytest.fixture
def folder(tmp_path: Path, write_challenge: Callable[..., Path]) -> Path:
    """Return shards of 24 records of 10 to 11.5 s, of noise, so that a window is found in one place only."""
    rng = np.random.default_rng(0)
    for number in range(RECORDS):
        counts = rng.integers(-800, 800, (12, 5000 + 250 * (number % 4))).astype(np.int16)
        gain = "1000.0(0)/mV" if number % 2 else "500.0(0)/mV"
        write_challenge(tmp_path / "georgia", f"E{number + 1:05d}", counts, gain=gain)
    convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "out", Options(records_per_shard=5))
    return tmp_path / "out"


@pytest.fixture
def shards(folder: Path) -> Shards:
    return Shards([folder])


def loader(
    shards: Shards,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    window: int = 4000,
    batch_size: int = BATCH,
    seed: int = 7,
    position: int = 0,
) -> Loader:
    return Loader(
        shards,
        window_samples=window,
        batch_size=batch_size,
        accumulation=accumulation,
        rank=rank,
        world_size=world_size,
        seed=seed,
        position=position,
    )


def record_at(shards: Shards, window_LT: NDArray[np.int16]) -> tuple[int, int]:
    """Return the record and the start that a window was cut from, by looking for it everywhere."""
    for record in range(len(shards)):
        counts = shards.counts(record)
        for start in np.flatnonzero(counts[0, : counts.shape[1] - window_LT.shape[1] + 1] == window_LT[0, 0]):
            if np.array_equal(counts[:, start : start + window_LT.shape[1]], window_LT):
                return record, int(start)
    raise AssertionError("the window is in no record")


def together(shards: Shards, position: int, world_size: int, accumulation: int = 1) -> torch.Tensor:
    """Return the windows of an optimizer step over all ranks and micro-batches, in the order of positions."""
    micro_rows = BATCH // accumulation
    return torch.cat(
        [
            loader(shards, rank=rank, world_size=world_size, accumulation=accumulation)
            .read(position + micro * micro_rows)
            .signal_BLT
            for micro in range(accumulation)
            for rank in range(world_size)
        ]
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_each_record_of_an_epoch_once(shards: Shards, world_size: int) -> None:
    for epoch in range(2):
        windows = torch.cat(
            [together(shards, epoch * RECORDS + step * BATCH, world_size) for step in range(RECORDS // BATCH)]
        )
        seen = Counter(record_at(shards, window)[0] for window in windows.numpy())
        assert seen == Counter(range(RECORDS))


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (3, 1), (1, 2), (2, 3), (3, 4), (12, 1)])
def test_ranks_and_accumulation_change_no_window(shards: Shards, world_size: int, accumulation: int) -> None:
    for position in (0, 12, 36):
        assert torch.equal(together(shards, position, world_size, accumulation), together(shards, position, 1))


def test_an_epoch_that_ends_within_a_batch_goes_on_with_the_next(shards: Shards) -> None:
    windows = [loader(shards, batch_size=9).read(position).signal_BLT for position in range(0, 72, 9)]
    seen = [record_at(shards, window)[0] for window in torch.cat(windows).numpy()]
    for epoch in range(3):
        assert sorted(seen[epoch * RECORDS : (epoch + 1) * RECORDS]) == list(range(RECORDS))


def test_a_window_is_a_slice_of_its_record_with_its_scale(shards: Shards) -> None:
    batch = loader(shards).read(0)
    assert batch.signal_BLT.dtype == torch.int16 and batch.signal_BLT.shape == (BATCH, 12, 4000)
    starts = set()
    for row, window in enumerate(batch.signal_BLT.numpy()):
        record, start = record_at(shards, window)
        starts.add(start)
        assert batch.microvolt_per_count_B[row] == (1.0 if record % 2 else 2.0)
        assert batch.database_B[row] == 0
    assert len(starts) > BATCH // 2


def test_windows_of_one_record_differ_between_epochs_and_seeds(shards: Shards) -> None:
    def starts(seed: int, epoch: int) -> dict[int, int]:
        batches = [loader(shards, seed=seed).read(epoch * RECORDS + step * BATCH) for step in range(2)]
        return dict(record_at(shards, window) for batch in batches for window in batch.signal_BLT.numpy())

    first, second, other = starts(7, 0), starts(7, 1), starts(8, 0)
    assert first != second and first != other
    assert first == starts(7, 0)


def test_a_batch_says_whose_its_windows_are_when_asked(shards: Shards) -> None:
    person_N = np.arange(100, 100 + len(shards)) // 3
    asked = Loader(
        shards, window_samples=4000, batch_size=8, accumulation=1, rank=1, world_size=2, seed=7, person_N=person_N
    )
    batch = asked.read(16)
    assert batch.patient_B is not None and batch.to(torch.device("cpu")).patient_B is not None
    index = [record_at(shards, window.numpy())[0] for window in batch.signal_BLT]
    assert batch.patient_B.tolist() == person_N[index].tolist()
    assert asked.blank().patient_B is not None and loader(shards).read(0).patient_B is None


def test_folders_are_numbered_in_the_order_given(folder: Path) -> None:
    two = Shards([folder, folder])
    batch = loader(two, batch_size=2 * RECORDS).read(0)
    assert batch.database_B.dtype == torch.int64
    assert Counter(batch.database_B.tolist()) == {0: RECORDS, 1: RECORDS}


def test_iterating_gives_the_batches_that_reading_gives(shards: Shards) -> None:
    here = loader(shards, rank=1, world_size=2, accumulation=2, position=24)
    batches = iter(here)
    for micro in range(5):
        assert torch.equal(next(batches).signal_BLT, here.read(24 + 6 * micro).signal_BLT)
    batches.close()  # type: ignore[attr-defined]


def test_going_on_from_a_position_gives_what_would_have_come(shards: Shards) -> None:
    from_start, later = iter(loader(shards)), iter(loader(shards, position=3 * BATCH))
    for _ in range(3):
        next(from_start)
    for _ in range(3):
        assert torch.equal(next(from_start).signal_BLT, next(later).signal_BLT)
    for batches in (from_start, later):
        batches.close()  # type: ignore[attr-defined]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_closing_ends_the_thread(shards: Shards) -> None:
    batches = iter(loader(shards))
    next(batches)
    assert 1 <= len(loader_threads()) <= 2
    batches.close()  # type: ignore[attr-defined]
    assert loader_threads() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_hand_out_batches_in_order_and_change_no_window(shards: Shards, threads: int) -> None:
    here = Loader(
        shards, window_samples=4000, batch_size=6, accumulation=1, rank=0, world_size=1, seed=7, threads=threads
    )
    index, starts = here.windows(0, 72)  # three epochs
    batches = iter(here)
    for first in range(0, 72, 6):
        batch = next(batches)
        for row, window_LT in enumerate(batch.signal_BLT.numpy(), start=first):
            counts_LT = shards.counts(int(index[row]))
            np.testing.assert_array_equal(window_LT, counts_LT[:, starts[row] : starts[row] + 4000])
    batches.close()  # type: ignore[attr-defined]


def test_memory_is_used_again_once_a_batch_is_let_go_and_never_before(shards: Shards) -> None:
    here = loader(shards, window=5000)
    kept, piece, seen = [], None, set()
    batches = iter(here)
    for step in range(30):
        batch = next(batches)
        seen.add(batch.signal_BLT.data_ptr())
        if step == 3:
            piece = batch.signal_BLT[2:4, 1, ::7]  # a view alone keeps it, too
        if step in (5, 6, 20):
            kept.append((step, batch))
        del batch
    batches.close()  # type: ignore[attr-defined]
    for step, batch in kept:
        assert torch.equal(batch.signal_BLT, here.read(step * BATCH).signal_BLT)
    assert piece is not None and torch.equal(piece, here.read(3 * BATCH).signal_BLT[2:4, 1, ::7])
    # Four kept, three ahead, and the one in hand; a ring of no rule would have 30, or change what is kept.
    assert 4 <= len(seen) <= 9


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 12)])
def test_the_plan_of_many_batches_is_that_of_each(
    shards: Shards, rank: int, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfm.data.loader.PLANNED", 20)  # batches lie across its pieces
    here = loader(shards, rank=rank, world_size=world_size)
    rows = BATCH // world_size
    for position in (0, 12, 24, 480, 12, 7, 36):
        for got, each in zip(
            here._rows_at(position), here.windows(position + rank * rows, position + (rank + 1) * rows)
        ):
            np.testing.assert_array_equal(got, each)


def test_records_that_are_not_in_memory_are_asked_for_in_the_order_in_which_they_lie(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    opened: dict[int, int] = {}

    def note(file: int, offset: int, size: int, advice: int) -> None:
        asked.append((opened.setdefault(file, len(opened)), offset, size))

    monkeypatch.setattr("os.posix_fadvise", note)
    index, _ = loader(shards).windows(0, BATCH)
    for record in range(RECORDS):
        shards.counts(record).sum()
    monkeypatch.setattr(shards, "_in_memory", lambda record: record != index.max())
    shards.expect(np.sort(index)[:-1])
    assert asked == []
    shards.expect(index)
    members = [shard.members for manifest in shards.manifests for shard in manifest.shards]
    places = [place for member in members for place in zip(member.offset, member.samples, strict=True)]
    assert [one[1:] for one in asked] == [(places[i][0], 24 * places[i][1]) for i in np.sort(index)]
    assert [one[0] for one in asked] == sorted(one[0] for one in asked)


def test_reading_ahead_of_what_is_missing_is_no_error_yet(folder: Path) -> None:
    shards = Shards([folder])
    for path in folder.glob("*.tar"):
        path.unlink()
    shards.expect(np.arange(RECORDS))
    with pytest.raises(ShardError, match="cannot be read any longer"):
        loader(shards).read(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_host_however_busy_it_is(shards: Shards) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    settings: dict[str, Any] = {"batch_size": 6, "accumulation": 1, "rank": 0, "world_size": 1, "pin_memory": True}
    here = Loader(shards, window_samples=4000, seed=7, **settings)
    sums, batches = [], here.batches(device)
    for _ in range(12):
        batch = next(batches)
        assert batch.signal_BLT.is_cuda and batch.microvolt_per_count_B.is_cuda
        # The step is late: its batch's memory may not be used again before.
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        sums.append(batch.signal_BLT.double().sum((1, 2)))
        del batch
    batches.close()  # type: ignore[attr-defined]
    for step, total_B in enumerate(sums):
        assert torch.equal(total_B.cpu(), here.read(6 * step).signal_BLT.double().sum((1, 2)))


def test_an_error_of_the_thread_is_raised_where_batches_are_taken(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = loader(shards)
    read = here.read

    def fail_at_the_third(position: int) -> Batch:
        if position == 2 * BATCH:
            raise ShardError("shard 3 is cut")
        return read(position)

    monkeypatch.setattr(here, "read", fail_at_the_third)
    batches: Iterator[Batch] = iter(here)
    next(batches)
    next(batches)
    with pytest.raises(ShardError, match="shard 3 is cut"):
        next(batches)
    assert loader_threads() == []


def test_a_shard_that_breaks_during_the_run_stops_it(folder: Path) -> None:
    shards = Shards([folder])
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ShardError, match="not the shard that its manifest describes"):
        next(iter(loader(shards)))


def test_records_that_are_too_short_are_left_out(shards: Shards) -> None:
    long = [record for record in range(RECORDS) if record % 4 >= 2]
    assert usable_records(shards, 5500).tolist() == long
    windows = loader(shards, window=5500).read(0).signal_BLT.numpy()
    assert sorted(record_at(shards, window)[0] for window in windows) == long


def test_a_window_as_long_as_the_record_is_the_whole_record(shards: Shards) -> None:
    batch = loader(shards, window=5750, batch_size=6).read(0)
    for window in batch.signal_BLT.numpy():
        record, start = record_at(shards, window)
        assert (record % 4, start) == (3, 0)


@pytest.mark.parametrize("split", ["val", "test", "unknown"])
def test_held_out_records_never_enter(shards: Shards, split: str) -> None:
    shards.split_of = np.asarray(["all", "train", split] * (RECORDS // 3))
    allowed = [record for record in range(RECORDS) if record % 3 < 2]
    assert usable_records(shards, 4000).tolist() == allowed
    windows = loader(shards, batch_size=16).read(0).signal_BLT.numpy()
    assert sorted(record_at(shards, window)[0] for window in windows) == allowed


def test_no_usable_record_is_refused_with_the_numbers(shards: Shards) -> None:
    with pytest.raises(ConfigError, match=r"no record to pretrain on among 24 of .*: 0 are of .* 24 are shorter"):
        loader(shards, window=6000)
    shards.split_of = np.asarray(["val"] * 20 + ["train"] * 4)
    with pytest.raises(ConfigError, match=r"20 are of splits other than all and train, 4 are shorter than --data\.win"):
        loader(shards, window=6000)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation"), [(12, 5, 1), (12, 1, 5), (12, 4, 2), (0, 1, 1), (-12, 1, 1)]
)
def test_a_batch_that_cannot_be_split_evenly_is_refused(
    shards: Shards, batch_size: int, world_size: int, accumulation: int
) -> None:
    message = (
        f"--data.batch-size {batch_size} is not a multiple of {world_size} ranks x --engine.accumulation {accumulation}"
    )
    with pytest.raises(ConfigError, match=message):
        loader(shards, batch_size=batch_size, world_size=world_size, accumulation=accumulation)


def test_weights_draw_databases_as_often_as_they_say(tmp_path: Path, training_shards: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in (1, 2, 3):
        for ending in (".hea", ".mat"):
            name = f"E{number:05d}{ending}"
            (archive / name).write_bytes((training_shards.parent / "georgia" / name).read_bytes())
    (archive / "dataset.json").write_text('{"name": "our-ward"}')
    convert(load_database("wfdb-folder"), archive, tmp_path / "ward", Options())
    shards = Shards([training_shards, tmp_path / "ward"])
    settings: dict[str, Any] = {"window_samples": 5000, "batch_size": 8, "accumulation": 1, "rank": 0, "world_size": 1}
    loader = Loader(shards, **settings, seed=0, weights={"georgia": 0.75, "our-ward": 0.25, "absent": 1.0})
    drawn = np.concatenate([loader.read(8 * step).database_B.numpy() for step in range(1250)])
    assert np.bincount(drawn).tolist() == [7500, 2500]
    with pytest.raises(ConfigError, match="says nothing of our-ward"):
        Loader(shards, **settings, seed=0, weights={"georgia": 1.0})
    with pytest.raises(ConfigError, match=r"share of 0\.0001"):
        Loader(shards, **settings, seed=0, weights={"georgia": 0.9999, "our-ward": 0.0001})
