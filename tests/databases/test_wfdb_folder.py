"""An archive of one's own in WFDB format: real recordings in every signal format, and a table with every slip.

The recordings are those of published databases, read as if they were somebody's own, or written again in formats that
none of them uses (the packing is done here, by hand).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef
from ecgfm.shards.writer import Options, convert

Write = Callable[..., Path]
Counts = NDArray[np.int64]
BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "310": 10, "311": 10, "508": 8, "516": 16, "524": 24}


def refs_of(root: Path) -> dict[str, RecordRef]:
    return {ref.record: ref for ref in load_database("wfdb-folder").refs(root)}


def read(root: Path, name: str) -> Record:
    database = load_database("wfdb-folder")
    return database.read(next(ref for ref in database.refs(root) if ref.record == name))


def millivolt(record: Record) -> NDArray[np.float64]:
    signal_LT = (record.counts_LT - record.offset_counts[:, None]) * record.microvolt_per_count[:, None] * 1e-3
    if record.counts_LT.dtype == np.int16:
        signal_LT[record.counts_LT == -32768] = np.nan
    return np.asarray(signal_LT)


@pytest.fixture(scope="module")
def real_LT(ecg_data: Path) -> Counts:
    """Return the counts of a recording of LUDB, 12 x 5000, one microvolt each."""
    return np.asarray(wfdb.rdrecord(str(ecg_data / "ludb/data/8"), physical=False).d_signal.T, dtype=np.int64)


def packed(fmt: str, counts_LT: Counts) -> bytes:
    """Return the bytes of a signal file; the samples of all signals follow each other."""
    samples = counts_LT.T.reshape(-1)
    if fmt == "8":
        return bytes(np.diff(counts_LT, axis=1, prepend=counts_LT[:, :1]).T.astype(np.int8).tobytes())
    if fmt == "24":
        return samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    if fmt in ("310", "311"):
        one, two, three = (samples.reshape(-1, 3) & 0x3FF).T
        if fmt == "311":
            return bytes((one | two << 10 | three << 20).astype("<u4").tobytes())
        low, high = one << 1 | (three & 0x1F) << 11, two << 1 | three >> 5 << 11
        return np.stack([low, high], axis=1).astype("<u2").tobytes()
    return bytes(samples.astype({"16": "<i2", "61": ">i2", "32": "<i4"}[fmt]).tobytes())


def write_record(
    folder: Path,
    name: str,
    counts_LT: Counts,
    *,
    fmt: str = "16",
    gain: str = "1000(0)/mV",
    comments: tuple[str, ...] = (),
    leads: tuple[str, ...] = LEADS,
) -> Path:
    """Write a record in any format, FLAC in two files of six leads by wfdb; return the header."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(leads) // 2
    files = [f"{name}.dat"] * len(leads)
    if fmt.startswith("5"):
        files = [f"{name}a.dat"] * half + [f"{name}b.dat"] * (len(leads) - half)
        for part, rows in (("a", slice(0, half)), ("b", slice(half, None))):
            wfdb.wrsamp(
                name + part, 500, ["mV"] * half, list(leads[rows]), d_signal=counts_LT[rows].T.copy(),
                fmt=[fmt] * half, adc_gain=[1000.0] * half, baseline=[0] * half, write_dir=str(folder),
            )  # fmt: skip
            (folder / f"{name}{part}.hea").unlink()
    else:
        (folder / files[0]).write_bytes(packed(fmt, counts_LT))
    lines = [f"{name} {len(leads)} 500 {counts_LT.shape[1]}"]
    for file, lead, row in zip(files, leads, counts_LT, strict=True):
        lines.append(f"{file} {fmt} {gain} 16 0 {row[0]} {sum(row.tolist()) % 65536} 0 {lead}")
    path = folder / f"{name}.hea"
    path.write_text("\n".join([*lines, *comments]) + "\n")
    return path


