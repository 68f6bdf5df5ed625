"""The check finds every kind of damage, and none in whole shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ecgfm.errors import ShardError
from ecgfm.shards.check import check_shards, require_whole
from ecgfm.shards.manifest import Manifest, read_manifest

Convert = Callable[..., Manifest]


@pytest.fixture
def shards(tmp_path: Path, convert_georgia: Convert) -> Path:
    convert_georgia(tmp_path / "out")
    return tmp_path / "out"


def first(shards: Path) -> Path:
    return sorted(shards.glob("*.tar"))[0]


def test_whole_shards_have_no_fault(shards: Path) -> None:
    seen = []
    assert check_shards(shards, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (5, 5)
    require_whole(shards)


def test_a_flipped_bit_is_found_and_placed(shards: Path) -> None:
    place = read_manifest(shards).shards[0].members.offset[1] + 400
    raw = bytearray(first(shards).read_bytes())
    raw[place] ^= 1
    first(shards).write_bytes(raw)
    faults = check_shards(shards)
    assert any("SHA-256" in fault for fault in faults)
    assert any("E00002: the signal is not the one that was hashed" in fault for fault in faults)
    with pytest.raises(ShardError, match="more fault"):
        require_whole(shards)


def test_a_cut_shard_is_found(shards: Path) -> None:
    first(shards).write_bytes(first(shards).read_bytes()[:130_000])
    assert any("cut or damaged" in fault for fault in check_shards(shards))


def test_a_missing_shard_is_found(shards: Path) -> None:
    first(shards).unlink()
    assert check_shards(shards)[0].endswith("missing")


def test_a_smuggled_pickle_is_found_and_not_opened(shards: Path) -> None:
    # Opening it would create the file: the pickle of a call of open(path, "w").
    trap = shards.parent / "trap"
    payload = b"cbuiltins\nopen\n(V" + str(trap).encode() + b"\nVw\ntR."
    with tarfile.open(first(shards), "a") as tar:
        info = tarfile.TarInfo("E00001.evil.pkl")
        info.size = len(payload)
        tar.addfile(info, io.BytesIO(payload))
    assert any("E00001.evil.pkl does not belong here" in fault for fault in check_shards(shards))
    assert not trap.exists()


def test_a_strange_tar_is_found(shards: Path) -> None:
    (shards / "extra.tar").write_bytes(first(shards).read_bytes())
    assert check_shards(shards) == ["extra.tar: not in the manifest"]


def test_a_manifest_whose_numbers_do_not_add_up_is_found(shards: Path) -> None:
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    content["seen"] += 1
    path.write_text(json.dumps(content))
    assert any("8 seen is not 5 in the shards and 2 refused" in fault for fault in check_shards(shards))


def test_a_lost_line_of_the_refused_is_found(shards: Path) -> None:
    path = shards / "refused.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert any("1 lines, the manifest says 2" in fault for fault in check_shards(shards))


def test_an_index_that_points_elsewhere_is_found(shards: Path) -> None:
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["members"]["offset"][0] += 2
    path.write_text(json.dumps(content))
    assert any("E00001 is not where the manifest's index says" in fault for fault in check_shards(shards))
