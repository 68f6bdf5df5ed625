"""The cohorts of the CinC Challenge 2021: what is found, what is read, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfm.databases._challenge2021 import COHORTS, Challenge2021
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING, Record
from ecgfm.signal.canonical import Canonical, Policy, Segment, canonical

Write = Callable[..., Path]
GAIN_RULE = "gain-2000000-is-1000"


def read_only(name: str, root: Path, mend: tuple[str, ...] = ()) -> Record:
    database = load_database(name, mend=mend)
    (ref,) = database.refs(root)
    return database.read(ref)


def in_canonical_form(record: Record) -> Segment:
    """Return the one segment that the writer makes of a short record."""
    return canonical_form(record).segments[0]


def canonical_form(record: Record) -> Canonical:
    return canonical(record, Policy())


@pytest.mark.parametrize(
    ("name", "cohort", "count"),
    [("georgia", "georgia", 10), ("ningbo", "ningbo", 10), ("ptb", "ptb", 1), ("challenge-ptb-xl", "ptb-xl", 5)],
)
def test_any_folder_above_the_records_will_do(ecg_data: Path, name: str, cohort: str, count: int) -> None:
    database = load_database(name)
    top = ecg_data / "challenge-2021"
    for root in (top, top / "training", top / "training" / cohort, top / "training" / cohort / "g1"):
        records = [ref.record for ref in database.refs(root)]
        assert len(records) == len(set(records)) == count


@pytest.mark.parametrize("name", ["georgia", "ningbo", "ptb", "challenge-ptb-xl"])
def test_signals_are_those_of_wfdb(ecg_data: Path, name: str) -> None:
    database = load_database(name)
    for ref in database.refs(ecg_data / "challenge-2021"):
        record = database.read(ref)
        theirs = wfdb.rdrecord(str(ref.path.with_suffix("")), physical=False)
        np.testing.assert_array_equal(record.counts_LT, theirs.d_signal.T)
        np.testing.assert_allclose(record.microvolt_per_count, 1e3 / np.array(theirs.adc_gain), rtol=1e-15)
        assert record.offset_counts.tolist() == theirs.baseline
        assert record.leads == tuple(theirs.sig_name) == LEADS
        assert (record.rate_hz, record.patient, record.database) == (theirs.fs, None, name)


def test_fields_of_a_real_record(ecg_data: Path) -> None:
    database = load_database("georgia")
    ref = next(ref for ref in database.refs(ecg_data / "challenge-2021") if ref.record == "E07500")
    record = database.read(ref)
    assert (record.age, record.sex, record.mended) == (78.0, "male", ())
    assert record.labels == {"snomed": ("67741000119109", "426177001")}


@pytest.mark.parametrize(("name", "count"), [("georgia", 10), ("ningbo", 10), ("challenge-ptb-xl", 5)])
def test_an_older_header_gives_the_same_record(ecg_data: Path, tmp_path: Path, name: str, count: int) -> None:
    database = load_database(name)
    for ref in database.refs(ecg_data / "challenge-2021"):
        shutil.copy(ecg_data / "challenge-2021/headers-2020" / ref.path.name, tmp_path)
        shutil.copy(ref.path.with_suffix(".mat"), tmp_path)
    newer = {ref.record: database.read(ref) for ref in database.refs(ecg_data / "challenge-2021")}
    older = {ref.record: database.read(ref) for ref in database.refs(tmp_path)}
    assert newer.keys() == older.keys() and len(newer) == count
    for record, new in newer.items():
        old = older[record]
        np.testing.assert_array_equal(old.counts_LT, new.counts_LT)
        np.testing.assert_array_equal(old.microvolt_per_count, new.microvolt_per_count)
        np.testing.assert_array_equal(old.offset_counts, new.offset_counts)
        assert (old.leads, old.age, old.sex) == (new.leads, new.age, new.sex)
        # The older list of JS20005 holds an empty entry; in JS20006 a code was revised between the two.
        if record != "JS20006":
            assert old.labels == new.labels


@pytest.mark.parametrize(
    ("comments", "age", "sex", "labels"),
    [
        (("#Age: 81", "#Sex: female", "#Dx: 1,2"), 81.0, "female", ("1", "2")),
        (("# Age: NaN", "# Sex: F", "# Dx: 1,"), None, "female", ("1",)),
        (("# Age: -1", "# Sex: MALE", "# Dx: 2,,1, 2"), None, "male", ("2", "1")),
        (("# Age: Unknown", "# Sex: Unknown", "# Dx: Unknown"), None, None, ()),
        (("# Age: 0.5", "# Sex: NaN", "# Dx:"), 0.5, None, ()),
        ((), None, None, None),
    ],
)
def test_comments_are_read_as_they_are_written(
    tmp_path: Path,
    write_challenge: Write,
    comments: tuple[str, ...],
    age: float | None,
    sex: str | None,
    labels: tuple[str, ...] | None,
) -> None:
    write_challenge(tmp_path, "E00001", np.zeros((12, 10), np.int16), comments=comments)
    record = read_only("georgia", tmp_path)
    assert (record.age, record.sex) == (age, sex)
    assert record.labels == ({} if labels is None else {"snomed": labels})


@pytest.mark.parametrize(
    ("name", "stranger", "words"),
    [
        ("georgia", "JS20000", "ningbo.*convert it as ningbo"),
        ("georgia", "HR00001", "convert it as challenge-ptb-xl"),
        ("challenge-ptb-xl", "S0001", "convert it as ptb$"),
        ("ptb", "E00001", "convert it as georgia"),
        ("ningbo", "JS10646", "chapman_shaoxing.*convert it as chapman-shaoxing"),
        ("chapman-shaoxing", "JS10647", "convert it as ningbo"),
        ("ningbo", "A0001", "convert it as cpsc-2018$"),
        ("cpsc-2018", "Q0001", "cpsc_2018_extra.*convert it as cpsc-extra"),
        ("cpsc-extra", "A0001", "convert it as cpsc-2018$"),
        ("ptb", "I0001", "convert it as st-petersburg-incart"),
        ("georgia", "00001_lr", "not a record of the PhysioNet/CinC Challenge 2021"),
    ],
)
def test_a_record_of_another_cohort_is_refused_by_its_name(
    tmp_path: Path, write_challenge: Write, name: str, stranger: str, words: str
) -> None:
    write_challenge(tmp_path, stranger, np.zeros((12, 10), np.int16))
    with pytest.raises(DatabaseError, match=words) as caught:
        list(load_database(name).refs(tmp_path))
    assert stranger in str(caught.value)


def test_every_cohort_has_the_reader_that_refusals_name() -> None:
    for cohort in COHORTS:
        database = load_database(cohort.database)
        assert isinstance(database, Challenge2021) and database.cohort == cohort.folder
        assert database.download is not None and database.download.files == (f"training/{cohort.folder}/*",)
    assert len({cohort.database for cohort in COHORTS}) == len(COHORTS) == 8


@pytest.mark.parametrize(
    ("name", "folder", "source", "numbers"),
    [
        ("chapman-shaoxing", "chapman_shaoxing", "ningbo", "JS00001 JS00002 JS00004 JS10646"),
        ("cpsc-2018", "cpsc_2018", "georgia", "A0001 A0002 A6876 A6877"),
        ("cpsc-extra", "cpsc_2018_extra", "georgia", "Q0001 Q0003 Q0400 Q3581"),
    ],
)
def test_a_cohort_without_a_sample_is_read_from_its_layout(
    ecg_data: Path, tmp_path: Path, write_challenge: Write, name: str, folder: str, source: str, numbers: str
) -> None:
    # No file of these cohorts is at hand: signals of another cohort under their folder, group and record names,
    # cut to the lengths between which the records of CPSC lie.
    paths = sorted((ecg_data / "challenge-2021/training" / source / "g1").glob("*.hea"))
    written = {}
    for place, (path, record) in enumerate(zip(paths, numbers.split(), strict=False)):
        counts_LT = wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal.T.astype(np.int16)
        counts_LT = np.tile(counts_LT, 15)[:, : (5000, 4000, 49_000, 72_000)[place]]
        write_challenge(tmp_path / "training" / folder / f"g{place + 1}", record, counts_LT)
        written[record] = counts_LT
    database = load_database(name)
    refs = list(database.refs(tmp_path))
    assert [ref.record for ref in refs] == list(written)
    for ref in refs:
        record_read = database.read(ref)
        np.testing.assert_array_equal(record_read.counts_LT, written[ref.record])
        assert (record_read.database, record_read.rate_hz, record_read.patient) == (name, 500.0, None)
        assert record_read.leads == database.native_leads and record_read.rate_hz in database.native_rates_hz


@pytest.mark.parametrize("name", ["georgia", "ningbo", "ptb", "challenge-ptb-xl"])
def test_facts_are_those_of_the_files(ecg_data: Path, name: str) -> None:
    database = load_database(name)
    for ref in database.refs(ecg_data / "challenge-2021"):
        theirs = wfdb.rdheader(str(ref.path.with_suffix("")))
        assert theirs.fs in database.native_rates_hz and tuple(theirs.sig_name) == database.native_leads
        assert set(theirs.units) == {database.native_unit}


def test_a_record_that_is_there_twice_is_found_twice(tmp_path: Path, write_challenge: Write) -> None:
    for group in ("g1", "g2"):
        write_challenge(tmp_path / group, "E00001", np.zeros((12, 10), np.int16))
    assert [ref.record for ref in load_database("georgia").refs(tmp_path)] == ["E00001", "E00001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root, to whom nothing is closed")
def test_a_closed_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "georgia").mkdir(mode=0)
    with pytest.raises(DatabaseError, match="georgia cannot be listed"):
        list(load_database("georgia").refs(tmp_path))


def test_the_gain_rule_makes_the_record_that_ptb_itself_publishes(ecg_data: Path) -> None:
    record = read_only("ptb", ecg_data / "challenge-2021", mend=(GAIN_RULE,))
    assert record.mended == (GAIN_RULE,)
    signal_LT = record.counts_LT * record.microvolt_per_count[:, None] * 1e-3
    theirs = wfdb.rdrecord(str(ecg_data / "ptbdb/s0010_re"), channels=list(range(12)))
    assert [name.lower() for name in record.leads] == theirs.sig_name
    for ours, published in zip(signal_LT, theirs.p_signal.T, strict=True):
        assert np.corrcoef(ours, published)[0, 1] > 0.9999
    # The Challenge halved the counts of 0.5 microvolt and rounded, so both agree within half a microvolt.
    np.testing.assert_allclose(signal_LT, theirs.p_signal.T, rtol=0, atol=0.5e-3 + 1e-9)


def test_the_gain_rule_is_off_unless_asked_for_and_the_refusal_names_it(ecg_data: Path) -> None:
    record = read_only("ptb", ecg_data / "challenge-2021")
    assert record.mended == ()
    with pytest.raises(RecordError) as caught:
        in_canonical_form(record)
    assert caught.value.reason == "implausible-amplitude"
    assert f"--mend {GAIN_RULE}" in load_database("ptb").hint(caught.value.reason)
    assert load_database("ptb", mend=(GAIN_RULE,)).hint(caught.value.reason) == ""


def test_the_gain_rule_leaves_right_gains_alone(
    tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]
) -> None:
    write_challenge(tmp_path, "S0002", counts_LT)
    record = read_only("ptb", tmp_path, mend=(GAIN_RULE,))
    assert record.mended == () and (record.microvolt_per_count == 1.0).all()


@pytest.mark.parametrize("name", [cohort.database for cohort in COHORTS if cohort.database != "ptb"])
def test_the_gain_rule_is_ptbs_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=GAIN_RULE):
        load_database(name, mend=(GAIN_RULE,))


def test_a_good_record_keeps_its_counts_to_the_shard(
    tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]
) -> None:
    write_challenge(tmp_path, "E00001", counts_LT)
    form = in_canonical_form(read_only("georgia", tmp_path))
    np.testing.assert_array_equal(form.counts_LT, counts_LT)
    assert form.microvolt_per_count == 1.0


def blank(counts_LT: NDArray[np.int16]) -> None:
    counts_LT[7] = MISSING


def drop_samples(counts_LT: NDArray[np.int16]) -> None:
    counts_LT[7, 100:160] = MISSING


@pytest.mark.parametrize(
    ("spoil", "reason", "words"),
    [
        (blank, "samples-missing", r"5,000 samples in a row \(10 s\) are missing in V2"),
        (drop_samples, "samples-missing", r"60 samples in a row \(0\.12 s\) are missing in V2"),
    ],
)
def test_a_spoilt_lead_is_refused_by_name(
    tmp_path: Path,
    write_challenge: Write,
    counts_LT: NDArray[np.int16],
    spoil: Callable[[NDArray[np.int16]], None],
    reason: str,
    words: str,
) -> None:
    spoil(counts_LT)
    write_challenge(tmp_path, "E00001", counts_LT)
    with pytest.raises(RecordError, match=words) as caught:
        in_canonical_form(read_only("georgia", tmp_path))
    assert caught.value.reason == reason


def test_a_flat_lead_is_kept_and_named(tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]) -> None:
    counts_LT[7] = 12
    write_challenge(tmp_path, "E00001", counts_LT)
    assert in_canonical_form(read_only("georgia", tmp_path)).flags["flat-lead"] == ("V2",)


def test_a_missing_chest_lead_is_refused_and_a_missing_limb_lead_derived(
    tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]
) -> None:
    write_challenge(tmp_path / "a", "E00001", counts_LT[:11], leads=LEADS[:11])
    with pytest.raises(RecordError, match="V6") as caught:
        in_canonical_form(read_only("georgia", tmp_path / "a"))
    assert caught.value.reason == "lead-missing"
    kept = [index for index, lead in enumerate(LEADS) if lead != "III"]
    write_challenge(tmp_path / "b", "E00001", counts_LT[kept], leads=tuple(LEADS[index] for index in kept))
    whole = canonical_form(read_only("georgia", tmp_path / "b"))
    (form,) = whole.segments
    expected_mv = (counts_LT[1].astype(float) - counts_LT[0]) * 1e-3
    np.testing.assert_allclose(form.counts_LT[2] * form.microvolt_per_count * 1e-3, expected_mv, atol=0.5e-3)
    assert whole.derived == ("III",)


@pytest.mark.parametrize(
    ("gain", "reason"),
    [
        ("2000000/mV", "implausible-amplitude"),
        ("1/mV", "implausible-amplitude"),
        ("1000.0(0)/mmHg", "unit-unknown"),
        ("0/mV", "header-malformed"),
    ],
)
def test_a_gain_that_cannot_be_is_refused(
    tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16], gain: str, reason: str
) -> None:
    write_challenge(tmp_path, "E00001", counts_LT, gain=gain)
    with pytest.raises(RecordError) as caught:
        in_canonical_form(read_only("georgia", tmp_path))
    assert caught.value.reason == reason