@pytest.mark.parametrize("folder", ["ludb", "ptb-xl", "challenge-2021/training"])
def test_millivolts_of_published_trees_are_those_of_wfdb(ecg_data: Path, folder: str) -> None:
    database = load_database("wfdb-folder")
    refs = sorted(database.refs(ecg_data / folder), key=lambda ref: ref.record)[::8]
    assert refs
    for ref in refs:
        record, theirs = database.read(ref), wfdb.rdrecord(str(ref.path.with_suffix("")))
        assert (record.leads, record.rate_hz) == (tuple(theirs.sig_name), theirs.fs)
        np.testing.assert_allclose(millivolt(record), theirs.p_signal.T, rtol=0, atol=1e-9)


def test_comments_are_read_as_the_challenge_writes_them(ecg_data: Path) -> None:
    georgia = ecg_data / "challenge-2021/training/georgia"
    ours = read(georgia, "E07500")
    assert (ours.age, ours.sex, ours.patient) == (78.0, "male", None)
    assert ours.labels == {"snomed": ("67741000119109", "426177001")}


@pytest.mark.parametrize(
    ("comment", "labels"),
    [
        ("# Dx: 426783006,,426783006,", {"snomed": ("426783006",)}),
        ("#Dx: 426783006,AF", {"dx": ("426783006", "AF")}),
        ("# Dx: Unknown", {}),
        ("# Dx:", {}),
        ("# none of these", {}),
    ],
)
def test_only_codes_of_snomed_are_called_so(
    tmp_path: Path, real_LT: Counts, comment: str, labels: dict[str, tuple[str, ...]]
) -> None:
    write_record(tmp_path, "a", real_LT, comments=(comment,))
    assert read(tmp_path, "a").labels == labels


def test_frank_leads_in_a_file_that_is_not_there_refuse_nothing(ecg_data: Path) -> None:
    record = read(ecg_data / "ptbdb", "s0015lre")
    assert len(record.leads) == 12 and record.rate_hz == 1000


def test_signals_that_are_no_voltage_refuse_no_ecg(tmp_path: Path, real_LT: Counts) -> None:
    path = write_record(tmp_path, "a", np.vstack([real_LT[:1], real_LT]), leads=("ABP", *LEADS))
    path.write_text(path.read_text().replace("1000(0)/mV", "10(0)/mmHg", 1))
    record = read(tmp_path, "a")
    assert record.leads == LEADS and record.counts_LT.flags.c_contiguous
    np.testing.assert_array_equal(record.counts_LT, real_LT)


# Formats of 8 and 10 bits hold the recording only when it is written coarser.
@pytest.mark.parametrize(("fmt", "bits"), BITS.items())
def test_every_format_gives_the_same_recording(tmp_path: Path, real_LT: Counts, fmt: str, bits: int) -> None:
    # Format 8 holds the differences.
    largest = np.abs(np.diff(real_LT) if fmt == "8" else real_LT).max()
    counts_LT = real_LT // (1 + largest // (2 ** (bits - 1) - 2))
    assert np.ptp(counts_LT) > 30
    write_record(tmp_path, "a", counts_LT, fmt=fmt, gain="250(3)/mV")
    record = read(tmp_path, "a")
    assert record.counts_LT.dtype == np.int16  # they fit
    np.testing.assert_allclose(millivolt(record), (counts_LT - 3) / 250, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("fmt", "factor", "dtype"), [("24", 2000, np.float32), ("32", 100_000, np.float64)])
def test_counts_beyond_int16_become_floats_without_loss(
    tmp_path: Path, real_LT: Counts, fmt: str, factor: int, dtype: type
) -> None:
    counts_LT = real_LT * factor + 12_345
    assert 2**15 < np.abs(counts_LT).max() < 2 ** (int(fmt) - 1)
    counts_LT[2, 100:120] = -(2 ** (int(fmt) - 1))
    write_record(tmp_path, "a", counts_LT, fmt=fmt, gain=f"{1000 * factor}(12345)/mV")
    record = read(tmp_path, "a")
    assert record.counts_LT.dtype == dtype and record.counts_LT.flags.c_contiguous
    expected_LT = real_LT * 1e-3
    expected_LT[2, 100:120] = np.nan
    np.testing.assert_allclose(millivolt(record), expected_LT, rtol=0, atol=1e-9)
    assert not record.offset_counts.any()


