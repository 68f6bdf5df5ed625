"""Millivolts of shards against those of the source, lead by lead and sample by sample, for every public database.

Shards are read with tarfile and numpy.load, sources with wfdb, scipy and h5py: no code of ours reads either. Where no
genuine file of a database is at hand, genuine signals of another are written in its published layout, by those
libraries again.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import wfdb
from numpy.typing import NDArray
from scipy.signal import butter, resample_poly, sosfiltfilt

from ecgfm.databases.base import load_database
from ecgfm.shards.manifest import Manifest
from ecgfm.shards.writer import Options, convert
from ecgfm.signal.canonical import Policy

NAMES = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""Order of the leads in shards, in upper case."""
NATIVE = Policy(rate_hz=None, highpass_hz=None)
ROUNDING = 1e-12
"""Of float64, in mV: the published counts are kept."""
HALF_A_MICROVOLT = 0.5e-3 + 1e-9
Leads = dict[str, NDArray[np.float64]]
"""One recording in mV, by the name of the lead in upper case."""


@dataclass(frozen=True)
class Truth:
    """A recording as another library reads it."""

    leads: Leads
    rate_hz: float


@dataclass(frozen=True)
class Source:
    """A database with what its records are."""

    root: Path
    truths: dict[str, Truth]
    identities_mv: float
    """How well the limb leads of every record fulfil their identities: their rounding, measured on the source."""
    mend: tuple[str, ...] = ()
    atol_mv: float = ROUNDING


def samples(out: Path) -> Iterator[tuple[dict[str, Any], Leads]]:
    """Yield what the shards hold, read without our reader."""
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for npy, about in zip(members[::2], members[1::2], strict=True):
                numbers, text = tar.extractfile(npy), tar.extractfile(about)
                assert numbers is not None and text is not None
                counts_LT = np.load(io.BytesIO(numbers.read()), allow_pickle=False)
                facts = json.load(text)
                assert counts_LT.dtype == np.int16 and len(counts_LT) == 12
                scaled_LT = counts_LT.astype(np.float64) * facts["microvolt_per_count"] / 1000
                yield facts, dict(zip(NAMES, scaled_LT, strict=True))


def refused(out: Path) -> dict[str, str]:
    lines = (out / "refused.jsonl").read_text().splitlines()
    return {line["record"]: line["reason"] for line in map(json.loads, lines)}


def miss_of_identities_mv(leads: Leads) -> float:
    """Return how far the limb leads are from Einthoven's and Goldberger's equations at most."""
    one, two = leads["I"], leads["II"]
    true = {"III": two - one, "AVR": -(one + two) / 2, "AVL": one - two / 2, "AVF": two - one / 2}
    return max(float(np.abs(leads[name] - row).max()) for name, row in true.items())


def with_wfdb(path: Path) -> Truth:
    theirs = wfdb.rdrecord(str(path.with_suffix("")), channels=list(range(12)))
    assert set(theirs.units) <= {"mV", "mv"}
    names = (name.upper() for name in theirs.sig_name)
    return Truth(dict(zip(names, theirs.p_signal.T, strict=True)), theirs.fs)


def wfdb_counts(path: Path, millivolt_per_count: float) -> Truth:
    """Return the plain counts of a record under another gain than its header's."""
    theirs = wfdb.rdrecord(str(path.with_suffix("")), physical=False)
    rows = theirs.d_signal.T * millivolt_per_count
    return Truth(dict(zip((name.upper() for name in theirs.sig_name), rows, strict=True)), theirs.fs)


