"""The shard writer: same bytes whatever the workers, nothing lost, nothing half-written."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, ShardError
from ecgfm.shards.check import check_shards
from ecgfm.shards.manifest import Manifest, read_manifest
from ecgfm.shards.reader import Shards
from ecgfm.shards.writer import Options, convert

Convert = Callable[..., Manifest]


def content(folder: Path) -> dict[str, str]:
    """Return the hash of every file for users."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name != ".lock")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a tmpfs with the given options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("a small disk can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_number_of_workers_changes_no_byte(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "one", workers=1)
    convert_georgia(tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert len(list((tmp_path / "one").glob("*.tar"))) == 2  # the third holds no record


def test_every_record_is_kept_or_refused_with_its_reason(tmp_path: Path, convert_georgia: Convert) -> None:
    manifest = convert_georgia(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    assert {line["record"]: line["reason"] for line in lines} == {"E00006": "lead-flat", "E00007": "too-short"}
    assert "aVL" in lines[0]["message"] and "8 s" in lines[1]["message"]
    assert (manifest.seen, manifest.kept) == (7, 5)
    assert manifest.refused == {"lead-flat": 1, "too-short": 1}
    assert manifest.labels == {"snomed": {"426783006": 5}}


def test_counts_and_statistics_are_those_of_the_source(
    tmp_path: Path, convert_georgia: Convert, counts_LT: NDArray[np.int16]
) -> None:
    manifest = convert_georgia(tmp_path / "out")
    shards = Shards([tmp_path / "out"])
    for index in range(5):
        sample = shards.sample(index)
        assert sample.record == f"E{index + 1:05d}"
        np.testing.assert_array_equal(sample.counts_LT, np.roll(counts_LT, 37 * (index + 1), axis=1))
        np.testing.assert_allclose(sample.signal_LT, sample.counts_LT / 1000)
    np.testing.assert_allclose(manifest.mean_mv, counts_LT.mean(axis=1) / 1000, rtol=1e-12)
    np.testing.assert_allclose(manifest.std_mv, counts_LT.std(axis=1) / 1000, rtol=1e-9)


def test_a_webdataset_client_reads_the_shards(tmp_path: Path, convert_georgia: Convert) -> None:
    import webdataset

    convert_georgia(tmp_path / "out")
    paths = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode())
    shards = Shards([tmp_path / "out"])
    assert [sample["__key__"] for sample in samples] == [shards.about(index)["record"] for index in range(5)]
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["ecg.npy"], shards.counts(index))
        assert sample["json"] == shards.about(index)


def test_tars_carry_no_time_or_owner(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar.getmembers()} == {(0, 0, 0, "", "")}


def test_a_second_call_writes_only_what_is_missing(tmp_path: Path, convert_georgia: Convert) -> None:
    out = tmp_path / "out"
    convert_georgia(out)
    before = content(out)
    first, second = sorted(out.glob("*.tar"))
    untouched = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:3000])  # as after a kill of an unsafe writer
    (out / "georgia-all-000009.tar.tmp").write_bytes(b"left over")
    convert_georgia(out)
    assert content(out) == before
    assert first.stat().st_mtime_ns == untouched


def test_a_stopped_conversion_goes_on(tmp_path: Path, source: Path, convert_georgia: Convert) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Stopped

    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(Stopped):
        convert(load_database("georgia"), source, out, Options(records_per_shard=3), progress=stop)
    assert not (out / "manifest.json").exists()
    assert [path.name for path in out.glob("*.tar*")] == ["georgia-all-000000.tar"]
    seen = []
    settings = Options(records_per_shard=3)
    convert(load_database("georgia"), source, out, settings, progress=lambda done, total: seen.append(done))
    assert seen[0] == 3  # the first shard was not read again
    convert_georgia(whole)
    assert content(out) == content(whole)


def test_a_second_record_of_one_name_is_refused(
    tmp_path: Path,
    source: Path,
    convert_georgia: Convert,
    write_challenge: Callable[..., Path],
    counts_LT: NDArray[np.int16],
) -> None:
    write_challenge(source / "g9", "E00001", counts_LT)
    manifest = convert_georgia(tmp_path / "out")
    assert manifest.refused["duplicate-record"] == 1
    lines = (tmp_path / "out" / "refused.jsonl").read_text()
    assert str(source / "g1" / "E00001.hea") in lines and str(source / "g9" / "E00001.hea") in lines