@pytest.mark.parametrize(("fmt", "invalid"), [("24", -(2**23)), ("61", -(2**15)), ("311", -(2**9)), ("516", -(2**15))])
def test_the_mark_for_no_sample_is_none(tmp_path: Path, real_LT: Counts, fmt: str, invalid: int) -> None:
    counts_LT = real_LT // 8
    counts_LT[7, 40:60] = invalid
    write_record(tmp_path, "a", counts_LT, fmt=fmt)
    missing_LT = np.isnan(millivolt(read(tmp_path, "a")))
    assert missing_LT.sum() == 20 and missing_LT[7, 40:60].all()


@pytest.mark.parametrize("fmt", ["8", "24", "32", "61", "310", "311", "508", "516", "524"])
def test_a_file_cut_short_is_refused(tmp_path: Path, real_LT: Counts, fmt: str) -> None:
    path = write_record(tmp_path, "a", real_LT // 64, fmt=fmt)
    signal = tmp_path / ("aa.dat" if fmt.startswith("5") else "a.dat")
    signal.write_bytes(signal.read_bytes()[:-2000])
    with pytest.raises(RecordError, match=path.name) as caught:
        read(tmp_path, "a")
    assert caught.value.reason in ("truncated", "signal-unreadable", "header-signal-disagree")


@pytest.mark.parametrize("fmt", ["8", "24", "311"])
def test_a_header_that_announces_terabytes_is_refused_before_memory_is_asked_for(
    tmp_path: Path, real_LT: Counts, fmt: str
) -> None:
    path = write_record(tmp_path, "a", real_LT // 64, fmt=fmt)
    path.write_text(path.read_text().replace(" 500 ", " 500 10000000", 1))
    with pytest.raises(
        RecordError, match=r"a\.hea announces 100,000,00\d,\d00 samples of 12 signals in a\.dat"
    ) as caught:
        read(tmp_path, "a")
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("fmt", ["24", "516"])
def test_a_changed_sample_is_noticed_by_the_checksum(tmp_path: Path, real_LT: Counts, fmt: str) -> None:
    path = write_record(tmp_path, "a", real_LT, fmt=fmt)
    changed_LT = real_LT.copy()
    changed_LT[3, 2000] += 1
    header = path.read_text()
    write_record(tmp_path, "a", changed_LT, fmt=fmt)
    path.write_text(header)
    with pytest.raises(RecordError, match="checksum of aVR") as caught:
        read(tmp_path, "a")
    assert caught.value.reason == "header-signal-disagree"


def test_a_format_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path, real_LT: Counts) -> None:
    path = write_record(tmp_path, "a", real_LT)
    path.write_text(path.read_text().replace(".dat 16 ", ".dat 999 "))
    with pytest.raises(RecordError, match=r"999.*516") as caught:
        read(tmp_path, "a")
    assert caught.value.reason == "header-malformed"


def test_a_missing_signal_file_is_refused_with_its_path(tmp_path: Path, real_LT: Counts) -> None:
    write_record(tmp_path, "a", real_LT, fmt="24")
    (tmp_path / "a.dat").unlink()
    with pytest.raises(RecordError, match=r"a\.dat does not exist") as caught:
        read(tmp_path, "a")
    assert caught.value.reason == "file-missing"


def test_segments_are_records_and_the_header_that_joins_them_is_refused(tmp_path: Path, real_LT: Counts) -> None:
    write_record(tmp_path, "a_0001", real_LT)
    write_record(tmp_path, "a_0002", real_LT)
    (tmp_path / "a.hea").write_text("a/2 12 500 10000\na_0001 5000\na_0002 5000\n")
    assert set(refs_of(tmp_path)) == {"a", "a_0001", "a_0002"}
    with pytest.raises(RecordError, match="segments' own records"):
        read(tmp_path, "a")
    assert read(tmp_path, "a_0002").counts_LT.shape == (12, 5000)


def test_a_header_that_does_not_say_the_gain_is_refused(tmp_path: Path, real_LT: Counts) -> None:
    write_record(tmp_path, "a", real_LT, gain="0/mV")
    with pytest.raises(RecordError, match="never guessed"):
        read(tmp_path, "a")


def test_bare_names_are_kept_until_two_are_the_same(tmp_path: Path, real_LT: Counts) -> None:
    write_record(tmp_path / "one", "a", real_LT)
    write_record(tmp_path / "two", "b", real_LT)
    assert set(refs_of(tmp_path)) == {"a", "b"}
    write_record(tmp_path / "two", "a", real_LT)
    assert set(refs_of(tmp_path)) == {"one/a", "two/a", "two/b"}


@pytest.fixture
def archive(tmp_path: Path, real_LT: Counts) -> Path:
    """Return a folder of four records, two of one name."""
    comments = ("# Age: 50", "# Sex: Male", "# Dx: 426783006")
    for place, name, shift in (("w1", "a", 0), ("w1", "b", 700), ("w2", "a", 1400), ("w2", "c", 2100)):
        write_record(tmp_path / "source" / place, name, np.roll(real_LT, shift, axis=1), comments=comments)
    return tmp_path / "source"


FULL = """\
record,patient,age,sex,split,fold,labels:snomed,labels:rhythm
w1/a,p1,63,F,train,1,426177001; 164889003,sinus
b,p1,,,val,2,,none
w2/a,p2,0.5,female,test,3,,
c,,90,M,all,,none,sinus;pause
"""


def test_the_table_wins_over_comments_and_an_empty_cell_leaves_them(archive: Path) -> None:
    (archive / "records.csv").write_text(FULL)
    found = {name: read(archive, name) for name in refs_of(archive)}
    one, two, three, four = (found[name] for name in ("w1/a", "w1/b", "w2/a", "w2/c"))
    assert (one.patient, one.age, one.sex, one.fold) == ("p1", 63.0, "female", 1)
    assert one.labels == {"snomed": ("426177001", "164889003"), "rhythm": ("sinus",)}
    # None of the codes is not the same as not labelled.
    assert (two.age, two.sex, two.labels) == (50.0, "male", {"snomed": ("426783006",), "rhythm": ()})
    assert (three.age, three.sex, three.labels) == (0.5, "female", {"snomed": ("426783006",)})
    assert (four.patient, four.fold, four.labels) == (None, None, {"snomed": (), "rhythm": ("sinus", "pause")})
    assert {name: ref.split for name, ref in refs_of(archive).items()} == {
        "w1/a": "train", "w1/b": "val", "w2/a": "test", "w2/c": "all"
    }  # fmt: skip


def test_a_record_that_the_table_lacks_is_refused_and_kept_out_of_pretraining(archive: Path) -> None:
    (archive / "records.csv").write_text(FULL.replace("b,p1,,,val,2,,none\n", ""))
    ref = refs_of(archive)["w1/b"]
    assert ref.split == "unknown"
    with pytest.raises(RecordError, match=r"records\.csv has no row for w1/b") as caught:
        load_database("wfdb-folder").read(ref)
    assert caught.value.reason == "not-in-table"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("w1/a,p1", "w1/nobody,p1", r"line 2: there is no record 'w1/nobody'.*called as w1/a"),
        ("w1/a,p1", "w1/a.hea,p1", r"line 2: there is no record 'w1/a.hea'.*without .hea"),
        ("w1/a,p1", "a,p1", r"line 2: 'a' is the name of 2 records \(w1/a, w2/a\)"),
        ("b,p1", "w1/a,p1", r"line 3: 'w1/a' has a row already on line 2"),
        ("c,,90", "w1/b,,90", r"line 5: 'w1/b' has a row already on line 3"),
        ("c,,90", ",,90", "line 5: record is empty"),
        (",patient,", ",patients,", r"no column 'patients' \(did you mean patient\?\)"),
        (",patient,", ",heart rate,", r"no column 'heart rate'.*labels:<scheme>"),
        (",patient,", ",fold,", "'fold' is there twice"),
        ("labels:rhythm", "labels:Rhythm", "'labels:Rhythm'.*small letters"),
        ("record,", "name,", "no column 'name'"),
        (",63,", ",1956,", r"line 2: age '1956' is not 0 to 150"),
        (",63,", ",unknown,", "line 2: age 'unknown'.*leave the cell empty"),
        (",63,", ",nan,", "line 2: age 'nan'"),
        (",F,", ",0,", "line 2: sex '0'.*not guessed"),
        ("train", "validation", "line 2: split 'validation' is not one of all, train, val, test"),
        (",train,", ",,", "line 2: split is empty"),
        (",1,4", ",one,4", "line 2: fold 'one' is not a whole number"),
        ("426177001; 164889003", "426177001.0", "line 2: labels:snomed '426177001.0'.*as text"),
        ("sinus;pause", "sinus;none", "line 5: labels:rhythm 'sinus;none'"),
        ("b,p1,,,val,2,,none", "b,p1,,,val,2", "line 3 has 6 cells"),
        ("; 164889003", ", 164889003", "line 2 has 9 cells.*double quotes"),
        (FULL, FULL.replace(",", ";"), "separated by semicolons"),
        (FULL, "", "'record' is missing"),
        ("p2", '"p2', "cannot be read"),
    ],
)
def test_every_slip_in_the_table_is_named_with_its_line(archive: Path, old: str, new: str, message: str) -> None:
    assert old in FULL
    (archive / "records.csv").write_text(FULL.replace(old, new, 1))
    with pytest.raises(DatabaseError, match=f"records.csv.*{message}"):
        refs_of(archive)


