"""Fingerprints stay the same in every packaging of a recording, and differ between recordings.

Genuine pairs are few: PTB's record in two packagings, and the two styles of header. The other packagings are made here
from real recordings.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal as scipy_signal

from ecgfm.databases.base import load_database
from ecgfm.errors import LeadError, SignalError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING, Counts, Record
from ecgfm.signal.fingerprint import SAME_BITS, allowed_bits, fingerprint, to_bytes

Floats = NDArray[np.float64]
Packaging = Callable[[Floats], tuple[NDArray[np.int16] | NDArray[np.float32] | Floats, float]]


def bits(text: str) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))


def differ(one: str, other: str) -> int:
    assert one and other
    return int((bits(one) != bits(other)).sum())


def of(record: Record) -> str:
    return fingerprint(record.counts_LT, record.leads, record.microvolt_per_count, record.rate_hz)


@pytest.fixture(scope="module")
def records(ecg_data: Path) -> list[Record]:
    """Return real recordings of four databases, 500 Hz, 10 s."""
    found = []
    challenge = ecg_data / "challenge-2021" / "training"
    for name, folder in {
        "ludb": ecg_data / "ludb",
        "georgia": challenge / "georgia",
        "ningbo": challenge / "ningbo",
        "challenge-ptb-xl": challenge / "ptb-xl",
    }.items():
        database = load_database(name)
        found += [database.read(ref) for ref in database.refs(folder)]
    return found


@pytest.fixture(scope="module")
def some(records: list[Record]) -> list[Record]:
    return records[::4]


def microvolt(record: Record) -> Floats:
    return np.asarray((record.counts_LT - record.offset_counts[:, None]) * record.microvolt_per_count[:, None])


def highpass(signal_LT: Floats) -> Floats:
    sections = scipy_signal.butter(2, 0.5, "high", fs=500, output="sos")
    return np.asarray(scipy_signal.sosfiltfilt(sections, signal_LT, axis=-1))


PACKAGINGS: dict[str, Packaging] = {
    "another gain": lambda x: (x * 0.731, 500.0),
    "halved counts": lambda x: (np.rint(np.rint(x) / 2).astype(np.int16), 500.0),
    "5 microvolt a count": lambda x: (np.rint(x / 5).astype(np.int16), 500.0),
    "float32 in millivolt": lambda x: ((x * 1e-3).astype(np.float32), 500.0),
    "an offset": lambda x: (x + np.linspace(-900, 1500, 12)[:, None], 500.0),
    "100 Hz": lambda x: (scipy_signal.resample_poly(x, 1, 5, axis=-1, padtype="line"), 100.0),
    "400 Hz": lambda x: (scipy_signal.resample_poly(x, 4, 5, axis=-1, padtype="line"), 400.0),
    "257 Hz": lambda x: (scipy_signal.resample_poly(x, 257, 500, axis=-1, padtype="line"), 257.0),
    "1000 Hz": lambda x: (scipy_signal.resample_poly(x, 2, 1, axis=-1, padtype="line"), 1000.0),
    "high-passed": lambda x: (highpass(x), 500.0),
    "50 Hz of 100 microvolt": lambda x: (x + 100 * np.sin(2 * np.pi * 50 * np.arange(x.shape[1]) / 500), 500.0),
}


@pytest.mark.parametrize("name", PACKAGINGS)
def test_another_packaging_is_the_same_recording(some: list[Record], name: str) -> None:
    for record in some:
        counts_LT, rate_hz = PACKAGINGS[name](microvolt(record))
        original = of(record)
        packed = fingerprint(counts_LT, record.leads, np.ones(12), rate_hz)
        assert differ(original, packed) <= allowed_bits(to_bytes([original]))[0], record.record


def test_strangers_differ_in_twice_the_bits_and_more(records: list[Record]) -> None:
    all_bits = np.array([bits(of(record)) for record in records], dtype=np.int64)
    distance = np.array([np.abs(all_bits - row).sum(axis=1) for row in all_bits])
    np.fill_diagonal(distance, 384)
    assert len(records) == 225
    assert distance.min() > 2 * SAME_BITS


def test_ptb_is_known_in_both_packagings(ecg_data: Path) -> None:
    # One read through its database, the other from the bytes of its file: 12 leads of int16, sample by sample.
    challenge = load_database("ptb")
    (ref,) = challenge.refs(ecg_data / "challenge-2021" / "training" / "ptb")
    raw = np.fromfile(ecg_data / "ptbdb" / "s0010_re.dat", dtype="<i2").reshape(-1, 12).T
    names = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
    diagnostic = fingerprint(np.ascontiguousarray(raw), names, np.full(12, 0.5), 1000.0)
    assert differ(of(challenge.read(ref)), diagnostic) <= 3


def test_the_style_of_the_header_changes_nothing(ecg_data: Path, tmp_path: Path) -> None:
    challenge = ecg_data / "challenge-2021"
    database = load_database("georgia")
    older = tmp_path / "georgia"
    older.mkdir()
    for path in (challenge / "training" / "georgia" / "g1").glob("*.mat"):
        (older / path.name).write_bytes(path.read_bytes())
        header = path.with_suffix(".hea").name
        (older / header).write_bytes((challenge / "headers-2020" / header).read_bytes())
    now = {ref.record: of(database.read(ref)) for ref in database.refs(challenge / "training" / "georgia")}
    then = {ref.record: of(database.read(ref)) for ref in database.refs(older)}
    assert now == then and len(now) == 10


def test_lead_order_other_leads_and_spelling_change_nothing(some: list[Record]) -> None:
    order = np.random.default_rng(0).permutation(12)
    for record in some[:10]:
        extra = np.ones((1, record.counts_LT.shape[1]), dtype=np.int16)
        counts_LT = np.concatenate([record.counts_LT[order], extra])
        gains = np.append(record.microvolt_per_count[order], 7.0)
        names = (*(record.leads[i].upper() for i in order), "vx")
        assert fingerprint(counts_LT, names, gains, record.rate_hz) == of(record)


def test_gains_that_differ_between_leads_are_undone(some: list[Record]) -> None:
    # INCART and LUDB have a gain for each lead: the same volts are other counts.
    gains = np.linspace(0.4, 3.0, 12)
    for record in some[:10]:
        signal_LT = microvolt(record)
        assert (
            differ(
                fingerprint(signal_LT / gains[:, None], LEADS, gains, 500.0),
                fingerprint(signal_LT, LEADS, np.ones(12), 500.0),
            )
            <= 1
        )  # rounding in a bit that is a tie


def test_bits_are_those_of_a_slow_version_from_the_description(some: list[Record]) -> None:
    for record in some[:5]:
        for rate_hz in (500.0, 257.0, 360.0):
            assert "".join(map(str, bits(fingerprint(record.counts_LT, LEADS, np.ones(12), rate_hz)))) == "".join(
                slow(record.counts_LT, rate_hz)
            )


def slow(counts_LT: Counts, rate_hz: float) -> list[str]:
    """Return the bits: sample k lasts from (k - 1/2) / rate to (k + 1/2) / rate."""
    i, ii, _, _, _, _, v1, v2, v3, v4, v5, v6 = (row.astype(float) for row in counts_LT)
    found = []
    for lead in (i - ii + v1 - v2 + v3, i + ii + v4 - v5 + v6, i + v1 - v3 + v4 - v6):
        bins = []
        for number in range(125):
            begin, end = number * 0.08, (number + 1) * 0.08
            total = 0.0
            for k in range(math.floor(begin * rate_hz) - 1, math.ceil(end * rate_hz) + 2):
                share_s = min(end, (k + 0.5) / rate_hz) - max(begin, (k - 0.5) / rate_hz)
                if share_s > 0:
                    total += lead[min(k, len(lead) - 1)] * share_s
            bins.append(total)
        change = [bins[k + 3] - 3 * bins[k + 2] + 3 * bins[k + 1] - bins[k] for k in range(122)]
        found += ["1" if value > 1e-9 else "0" for value in change] + ["0"] * 6
    return found


def test_only_the_first_ten_seconds_count(some: list[Record]) -> None:
    one, other = some[0].counts_LT, some[1].counts_LT
    longer = fingerprint(np.concatenate([one, other], axis=1), LEADS, np.ones(12), 500.0)
    again = fingerprint(np.concatenate([one, one[:, ::-1]], axis=1), LEADS, np.ones(12), 500.0)
    assert differ(longer, of(some[0])) <= 3 and differ(longer, again) <= 3  # the half sample at the end
    assert differ(fingerprint(np.roll(one, -500, axis=1), LEADS, np.ones(12), 500.0), of(some[0])) > SAME_BITS


def test_gaps_count_as_the_straight_lines_that_close_them(some: list[Record]) -> None:
    holed = some[0].counts_LT.copy()
    closed = holed.astype(np.float64)
    holed[0, 1000:1400] = holed[7, :60] = MISSING
    as_floats = np.where(holed == MISSING, np.nan, holed.astype(np.float64))
    closed[0, 999:1401] = np.linspace(closed[0, 999], closed[0, 1400], 402)
    closed[7, :60] = closed[7, 60]
    wanted = fingerprint(closed, LEADS, np.ones(12), 500.0)
    for counts_LT in (holed, as_floats):
        assert differ(fingerprint(counts_LT, LEADS, np.ones(12), 500.0), wanted) <= 1
    assert differ(wanted, of(some[0])) > 0


def test_a_signal_that_says_nothing_has_no_fingerprint(some: list[Record]) -> None:
    gains = np.ones(12)
    counts_LT = some[0].counts_LT
    assert fingerprint(np.full((12, 5000), -16000, np.int16), LEADS, gains, 500.0) == ""
    assert fingerprint(np.full((12, 5000), np.nan), LEADS, gains, 500.0) == ""
    assert fingerprint(np.full((12, 5000), 0.1 + 0.2, np.float32), LEADS, gains, 500.0) == ""
    assert fingerprint(counts_LT[:, :2000], LEADS, gains, 500.0) == ""
    assert fingerprint(counts_LT[:, :3], LEADS, gains, 500.0) == "" == fingerprint(counts_LT, LEADS, gains, 5.0)
    assert fingerprint(counts_LT[:, :4000], LEADS, gains, 500.0) != ""


def test_dead_leads_make_no_false_match(records: list[Record]) -> None:
    # Ningbo has records whose V2, V4 and V6 are zero, and lead I may be flat.
    found = []
    for record in records:
        counts_LT = record.counts_LT.copy()
        counts_LT[[0, 7, 9, 11]] = 0
        found.append(bits(fingerprint(counts_LT, LEADS, np.ones(12), 500.0)).astype(np.int64))
    distance = np.array([np.abs(found - row).sum(axis=1) for row in np.array(found)])
    np.fill_diagonal(distance, 384)
    assert distance.min() > SAME_BITS


def test_a_clockwork_rhythm_must_agree_better() -> None:
    time_s = np.arange(5000) / 500
    beat = np.exp(-(((time_s % 0.48) - 0.2) ** 2) / 0.0004)
    weights = np.random.default_rng(1).normal(size=(12, 1))
    clockwork = fingerprint(1000 * weights * beat, LEADS, np.ones(12), 500.0)
    noise = fingerprint(np.random.default_rng(2).normal(size=(12, 5000)), LEADS, np.ones(12), 500.0)
    allowed = allowed_bits(to_bytes([clockwork, noise]))
    assert allowed[0] < SAME_BITS // 2 and allowed[1] == SAME_BITS
    assert allowed_bits(to_bytes([noise]), 7)[0] == 7


def test_a_lead_that_is_missing_or_doubled_is_refused(some: list[Record]) -> None:
    with pytest.raises(LeadError, match="V6 is missing"):
        fingerprint(some[0].counts_LT[:11], LEADS[:11], np.ones(11), 500.0)
    with pytest.raises(LeadError, match="named twice"):
        fingerprint(some[0].counts_LT, (*LEADS[:11], "v5"), np.ones(12), 500.0)


def test_what_is_no_fingerprint_is_refused() -> None:
    assert to_bytes([]).shape == (0, 48)
    for wrong in (["A" * 64, "A" * 63], ["A" * 60 + "AA==", "A" * 64], ["A" * 63 + "*"]):
        with pytest.raises(SignalError, match="convert again"):
            to_bytes(wrong)
