"""Data at its edges: it works, or it is refused with the reason before a run begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm.data.batch import Batch
from ecgfm.data.loader import Loader
from ecgfm.data.validation import hold_out_, validation_windows
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, EcgfmError, ShardError
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert

Convert = Callable[..., Path]


@pytest.fixture
def shards_of(tmp_path: Path, write_challenge: Callable[..., Path]) -> Convert:
    """Return a function that writes shards of noise, each record of a level of its own so that it can be told."""

    def write(name: str, lengths: list[int], **options: Any) -> Path:
        rng = np.random.default_rng(len(lengths))
        for number, samples in enumerate(lengths):
            counts = rng.integers(-400, 400, (12, samples)).astype(np.int16)
            counts[:, 0] = number  # of no effect on what is kept
            write_challenge(tmp_path / name, f"E{number + 1:05d}", counts)
        convert(load_database("georgia"), tmp_path / name, tmp_path / f"{name}-shards", Options(**options))
        return tmp_path / f"{name}-shards"

    return write


def loader(shards: Shards, *, rank: int = 0, ranks: int = 1, batch: int = 6, window: int = 5000, **more: Any) -> Loader:
    return Loader(
        shards, window_samples=window, batch_size=batch, accumulation=1, rank=rank, world_size=ranks, seed=3, **more
    )


def records(shards: Shards, batch: Batch) -> list[int]:
    """Return which records whole-record windows are, by their first count."""
    return [int(window[0, 0]) for window in batch.signal_BLT]


def steps(shards: Shards, ranks: int, batch: int, number: int) -> Iterator[list[int]]:
    """Yield the records of each step, over all ranks."""
    loaders = [loader(shards, rank=rank, ranks=ranks, batch=batch) for rank in range(ranks)]
    for step in range(number):
        yield [record for one in loaders for record in records(shards, one.read(step * batch))]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_batch_larger_than_the_database_holds_each_record_as_often_as_it_can(shards_of: Convert, ranks: int) -> None:
    shards = Shards([shards_of("few", [5000] * 3)])
    seen = next(steps(shards, ranks, 8, 1))
    assert len(seen) == 8
    assert sorted(Counter(seen).values()) == [2, 3, 3]
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("per_shard", [1, 7])
def test_an_epoch_that_ends_within_a_batch_loses_and_repeats_no_record(
    shards_of: Convert, ranks: int, per_shard: int
) -> None:
    # Seven records, four a step, in shards of one record or in a single shard: fewer shards than ranks.
    shards = Shards([shards_of("seven", [5000] * 7, records_per_shard=per_shard)])
    assert len(shards.manifests[0].shards) == (7 if per_shard == 1 else 1)
    seen = [record for step in steps(shards, ranks, 4, 7) for record in step]
    for epoch in range(4):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_ranks_that_do_not_divide_the_batch_are_refused_with_both_numbers(shards_of: Convert) -> None:
    shards = Shards([shards_of("seven", [5000] * 7)])
    with pytest.raises(ConfigError, match=r"--data\.batch-size 8 is not a multiple of 3 ranks"):
        loader(shards, ranks=3, batch=8)


def test_windows_longer_than_some_segments_leave_those_out_and_longer_than_all_are_refused(shards_of: Convert) -> None:
    shards = Shards([shards_of("mixed", [5000, 6000, 7000])])
    assert loader(shards, window=6000).records.tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"3 are shorter than --data\.window-s"):
        loader(shards, window=7001)


def test_a_folder_without_records_adds_nothing_beside_another_and_alone_is_refused(
    shards_of: Convert, tmp_path: Path
) -> None:
    # All are refused at conversion: 3 s are too short.
    empty = shards_of("short", [1500] * 3)
    full = shards_of("full", [5000] * 4)
    for folders in ([empty, full], [full, empty]):
        both = Shards(folders)
        alone = loader(Shards([full])).read(0).signal_BLT
        assert np.array_equal(loader(both).read(0).signal_BLT, alone)
        assert both.rate_hz == 500.0
    with pytest.raises(ShardError, match="there is no record in"):
        Shards([empty])
    with pytest.raises(EcgfmError):
        Shards([tmp_path / "nothing"])


def test_a_database_by_weight_that_has_no_record_left_is_refused(shards_of: Convert) -> None:
    shards = Shards([shards_of("four", [5000] * 4), shards_of("short", [1500] * 3)])
    assert loader(shards, weights={"georgia": 1.0}).read(0).signal_BLT.shape[0] == 6
    with pytest.raises(ConfigError, match="no record to pretrain on"):
        loader(shards, weights={"georgia": 1.0}, window=9000)


def test_a_share_that_leaves_nobody_on_a_side_is_refused_with_the_direction(shards_of: Convert) -> None:
    folder = shards_of("four", [5000] * 4)
    with pytest.raises(ConfigError, match=r"0\.0001 of 4 patients .* holds out none of them; give a larger share"):
        hold_out_(Shards([folder]), 0.0001)
    with pytest.raises(ConfigError, match=r"0\.9999 of 4 patients .* holds out all of them; give a smaller share"):
        hold_out_(Shards([folder]), 0.9999)


def test_held_out_records_that_are_all_too_short_give_no_windows(shards_of: Convert) -> None:
    shards = Shards([shards_of("four", [5000] * 4)])
    hold_out_(shards, 0.5)
    assert validation_windows(shards, 5001, (), 8) is None


def test_one_record_is_enough_to_train_on(shards_of: Convert) -> None:
    shards = Shards([shards_of("one", [5000])])
    assert [record for step in steps(shards, 2, 4, 2) for record in step] == [0] * 8