def test_records_with_the_same_signal_are_named(
    tmp_path: Path,
    source: Path,
    convert_georgia: Convert,
    write_challenge: Callable[..., Path],
    counts_LT: NDArray[np.int16],
) -> None:
    write_challenge(source / "g9", "E00099", np.roll(counts_LT, 37, axis=1))
    assert convert_georgia(tmp_path / "out").same_signal == (("E00001", "E00099"),)


def test_other_options_for_a_folder_are_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(ShardError, match=r"options\.rate_hz was 500.0, now 250.0"):
        convert_georgia(tmp_path / "out", rate_hz=250.0)
    assert content(tmp_path / "out") == before


def test_a_folder_with_foreign_shards_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other-000000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"other-000000\.tar"):
        convert_georgia(tmp_path / "out")


def test_two_conversions_into_one_folder_exclude_each_other(tmp_path: Path, convert_georgia: Convert) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another conversion is writing"):
            convert_georgia(tmp_path / "out")
    convert_georgia(tmp_path / "out")


def test_a_full_disk_leaves_whole_shards_only_and_says_so(
    tmp_path: Path, convert_georgia: Convert, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=500k")  # room for one shard of three records
    for workers in (1, 2):
        out = disk / f"out{workers}"
        with pytest.raises(ShardError, match="disk is full"):
            convert_georgia(out, workers=workers)
        assert not (out / "manifest.json").exists()
        assert not list(out.glob("*.tmp"))
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                tar.getmembers()
            path.unlink()


def test_a_folder_that_cannot_be_written_is_refused(
    convert_georgia: Convert, small_disk: Callable[[str], Path]
) -> None:
    with pytest.raises(ShardError, match=r"cannot be written: Read-only file system"):
        convert_georgia(small_disk("ro") / "out")


def test_a_missing_or_empty_source_is_refused(tmp_path: Path, convert_georgia: Convert) -> None:
    with pytest.raises(DatabaseError, match="does not exist"):
        convert_georgia(tmp_path / "out", folder=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatabaseError, match="empty"):
        convert_georgia(tmp_path / "out", folder=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_real_records_keep_their_counts_and_pass_the_check(tmp_path: Path, ecg_data: Path) -> None:
    import wfdb

    folder = ecg_data / "challenge-2021" / "training" / "georgia"
    manifest = convert(load_database("georgia"), folder, tmp_path / "out", Options(), workers=2)
    assert (manifest.kept, manifest.seen) == (10, 10)
    assert check_shards(tmp_path / "out") == []
    shards = Shards([tmp_path / "out"])
    for index in range(len(shards)):
        sample = shards.sample(index)
        theirs = wfdb.rdrecord(str(folder / "g1" / sample.record))
        np.testing.assert_allclose(sample.signal_LT, theirs.p_signal.T, atol=1e-12)


def test_another_rate_is_resampled_and_said(tmp_path: Path, convert_georgia: Convert) -> None:
    manifest = convert_georgia(tmp_path / "out", rate_hz=100.0)
    shards = Shards([tmp_path / "out"])
    assert (manifest.rates_hz, shards.rate_hz) == ({"100": 5}, 100.0)
    assert shards.counts(0).shape == (12, 1000)
    assert shards.about(0)["source_rate_hz"] == 500.0


def test_the_manifest_reads_back_as_it_was_written(tmp_path: Path, convert_georgia: Convert) -> None:
    assert convert_georgia(tmp_path / "out") == read_manifest(tmp_path / "out")


def test_nothing_in_a_shard_is_a_pickle(tmp_path: Path, convert_georgia: Convert) -> None:
    convert_georgia(tmp_path / "out")
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            raw = file.read()
            if member.name.endswith(".npy"):
                assert np.load(io.BytesIO(raw), allow_pickle=False).dtype == np.int16
            else:
                json.loads(raw)
