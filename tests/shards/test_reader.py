"""The indexed reader: views of the shards, and refusal of shards that are not those of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecgfm.errors import ShardError
from ecgfm.shards.manifest import Manifest
from ecgfm.shards.reader import Shards

Convert = Callable[..., Manifest]


def test_records_are_read_only_views_of_the_file(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    counts = Shards([tmp_path / "out"]).counts(0)
    assert not counts.flags.writeable and not counts.flags.owndata


def test_several_folders_are_numbered_one_after_the_other(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "a")
    convert_georgia(tmp_path / "b", records_per_shard=2)
    shards = Shards([tmp_path / "a", tmp_path / "b"])
    assert len(shards) == 10
    assert shards.folder_of.tolist() == [0] * 5 + [1] * 5
    for index in range(5):
        np.testing.assert_array_equal(shards.counts(index), shards.counts(index + 5))
        assert shards.about(index) == shards.about(index + 5)


def test_a_missing_folder_or_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json does not exist"):
        Shards([tmp_path / "nowhere"])


def test_a_missing_shard_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    next((tmp_path / "out").glob("*.tar")).unlink()
    with pytest.raises(ShardError, match=r"is missing; run the same tools/convert\.py"):
        Shards([tmp_path / "out"])


def test_a_shard_cut_in_the_middle_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    path = next((tmp_path / "out").glob("*.tar"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ShardError, match=r"its manifest says \d+: it is cut"):
        Shards([tmp_path / "out"])


def test_a_file_of_the_right_size_that_is_no_shard_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    path = sorted((tmp_path / "out").glob("*.tar"))[0]
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ShardError, match="not the shard that its manifest describes"):
        Shards([tmp_path / "out"]).counts(0)


def test_a_damaged_manifest_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match="is damaged"):
        Shards([tmp_path / "out"])
    path.write_text(whole.replace('"schema": 2', '"schema": 99'))
    with pytest.raises(ShardError, match="schema 99"):
        Shards([tmp_path / "out"])


def test_shards_of_several_rates_have_no_one_rate(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "a")
    convert_georgia(tmp_path / "b", rate_hz=250.0)
    with pytest.raises(ShardError, match="several sampling rates"):
        _ = Shards([tmp_path / "a", tmp_path / "b"]).rate_hz


@pytest.mark.parametrize("offset", [-2, 641, 10**9])
def test_a_record_at_a_place_that_cannot_be_is_refused(tmp_path: Path, convert_georgia: Convert, offset: int) -> None:
    convert_georgia(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(
        path.read_text().replace('"offset":[', f'"offset":[{offset},', 1).replace(f"{offset},640", str(offset))
    )
    with pytest.raises(ShardError, match=rf"puts record \S+ at byte {offset} of a shard of \d+ bytes"):
        Shards([tmp_path / "out"])