def test_tables_as_spreadsheets_save_them_are_read(archive: Path) -> None:
    text = "\ufeff" + FULL.replace("\n", "\r\n").replace("b,p1,,,val,2,", 'b,"p, 1",,,val,2.0,') + "\r\n,,,,,,,\r\n"
    (archive / "records.csv").write_bytes(text.encode())
    record = read(archive, "w1/b")
    assert (record.patient, record.fold) == ("p, 1", 2)
    (archive / "records.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(DatabaseError, match="not UTF-8"):
        refs_of(archive)


def test_facts_of_the_archive_are_its_own_and_not_the_next_ones(archive: Path) -> None:
    about = {"title": "Ward", "licence": "CC0-1.0", "citation": "none", "address": "https://x.org", "version": "2"}
    (archive / "dataset.json").write_text(json.dumps(about))
    database, other = load_database("wfdb-folder"), load_database("wfdb-folder")
    list(database.refs(archive))
    assert {name: getattr(database, name) for name in about} == about
    assert other.title != "Ward" and other.licence == "LicenseRef-unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"titel": "x"}', r"'titel' is not known \(did you mean title\?\)"),
        ('{"rate_hz": 500}', "'rate_hz' is not known"),
        ('{"title": 3}', "title is 3, expected one line of text"),
        ('{"title": "a\\nb"}', "one line of text"),
        ('{"licence": "CC BY 4.0"}', "'CC BY 4.0' is not an SPDX identifier"),
        ("[]", "one object"),
        ("{", "not JSON"),
    ],
)
def test_every_slip_in_the_facts_is_named(archive: Path, text: str, message: str) -> None:
    (archive / "dataset.json").write_text(text)
    with pytest.raises(DatabaseError, match=f"dataset.json.*{message}"):
        refs_of(archive)


def test_an_archive_is_converted_with_its_title_splits_and_refusals(archive: Path, tmp_path: Path) -> None:
    (archive / "records.csv").write_text(FULL.replace("b,p1,,,val,2,,none\n", ""))
    (archive / "dataset.json").write_text('{"title": "Ward three"}')
    manifest = convert(load_database("wfdb-folder"), archive, tmp_path / "shards", Options())
    assert (manifest.title, manifest.seen, manifest.kept) == ("Ward three", 4, 3)
    assert manifest.refused == {"not-in-table": 1}
    assert {shard.split for shard in manifest.shards} == {"train", "test", "all"}
    assert manifest.labels["rhythm"] == {"sinus": 2, "pause": 1}


def test_a_folder_of_links_is_read_once(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/here").symlink_to(archive)
    shutil.copytree(archive / "w1", tmp_path / "linked/copy")
    assert len(refs_of(tmp_path / "linked")) == 6
