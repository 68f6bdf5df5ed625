"""Shards that are streamed: the same windows on any number of ranks, in an order of blocks, and from where a run is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecgfm.data.mixture import BLOCK
from ecgfm.data.stream import BlockMixture
from ecgfm.databases.base import load_database
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert
from tests.data.elsewhere import BATCH, RECORDS, Server, expected, shard_paths, steps, streamed

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_an_epoch_has_each_record_once_and_its_blocks_hold_whole_shards(folder: Path, block: int) -> None:
    mixture = streamed(str(folder), block=block).mixture
    assert isinstance(mixture, BlockMixture)
    shards = Shards([folder])
    orders = [mixture.records(epoch * RECORDS, (epoch + 1) * RECORDS) for epoch in range(3)]
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    (part,) = mixture.parts
    for number in range(2 * mixture.num_blocks(part)):
        first, records = mixture.block(part, number)
        assert np.array_equal(records, mixture.records(first, first + len(records)))
        inside = set(shards.shard_of[records].tolist())
        assert len(inside) <= block and len(records) == np.isin(shards.shard_of, list(inside)).sum()
        assert all(mixture.block_of(part, place) == number for place in (first, first + len(records) - 1))


@pytest.mark.parametrize("way", ["folder", "pipe:cat {}/", "pipe:cat '{}'/{{name}}", "http"])
def test_streamed_windows_are_those_of_the_order_over_epochs(folder: Path, server: Server, way: str) -> None:
    place = {"folder": str(folder), "http": server.url}.get(way) or way.format(folder)
    here = streamed(place)
    assert torch.equal(steps(here, 6).flatten(0, 1), expected(here, [folder], 0, 6 * BATCH))


@pytest.mark.parametrize("world_size", [2, 4, 12])
def test_ranks_together_stream_what_one_rank_streams(folder: Path, world_size: int) -> None:
    one = steps(streamed(str(folder)), 4)
    ranks = [steps(streamed(str(folder), rank=rank, world_size=world_size), 4) for rank in range(world_size)]
    assert torch.equal(torch.cat(ranks, dim=1), one)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_going_on_in_the_middle_of_a_block_reads_that_block_and_none_before(
    folder: Path, server: Server, done: int
) -> None:
    whole = steps(streamed(str(folder), block=1), 5)
    later = streamed(server.url, position=done * BATCH, block=1)
    assert torch.equal(steps(later, 1)[0], whole[done])
    mixture = later.mixture
    assert isinstance(mixture, BlockMixture)
    (part,) = mixture.parts
    blocks = {mixture.block_of(part, place) for place in range(done * BATCH, (done + 1) * BATCH)}
    # and the one that is read ahead
    assert sum(count for name, count in server.asked.items() if name.endswith(".tar")) <= len(blocks) + 1
    assert torch.equal(steps(later, 5 - done), whole[done:])


def test_databases_are_streamed_by_weight_each_in_epochs_of_its_own(folder: Path, tmp_path: Path) -> None:
    database = json.loads((folder / "manifest.json").read_text())
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    database["database"] = "our-ward"
    (other / "manifest.json").write_text(json.dumps(database))
    settings: dict[str, Any] = {"weights": {"georgia": 0.9, "our-ward": 0.1}, "block": 1}
    whole = streamed(str(folder), str(other), **settings)
    assert torch.equal(steps(whole, 30).flatten(0, 1), expected(whole, [folder, other], 0, 30 * BATCH))
    drawn = whole.mixture.records(0, BLOCK)
    assert np.bincount(drawn // RECORDS).tolist() == [9000, 1000]
    for number in range(2):
        which, place = whole.mixture.draw(0, 2 * BLOCK + 77)
        at = np.flatnonzero(which == number)
        for first, last in ((0, 5), (990, 1010), (1500, len(at))):
            assert np.array_equal(whole.mixture.positions(number, first, last), at[first:last])
        assert np.array_equal(place[at], np.arange(len(at)))
    later = streamed(str(folder), str(other), position=17 * BATCH, **settings)
    assert torch.equal(steps(later, 3), steps(streamed(str(folder), str(other), **settings), 20)[17:])


def test_shards_of_one_record_and_more_ranks_than_shards(tmp_path: Path, training_shards: Path) -> None:
    (tmp_path / "georgia").mkdir()
    for source in (training_shards.parent / "georgia").glob("E0000[123].*"):
        shutil.copy(source, tmp_path / "georgia")
    convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "few", Options(records_per_shard=1))
    assert len(shard_paths(tmp_path / "few")) == 3
    ranks = [steps(streamed(str(tmp_path / "few"), rank=rank, world_size=12, block=8), 2) for rank in range(12)]
    whole = streamed(str(tmp_path / "few"), block=8)
    assert torch.equal(torch.cat(ranks, dim=1).flatten(0, 1), expected(whole, [tmp_path / "few"], 0, 2 * BATCH))


def test_a_server_that_fails_for_a_while_changes_nothing(folder: Path, server: Server) -> None:
    names = [path.name for path in shard_paths(folder)]
    server.faults = {names[0]: [500, 503], names[1]: [0, 0], "manifest.json": [500]}
    here = streamed(server.url)
    assert torch.equal(steps(here, 3).flatten(0, 1), expected(here, [folder], 0, 3 * BATCH))
    assert server.asked[names[0]] >= 3 and server.asked[names[1]] >= 3
