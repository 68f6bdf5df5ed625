"""The synthetic database's files: read alike by wfdb and by the reader, the same in any order and process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgfm.databases._synthetic_record import MORPHOLOGIES, RHYTHMS, synthesise
from ecgfm.databases.base import load_database
from ecgfm.databases.synthetic import INDEX, MARKER, write
from ecgfm.errors import ConfigError, DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.signal.canonical import Policy, canonical

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of 120 records of seed 3."""
    out = tmp_path_factory.mktemp("synthetic")
    write(out, records=120, seed=3)
    return out


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_wfdb_reads_what_was_made(database: Path) -> None:
    for index in (0, 17, 119):
        counts_LT, source = synthesise(3, index)
        name = str(database / f"records/00000/syn{index:08d}")
        digital = wfdb.rdrecord(name, physical=False)
        np.testing.assert_array_equal(digital.d_signal.T, counts_LT)
        # A count is a microvolt; wfdb divides by the gain in float64.
        np.testing.assert_allclose(wfdb.rdrecord(name).p_signal.T, counts_LT * 1e-3, rtol=0, atol=1e-12)
        assert tuple(digital.sig_name) == LEADS and set(digital.units) == {"mV"} and digital.fs == 500
        assert digital.init_value == counts_LT[:, 0].tolist()
        assert [sum(row) % 65536 for row in counts_LT.tolist()] == digital.checksum
        assert f"Patient: p{source.patient.number:06d}" in digital.comments


def test_reader_gives_what_was_made(database: Path) -> None:
    reader = load_database("synthetic")
    refs = list(reader.refs(database))
    assert [ref.record for ref in refs] == [f"syn{index:08d}" for index in range(120)]
    for index in (5, 64):
        record = reader.read(refs[index])
        counts_LT, source = synthesise(3, index)
        np.testing.assert_array_equal(record.counts_LT, counts_LT)
        assert (record.leads, record.rate_hz, record.database) == (LEADS, 500.0, "synthetic")
        assert (record.microvolt_per_count == 1).all() and (record.offset_counts == 0).all()
        assert (record.age, record.sex) == (source.patient.age, source.patient.sex)
        assert record.patient == f"p{source.patient.number:06d}"
        assert record.labels == {"synthetic": source.labels}


def test_every_record_has_one_rhythm_one_morphology_and_passes_the_conversion_bit_for_bit(database: Path) -> None:
    reader = load_database("synthetic")
    for ref in reader.refs(database):
        record = reader.read(ref)
        rhythm, morphology = record.labels["synthetic"]
        assert rhythm in RHYTHMS and morphology in MORPHOLOGIES
        form = canonical(record, Policy())
        (kept,) = form.segments
        assert kept.microvolt_per_count == 1 and not form.derived and kept.flags.keys() <= {"powerline"}
        np.testing.assert_array_equal(kept.counts_LT, record.counts_LT)


def test_a_database_written_in_parts_out_of_order_by_two_processes_has_the_same_bytes(
    database: Path, tmp_path: Path
) -> None:
    write(tmp_path / "new", records=115, first=5, seed=3, workers=2)
    write(tmp_path / "new", records=30, seed=3)
    assert content(tmp_path / "new") == content(database)


def test_a_second_call_writes_only_what_is_missing(database: Path, tmp_path: Path) -> None:
    write(tmp_path, records=4, seed=3)
    kept = tmp_path / "records/00000/syn00000001.hea"
    before = kept.stat().st_mtime_ns
    (tmp_path / "records/00000/syn00000002.hea").unlink()
    seen: list[tuple[int, int]] = []
    write(tmp_path, records=4, seed=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)] and kept.stat().st_mtime_ns == before
    expected = {name: data for name, data in content(database).items() if name in content(tmp_path)}
    assert {**content(tmp_path), INDEX: expected[INDEX]} == expected
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_seed_gives_another_database(database: Path, tmp_path: Path) -> None:
    write(tmp_path, records=3, seed=4)
    name = "records/00000/syn00000000.dat"
    assert content(tmp_path)[name] != content(database)[name]


def test_the_marker_says_that_it_is_synthetic_and_how_it_was_made(database: Path) -> None:
    text = (database / MARKER).read_text()
    assert "not recordings of people" in text and "seed: 3\n" in text


@pytest.mark.parametrize("change", [{"seed": 4}, {"rate_hz": 250.0}, {"seconds": 20.0}])
def test_settings_are_not_mixed_in_one_folder(tmp_path: Path, change: dict[str, float]) -> None:
    write(tmp_path, records=1, seed=3)
    with pytest.raises(DatabaseError, match=f"{next(iter(change))}: .* wanted"):
        write(tmp_path, records=2, **{"seed": 3, **change})  # type: ignore[arg-type]


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(DatabaseError, match="not empty"):
        write(tmp_path, records=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"records": 0}, "--records"),
        ({"records": 1, "first": -1}, "--first"),
        ({"records": 1, "rate_hz": 5.0}, "--rate-hz"),
        ({"records": 1, "seconds": 1.0}, "--seconds"),
        ({"records": 1, "workers": 0}, "--workers"),
        ({"records": 10**8, "first": 1}, "--first"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(tmp_path: Path, wrong: dict[str, int], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        write(tmp_path / "new", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_foreign_or_unfinished_folder_is_refused_by_the_reader(tmp_path: Path) -> None:
    reader = load_database("synthetic")
    with pytest.raises(DatabaseError, match="does not exist"):
        list(reader.refs(tmp_path / "nothing"))
    with pytest.raises(DatabaseError, match="no file SYNTHETIC"):
        list(reader.refs(tmp_path))
    write(tmp_path, records=2)
    (tmp_path / INDEX).write_text("records/00000/../../secret\n")
    with pytest.raises(DatabaseError, match="line 1"):
        list(reader.refs(tmp_path))
    (tmp_path / INDEX).unlink()
    with pytest.raises(DatabaseError, match="stopped"):
        list(reader.refs(tmp_path))


def test_a_changed_sample_is_found_by_the_checksum(tmp_path: Path) -> None:
    write(tmp_path, records=1)
    path = tmp_path / "records/00000/syn00000000.dat"
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes(data)
    reader = load_database("synthetic")
    with pytest.raises(RecordError, match="checksum"):
        reader.read(next(iter(reader.refs(tmp_path))))


def test_the_commands_make_a_database_that_converts_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def call(*words: str | Path) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, ROOT / words[0], *words[1:])
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    made = call("tools/synthesise.py", tmp_path / "wfdb", "--records", "23", "--seed", "5")
    assert made.returncode == 0 and "23 recordings written" in made.stdout, made.stderr
    again = call("tools/synthesise.py", tmp_path / "wfdb", "--records", "23", "--seed", "6")
    assert again.returncode == 1 and again.stderr.startswith("error: ") and "Traceback" not in again.stderr
    converted = call("tools/convert.py", "synthetic", tmp_path / "wfdb", tmp_path / "shards", "--workers", "1")
    assert converted.returncode == 0, converted.stderr
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert manifest["kept"] == manifest["seen"] == 23 and manifest["licence"] == "CC0-1.0"
