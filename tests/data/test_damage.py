"""Damage to shards that are read during a run: it is said, or passed over the same way by everybody."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfm.errors import ShardError
from ecgfm.shards.reader import Shards
from tests.data.elsewhere import BATCH, WINDOW, Server, by_index, damage, expected, flip, shard_paths, steps, streamed

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("kind", ["a changed sample", "a changed JSON", "half a tar", "no shard"])
@pytest.mark.parametrize("way", ["folder", "pipe", "http"])
def test_streamed_damage_stops_the_run_or_is_passed_over_the_same_way_on_all_ranks_and_on_going_on(
    folder: Path, server: Server, way: str, kind: str
) -> None:
    place = {"folder": str(folder), "http": server.url, "pipe": f"pipe:cat {folder}/"}[way]
    good = streamed(place)
    shutil.copytree(folder, folder.parent / "whole")
    said, lost = damage(kind, folder)
    with pytest.raises(ShardError, match=said) as caught:
        steps(streamed(place), 4)
    assert "-000001.tar" in str(caught.value)
    skipping = streamed(place, skip=True)
    windows = steps(skipping, 4)
    assert skipping.replacements
    replaced = skipping.replacements.take(4 * BATCH)
    index, _ = good.windows(0, 4 * BATCH)
    assert [one.position for one in replaced] == [at for at in range(4 * BATCH) if index[at] in lost]
    assert all("-000001.tar" in one.shard for one in replaced)
    there = Shards([folder.parent / "whole"])
    _, starts = good.windows(0, 4 * BATCH)
    for at, window in enumerate(windows.flatten(0, 1).numpy()):
        same = np.array_equal(window, there.counts(int(index[at]))[:, starts[at] : starts[at] + WINDOW])
        assert same == (index[at] not in lost)
    ranks = [steps(streamed(place, rank=rank, world_size=2, skip=True), 4) for rank in range(2)]
    assert torch.equal(torch.cat(ranks, dim=1), windows)
    assert torch.equal(steps(streamed(place, position=BATCH, skip=True), 3), windows[1:])


@pytest.mark.parametrize("kind", ["a changed sample", "a changed header", "cut while mapped", "cut before", "gone"])
def test_damage_to_mapped_shards_in_mid_run_is_an_error_or_passed_over(folder: Path, kind: str) -> None:
    loaders = [by_index(folder, skip=skip, check=kind == "a changed sample") for skip in (False, True, True)]
    shards = loaders[0].shards
    path, lost = shards.path(1), set(np.flatnonzero(shards.shard_of == 1).tolist())
    members = shards.manifests[0].shards[1].members
    if kind == "cut while mapped":
        for each in loaders:
            each.shards.counts(min(lost))
        with path.open("r+b") as file:
            file.truncate(4096)
    elif kind == "cut before":
        with path.open("r+b") as file:
            file.truncate(4096)
    elif kind == "gone":
        path.unlink()
    else:
        flip(path, members.offset[2] + (4000 if kind == "a changed sample" else -70))
        lost = {min(lost) + 2}
    failing, skipping, resumed = loaders
    with pytest.raises(ShardError, match=r"-000001\.tar"):
        steps(failing, 4)
    windows = steps(skipping, 4)
    assert skipping.replacements
    replaced = skipping.replacements.take(4 * BATCH)
    index, _ = failing.windows(0, 4 * BATCH)
    assert [one.position for one in replaced] == [at for at in range(4 * BATCH) if index[at] in lost]
    resumed.position = 2 * BATCH
    assert torch.equal(steps(resumed, 2), windows[2:])


def test_without_the_check_a_changed_sample_is_not_seen_and_costs_nothing_to_say(folder: Path) -> None:
    here = by_index(folder, skip=False)
    flip(here.shards.path(1), here.shards.manifests[0].shards[1].members.offset[2] + 4000)
    assert torch.equal(steps(here, 3).flatten(0, 1), expected(here, [folder], 0, 3 * BATCH))


def test_nothing_but_damage_stops_the_run_also_when_it_skips(folder: Path) -> None:
    here = streamed(str(folder), skip=True)
    for path in shard_paths(folder):
        path.unlink()
    with pytest.raises(ShardError, match="64 records in its place are damaged too"):
        steps(here, 1)
