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
from ecgfm.errors import DatabaseError, RecordError, ShardError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING
from ecgfm.shards.check import check_shards
from ecgfm.shards.manifest import Manifest, read_manifest
from ecgfm.shards.reader import Shards
from ecgfm.shards.tar import TarWriter
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy

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
    for workers in (2, 5):
        convert_georgia(tmp_path / str(workers), workers=workers)
        assert content(tmp_path / "one") == content(tmp_path / str(workers))
    assert len(list((tmp_path / "one").glob("*.tar"))) == 2  # the third holds no record


def test_every_record_is_kept_or_refused_with_its_reason(tmp_path: Path, convert_georgia: Convert) -> None:
    manifest = convert_georgia(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    assert {line["record"]: line["reason"] for line in lines} == {"E00006": "all-leads-flat", "E00007": "too-short"}
    assert "8 s" in lines[1]["message"]
    assert (manifest.seen, manifest.kept, manifest.segments) == (7, 5, 5)
    assert manifest.refused == {"all-leads-flat": 1, "too-short": 1}
    assert manifest.labels["snomed"] == {"426783006": 5}
    assert manifest.labels["challenge"] == {"NSR": 5}


def test_counts_and_statistics_are_those_of_the_source(
    tmp_path: Path, convert_georgia: Convert, counts_LT: NDArray[np.int16]
) -> None:
    manifest = convert_georgia(tmp_path / "out")
    shards = Shards([tmp_path / "out"])
    for index in range(5):
        sample = shards.sample(index)
        assert sample.record == f"E{index + 1:05d}"
        expected_LT = np.roll(counts_LT, 37 * (index + 1), axis=1)
        if sample.record == "E00003":
            assert sample.flags["flat-lead"] == ["aVL"]
            expected_LT[LEADS.index("aVL")] = 11
        np.testing.assert_array_equal(sample.counts_LT, expected_LT)
        np.testing.assert_allclose(sample.signal_LT, sample.counts_LT / 1000)
    # The flat lead of E00003 does not enter, or mean and deviation of aVL would be others.
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
    with pytest.raises(ShardError, match=r"options\.signal\.rate_hz was 500.0, now 250.0"):
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


def test_a_long_recording_becomes_segments_that_keep_record_and_patient(
    tmp_path: Path, write_challenge: Callable[..., Path], counts_LT: NDArray[np.int16]
) -> None:
    long_LT = np.concatenate([counts_LT, counts_LT[:, ::-1], counts_LT], axis=1)  # 30 s
    long_LT[6, 6_000:6_200] = MISSING
    write_challenge(tmp_path / "georgia", "E00001", long_LT[:, :14_800])
    write_challenge(tmp_path / "georgia", "E00002", counts_LT)
    options = Options(signal=Policy(segment_s=10.0))
    manifest = convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "out", options)
    assert (manifest.seen, manifest.kept, manifest.segments, manifest.patients) == (2, 2, 2, 2)
    assert (manifest.refused, manifest.refused_segments) == ({}, {"samples-missing": 1})
    assert manifest.cut_s == 9.6
    (line,) = (json.loads(text) for text in (tmp_path / "out" / "refused.jsonl").read_text().splitlines())
    assert (line["record"], line["start_s"], line["reason"]) == ("E00001", 10.0, "samples-missing")
    (shard,) = manifest.shards
    assert shard.members.record == ("E00001", "E00002")
    with tarfile.open(tmp_path / "out" / shard.name) as tar:
        names = tar.getnames()
    assert names == ["E00001@00000.ecg.npy", "E00001@00000.json", "E00002.ecg.npy", "E00002.json"]
    assert check_shards(tmp_path / "out") == []


def test_records_of_a_database_that_is_cut_into_segments_have_the_segments_of_their_seconds(
    tmp_path: Path, write_challenge: Callable[..., Path], counts_LT: NDArray[np.int16]
) -> None:
    long_LT = np.concatenate([counts_LT] * 13, axis=1)  # 130 s
    write_challenge(tmp_path / "georgia", "E00001", long_LT)
    manifest = convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "out", Options())
    shards = Shards([tmp_path / "out"])
    assert [shards.sample(index).start_s for index in range(len(shards))] == [0.0, 60.0, 120.0]
    assert [shards.counts(index).shape[1] for index in range(len(shards))] == [30_000, 30_000, 5_000]
    assert {shards.sample(index).record for index in range(3)} == {"E00001"}
    assert manifest.labels["snomed"] == {"426783006": 1}  # records are counted, not segments
    assert check_shards(tmp_path / "out") == []


def test_the_databases_own_filter_is_applied_unless_another_is_asked_for(
    tmp_path: Path, source: Path, convert_georgia: Convert
) -> None:
    database = load_database("georgia")
    database.highpass_hz = 0.5  # type: ignore[misc]
    filtered = convert(database, source, tmp_path / "filtered", Options())
    plain = convert(database, source, tmp_path / "plain", Options(signal=Policy()))
    assert filtered.options["signal"]["highpass_hz"] == 0.5 and plain.options["signal"]["highpass_hz"] is None
    assert np.abs(filtered.mean_mv).max() < 0.02 < np.abs(plain.mean_mv).max()


def test_a_name_that_no_tar_holds_refuses_the_record(tmp_path: Path, counts_LT: NDArray[np.int16]) -> None:
    member = tar_of(tmp_path / "x.tar", "a" * 92, counts_LT)
    assert len(member) == 100
    with pytest.raises(RecordError, match="100") as caught:
        tar_of(tmp_path / "y.tar", "a" * 93, counts_LT)
    assert caught.value.reason == "name-too-long"


def tar_of(path: Path, key: str, counts_LT: NDArray[np.int16]) -> str:
    """Write a tar of one sample; return the name that the standard library reads from it."""
    with path.open("wb") as file:
        writer = TarWriter(file)
        place = writer.sample(key, counts_LT, {"a": 1})
        writer.end()
    assert writer.sha256.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    with tarfile.open(path) as tar:
        npy, about = tar.getmembers()
    assert about.offset_data == place.json_offset and about.size == place.json_bytes
    raw = path.read_bytes()
    np.testing.assert_array_equal(
        np.frombuffer(raw, "<i2", counts_LT.size, place.offset).reshape(counts_LT.shape), counts_LT
    )
    return npy.name