def headers(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.hea"))


def challenge(cohort: str, identities_mv: float) -> Callable[[Path, Path], Source]:
    def source(data: Path, tmp_path: Path) -> Source:
        paths = headers(data / "challenge-2021/training" / cohort)
        truths = {path.stem: with_wfdb(path) for path in paths}
        return Source(data / "challenge-2021", truths, identities_mv=identities_mv)

    return source


def ptb(data: Path, tmp_path: Path) -> Source:
    (path,) = headers(data / "challenge-2021/training/ptb")
    truth = wfdb_counts(path, 1 / 1000)  # its header says 2000000/mV
    return Source(path.parent, {path.stem: truth}, mend=("gain-2000000-is-1000",), identities_mv=0.002)


def ptb_xl(data: Path, tmp_path: Path) -> Source:
    truths = {path.stem.removesuffix("_lr"): with_wfdb(path) for path in headers(data / "ptb-xl")}
    return Source(data / "ptb-xl", truths, identities_mv=0.0015)


def ptb_diagnostic(data: Path, tmp_path: Path) -> Source:
    truths = {path.stem: with_wfdb(path) for path in headers(data / "ptbdb")}
    assert {next(iter(truth.leads.values())).size for truth in truths.values()} == {38_400, 115_200}
    return Source(data / "ptbdb", truths, identities_mv=0.002)


def cpsc_2018_original(data: Path, tmp_path: Path) -> Source:
    truths = {}
    for path in sorted((data / "cpsc2018").glob("*.mat")):
        rows = scipy.io.loadmat(str(path))["ECG"]["data"][0, 0]
        truths[path.stem] = Truth(dict(zip(NAMES, rows, strict=True)), 500)
    return Source(data / "cpsc2018", truths, atol_mv=HALF_A_MICROVOLT, identities_mv=0.0015)


def ludb(data: Path, tmp_path: Path) -> Source:
    # Documented rule: the integers are microvolt, the headers' gains scale every lead by itself.
    truths = {path.stem: wfdb_counts(path, 1 / 1000) for path in headers(data / "ludb/data")}
    assert len(truths) == 200
    return Source(data / "ludb", truths, identities_mv=0.0005)


def cinc2011_set_a(data: Path, tmp_path: Path) -> Source:
    shutil.copy(data / "cinc2011-set-a/quality.csv", tmp_path)
    truths = {}
    for path in headers(data / "cinc2011-set-a")[::20]:
        for suffix in (".hea", ".dat"):
            (tmp_path / f"{path.stem}{suffix}").symlink_to(path.with_suffix(suffix))
        truths[path.stem] = with_wfdb(path)
    return Source(tmp_path, truths, identities_mv=0.0025)  # half a count of 5 microvolt


SOURCES: dict[str, Callable[[Path, Path], Source]] = {
    "georgia": challenge("georgia", 0.0015),
    "ningbo": challenge("ningbo", 0.0035),
    "challenge-ptb-xl": challenge("ptb-xl", 0.0015),
    "ptb": ptb,
    "ptb-xl": ptb_xl,
    "ptb-diagnostic": ptb_diagnostic,
    "cpsc-2018-original": cpsc_2018_original,
    "ludb": ludb,
    "cinc2011-set-a": cinc2011_set_a,
}


def converted(name: str, root: Path, out: Path, signal: Policy = NATIVE, mend: tuple[str, ...] = ()) -> Manifest:
    return convert(load_database(name, mend=mend), root, out, Options(signal=signal, mend=mend))


def assert_holds(out: Path, truths: dict[str, Truth], atol_mv: float) -> dict[str, list[tuple[int, int]]]:
    """Compare every sample of the shards; return from where to where they go, by record."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for about, leads in samples(out):
        record, truth = about["record"], truths[about["record"]]
        assert about["rate_hz"] == about["source_rate_hz"] == truth.rate_hz
        start = round(about["start_s"] * truth.rate_hz)
        stop = start + leads["I"].size
        for name in NAMES:
            expected_T = truth.leads[name][start:stop]
            np.testing.assert_allclose(leads[name], expected_T, rtol=0, atol=atol_mv, err_msg=f"{record} {name}")
        spans.setdefault(record, []).append((start, stop))
    return spans


@pytest.mark.parametrize("name", SOURCES)
def test_genuine_millivolts_are_in_the_shards(ecg_data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    source = SOURCES[name](ecg_data, tmp_path / "in")
    truths = source.truths
    manifest = converted(name, source.root, tmp_path / "out", mend=source.mend)
    if name == "cinc2011-set-a":
        # Documented rule, and where it was applied; that it is right, the identities show below.
        mended = {about["record"] for about, _ in samples(tmp_path / "out") if about["mended"]}
        truths = {record: exchanged(one) if record in mended else one for record, one in truths.items()}
    found = assert_holds(tmp_path / "out", truths, source.atol_mv)
    left_out = refused(tmp_path / "out")
    assert found.keys() | left_out.keys() == truths.keys() and not found.keys() & left_out.keys()
    assert not left_out or (name == "cinc2011-set-a" and set(left_out.values()) == {"all-leads-flat"})
    for record in left_out:
        assert all(np.ptp(row) < 0.05 or np.abs(row).max() > 15 for row in truths[record].leads.values()), record
    assert (manifest.seen, manifest.cut_s) == (len(truths), 0)
    for record, spans in found.items():
        # One after the other, without a gap, to the last sample.
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert spans[-1][1] == truths[record].leads["I"].size
    for about, leads in samples(tmp_path / "out"):
        assert miss_of_identities_mv(leads) <= source.identities_mv + ROUNDING, about["record"]


def exchanged(truth: Truth) -> Truth:
    return Truth(truth.leads | {"AVL": truth.leads["AVF"], "AVF": truth.leads["AVL"]}, truth.rate_hz)


# Layouts of which no genuine file is at hand.


@pytest.fixture(scope="module")
def signals_mv(ecg_data: Path) -> list[Leads]:
    """Return ten genuine recordings of 10 s at 500 Hz."""
    return [with_wfdb(path).leads for path in headers(ecg_data / "challenge-2021/training/georgia")]


def test_millivolts_of_mimic_iv_ecg_are_in_the_shards(tmp_path: Path, signals_mv: list[Leads]) -> None:
    order = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
    truths, rows = {}, ["subject_id,study_id,file_name,ecg_time,path"]
    for number, leads in enumerate(signals_mv):
        study, place = f"4068923{number}", f"files/p1000/p1000003{number}/s4068923{number}"
        (tmp_path / "in" / place).mkdir(parents=True)
        rows.append(f"1000003{number},{study},{study},2180-07-23 08:44:00,{place}/{study}")
        signal_TL = np.rint(200 * np.stack([leads[lead.upper()] for lead in order], axis=1)) / 200
        if number == 3:
            signal_TL[1000:1040, 4] = np.nan  # 0.08 s of aVF: filled
        if number == 4:
            signal_TL[1000:1060, 4] = np.nan  # 0.12 s: refused
        wfdb.wrsamp(
            study, 500, ["mV"] * 12, list(order), p_signal=signal_TL, fmt=["16"] * 12, adc_gain=[200.0] * 12,
            baseline=[0] * 12, write_dir=str(tmp_path / "in" / place),
        )  # fmt: skip
        if number == 3:
            before, after = signal_TL[999, 4], signal_TL[1040, 4]
            signal_TL[1000:1040, 4] = before + (after - before) * np.arange(1, 41) / 41
        truths[study] = Truth({lead.upper(): row for lead, row in zip(order, signal_TL.T, strict=True)}, 500)
    (tmp_path / "in" / "record_list.csv").write_text("\n".join(rows) + "\n")
    converted("mimic-iv-ecg", tmp_path / "in", tmp_path / "out")
    assert refused(tmp_path / "out") == {"40689234": "samples-missing"}
    assert assert_holds(tmp_path / "out", truths, HALF_A_MICROVOLT).keys() == truths.keys() - {"40689234"}
    for about, leads in samples(tmp_path / "out"):
        if about["record"] == "40689233":
            assert about["flags"] == {"interpolated": ["aVF"]}
        else:  # nothing was computed
            for name, row in truths[about["record"]].leads.items():
                np.testing.assert_allclose(leads[name], row, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("name", "folder", "prefix", "seconds"),
    [
        ("chapman-shaoxing", "chapman_shaoxing", "JS001", [10] * 10),
        ("cpsc-2018", "cpsc_2018", "A01", [6, 10, 9.998, 10.5, 59, 60, 61, 72, 144, 15]),
        ("cpsc-extra", "cpsc_2018_extra", "Q01", [8, 98, 70, 69.998, 12, 10, 10, 10, 10, 10]),
    ],
)
def test_millivolts_of_the_other_cohorts_are_in_the_shards(
    tmp_path: Path,
    signals_mv: list[Leads],
    write_challenge: Callable[..., Path],
    name: str,
    folder: str,
    prefix: str,
    seconds: list[float],
) -> None:
    truths, short, whole_s = {}, set(), 0.0
    for number, (leads, length_s) in enumerate(zip(signals_mv, seconds, strict=True), 1):
        record, samples_wanted = f"{prefix}{number:02d}", round(500 * length_s)
        long = {lead: np.resize(row, samples_wanted) for lead, row in leads.items()}
        # Both styles of header, a baseline that is not 0, and a gain of its own.
        gain, offset = (1000, 0) if number % 3 else (250, 24)
        counts_LT = np.stack([np.rint(long[lead] * gain + offset) for lead in NAMES]).astype(np.int16)
        style = {"gain": f"{gain}.0({offset})/mV"}
        if number % 2 and not offset:
            style = {"gain": "1000/mv", "newline": "\r\n"}
        write_challenge(tmp_path / "in/training" / folder / "g1", record, counts_LT, **style)
        rows = (counts_LT - offset) / gain
        truths[record] = Truth(dict(zip(NAMES, rows, strict=True)), 500)
        if length_s < 10:
            short.add(record)
        else:
            whole_s += length_s - (length_s % 60 if length_s > 60 and length_s % 60 < 10 else 0)
    manifest = converted(name, tmp_path / "in", tmp_path / "out")
    assert refused(tmp_path / "out") == dict.fromkeys(short, "too-short")
    found = assert_holds(tmp_path / "out", truths, ROUNDING)
    assert found.keys() == truths.keys() - short
    kept_s = sum(stop - start for spans in found.values() for start, stop in spans) / 500
    assert kept_s == pytest.approx(whole_s)
    assert manifest.cut_s == pytest.approx(sum(one for one in seconds if one >= 10) - whole_s)


def write_incart(folder: Path, record: str, counts_LT: NDArray[np.int16], gain: float) -> None:
    """Write a record at 257 Hz with a gain of its own, and leads in upper case."""
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / f"{record}.mat", {"val": counts_LT}, format="4")
    sums = counts_LT.sum(axis=1, dtype=np.int64) % 65536
    lines = [f"{record} 12 257 {counts_LT.shape[1]}"] + [
        f"{record}.mat 16x1+24 {gain:.1f}(0)/mV 16 0 {row[0]} {total} 0 {lead}"
        for lead, row, total in zip(NAMES, counts_LT, sums, strict=True)
    ]
    (folder / f"{record}.hea").write_text("\n".join([*lines, "# Age: 65", "# Sex: Female", "# Dx: 164884008", ""]))


@pytest.fixture(scope="module")
def incart_mv(ecg_data: Path) -> NDArray[np.float64]:
    """Return three minutes at 257 Hz (of half an hour) out of a recording of PTB, with the wander of a Holter."""
    leads = with_wfdb(ecg_data / "ptbdb/s0015lre.hea").leads
    signal_LT = resample_poly(np.stack([leads[lead] for lead in NAMES]), 257, 1000, axis=1)
    long_LT = np.concatenate([signal_LT, signal_LT[:, ::-1]], axis=1)[:, : 180 * 257]
    return np.asarray(long_LT + 0.8 * np.sin(2 * np.pi * 0.05 * np.arange(180 * 257) / 257))


def test_millivolts_of_incart_are_in_the_shards(tmp_path: Path, incart_mv: NDArray[np.float64]) -> None:
    truths = {}
    for record, gain in (("I0001", 306), ("I0002", 240), ("I0074", 1063)):
        counts_LT = np.rint(incart_mv * gain).astype(np.int16)
        write_incart(tmp_path / "in/training/st_petersburg_incart/g1", record, counts_LT, gain)
        truths[record] = Truth(dict(zip(NAMES, counts_LT / gain, strict=True)), 257)
    converted("st-petersburg-incart", tmp_path / "in", tmp_path / "out")
    found = assert_holds(tmp_path / "out", truths, ROUNDING)
    minutes = [(0, 15_420), (15_420, 30_840), (30_840, 46_260)]
    assert found == {"I0001": minutes, "I0002": minutes, "I0074": minutes}


def high_passed(signal_LT: NDArray[np.float64], rate_hz: float) -> NDArray[np.float64]:
    """Return what SciPy's own zero-phase filter gives, with edges that are mirrored over 2.5 s."""
    sections = butter(4, 0.5, "highpass", fs=rate_hz, output="sos")
    return np.asarray(sosfiltfilt(sections, signal_LT, axis=1, padtype="even", padlen=round(2.5 * rate_hz)))


def test_incart_is_filtered_and_resampled_as_scipy_does_unless_asked_otherwise(
    tmp_path: Path, incart_mv: NDArray[np.float64]
) -> None:
    counts_LT = np.rint(incart_mv * 306).astype(np.int16)
    write_incart(tmp_path / "in", "I0001", counts_LT, 306)
    manifest = converted("st-petersburg-incart", tmp_path / "in", tmp_path / "out", Policy(highpass_hz="database"))
    assert manifest.rates_hz == {"500": 3} and manifest.options["signal"]["highpass_hz"] == 0.5
    expected_LT = resampled(high_passed(counts_LT / 306, 257), 500, 257)
    assert np.abs(expected_LT).max() > 1 and np.abs(incart_mv.mean(axis=1)).max() > 0.1  # there is something to see
    ours_LT = np.concatenate([np.stack([leads[name] for name in NAMES]) for _, leads in samples(tmp_path / "out")], 1)
    assert ours_LT.shape == (12, 90_000)
    assert_like_scipys(ours_LT, expected_LT)


def resampled(signal_LT: NDArray[np.float64], up: int, down: int) -> NDArray[np.float64]:
    """Return what SciPy's polyphase filter gives, without the ripple of 0.07 % that it adds to a constant."""
    constant_T = resample_poly(np.ones(signal_LT.shape[1]), up, down)
    return np.asarray(resample_poly(signal_LT, up, down, axis=1) / constant_T)


def assert_like_scipys(ours_LT: NDArray[np.float64], expected_LT: NDArray[np.float64]) -> None:
    """Compare at 500 Hz; at the edges the two differ by what they take to lie outside, documented as up to 0.16 mV."""
    assert ours_LT.shape == expected_LT.shape
    np.testing.assert_allclose(ours_LT, expected_LT, rtol=0, atol=0.16)
    np.testing.assert_allclose(ours_LT[:, 1500:-1500], expected_LT[:, 1500:-1500], rtol=0, atol=0.001)


@pytest.fixture(scope="module")
def code_15(ecg_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    """Return the six genuine exams, padded and put into two parts, and what they are."""
    root = tmp_path_factory.mktemp("code-15")
    paths = sorted((ecg_data / "code-15").glob("*.mat"))
    signals = {int(path.stem.split("_")[-1]): scipy.io.loadmat(str(path))["feats"] for path in paths}
    shutil.copy(ecg_data / "code-15/exams-columns.csv", root / "exams.csv")
    exams = list(signals)
    for part, chosen in ((0, exams[:4]), (17, exams[4:])):
        tracings = np.zeros((len(chosen) + 1, 4096, 12), dtype=np.float32)  # the last row is padding
        for row, exam in zip(tracings, chosen, strict=False):
            left = (4096 - signals[exam].shape[1]) // 2
            row[left : left + signals[exam].shape[1]] = signals[exam].T
        with h5py.File(root / f"exams_part{part}.hdf5", "w") as file:
            file["tracings"], file["exam_id"] = tracings, [*chosen, 0]
    truths = {
        str(exam): Truth(dict(zip(NAMES, rows.astype(np.float64), strict=True)), 400) for exam, rows in signals.items()
    }
    return root, truths


def test_millivolts_of_code_15_are_in_the_shards(tmp_path: Path, code_15: tuple[Path, dict[str, Truth]]) -> None:
    policy = Policy(rate_hz=None, highpass_hz=None, min_s=7)
    converted("code-15", code_15[0], tmp_path / "out", policy)
    spans = assert_holds(tmp_path / "out", code_15[1], HALF_A_MICROVOLT)
    assert spans == {exam: [(0, truth.leads["I"].size)] for exam, truth in code_15[1].items()}
    for about, leads in samples(tmp_path / "out"):
        theirs_mv = miss_of_identities_mv(code_15[1][about["record"]].leads)  # 0.006 to 0.026: they do not hold
        assert miss_of_identities_mv(leads) == pytest.approx(theirs_mv, abs=4 * HALF_A_MICROVOLT)


def test_exams_of_code_15_under_ten_seconds_are_refused_as_too_short(
    tmp_path: Path, code_15: tuple[Path, dict[str, Truth]]
) -> None:
    converted("code-15", code_15[0], tmp_path / "out", Policy(highpass_hz="database"))
    short = {exam for exam, truth in code_15[1].items() if truth.leads["I"].size < 4000}
    assert short and refused(tmp_path / "out") == dict.fromkeys(short, "too-short")


def test_code_15_is_filtered_and_resampled_as_scipy_does_unless_asked_otherwise(
    tmp_path: Path, code_15: tuple[Path, dict[str, Truth]]
) -> None:
    manifest = converted("code-15", code_15[0], tmp_path / "out", Policy(highpass_hz="database", min_s=7))
    assert manifest.rates_hz == {"500": 6} and manifest.options["signal"]["highpass_hz"] == 0.5
    for about, leads in samples(tmp_path / "out"):
        source_LT = np.stack([code_15[1][about["record"]].leads[name] for name in NAMES])
        expected_LT = resampled(high_passed(source_LT, 400), 5, 4)
        ours_LT = np.stack([leads[name] for name in NAMES])
        assert_like_scipys(ours_LT, expected_LT)
