"""INCART: no file of it is at hand, so real signals of LUDB are written in its published layout.

257 Hz, 462,600 samples, 306 counts per mV, a gain for each record, leads AVR AVL AVF in upper case.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ecgfm.databases.base import load_database
from ecgfm.errors import RecordError
from ecgfm.leads import LEADS

SAMPLES = 462_600
Incart = Callable[..., Path]


@pytest.fixture(scope="module")
def signal_mv_LT(ecg_data: Path) -> NDArray[np.float64]:
    """Return half an hour at 257 Hz: a record of 10 s again and again, with a slow wander as a Holter has."""
    counts_TL = wfdb.rdrecord(str(ecg_data / "ludb/data/1"), physical=False).d_signal
    beats_LT = resample_poly(counts_TL.T * 1e-3, 257, 500, axis=1)
    wander_T = 0.8 * np.sin(2 * np.pi * 0.05 * np.arange(SAMPLES) / 257)
    return np.asarray(np.tile(beats_LT, SAMPLES // beats_LT.shape[1] + 1)[:, :SAMPLES] + wander_T)


def write(folder: Path, name: str, counts_LT: NDArray[np.int16], gain: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    matlab = struct.pack("<5i", 30, *counts_LT.shape, 0, 4) + b"val\0" + counts_LT.tobytes(order="F")
    (folder / f"{name}.mat").write_bytes(matlab)
    sums = counts_LT.sum(axis=1, dtype=np.int64) % 65536
    lines = [f"{name} 12 257 {counts_LT.shape[1]}"]
    for lead, row, total in zip(LEADS, counts_LT, sums, strict=True):
        lines.append(f"{name}.mat 16x1+24 {gain} 16 0 {row[0]} {total} 0 {lead.upper()}")
    path = folder / f"{name}.hea"
    path.write_text("\n".join([*lines, "# Age: 65", "# Sex: Female", "# Dx: 164884008,164865005", ""]))
    return path


def test_a_record_of_half_an_hour_keeps_its_counts_rate_names_and_its_own_gain(
    tmp_path: Path, signal_mv_LT: NDArray[np.float64]
) -> None:
    group = tmp_path / "training/st_petersburg_incart/g1"
    written = {}
    for name, gain in (("I0001", 306), ("I0074", 1063)):
        written[name] = np.rint(signal_mv_LT * gain).astype(np.int16)
        write(group, name, written[name], f"{gain}.0(0)/mV")
    database = load_database("st-petersburg-incart")
    records = [database.read(ref) for ref in database.refs(tmp_path)]
    assert [record.record for record in records] == ["I0001", "I0074"]
    for record, gain in zip(records, (306, 1063), strict=True):
        np.testing.assert_array_equal(record.counts_LT, written[record.record])
        np.testing.assert_allclose(record.microvolt_per_count, 1e3 / gain, rtol=1e-15)
        assert record.leads == database.native_leads and record.leads[3:6] == ("AVR", "AVL", "AVF")
        assert (record.rate_hz,) == database.native_rates_hz == (257.0,)
        assert (record.patient, record.age, record.sex) == (None, 65.0, "female")
    ours_mv_LT = records[0].counts_LT * (records[0].microvolt_per_count[:, None] * 1e-3)
    np.testing.assert_allclose(ours_mv_LT, signal_mv_LT, rtol=0, atol=0.5 / 306 + 1e-12)


def test_it_is_high_passed_unless_another_filter_is_asked_for() -> None:
    assert load_database("st-petersburg-incart").highpass_hz == 0.5
    # It alone among the Challenge's cohorts.
    assert load_database("georgia").highpass_hz is None


def test_an_older_header_with_a_thousandfold_gain_is_read_as_stated(
    tmp_path: Path, signal_mv_LT: NDArray[np.float64]
) -> None:
    # The true gain of such a record is not known, so nothing is mended; its amplitude of some microvolt is then
    # refused when the record is made canonical.
    write(tmp_path, "I0001", np.rint(signal_mv_LT[:, :5140] * 306).astype(np.int16), "306000/mV")
    database = load_database("st-petersburg-incart")
    (ref,) = database.refs(tmp_path)
    record = database.read(ref)
    assert record.mended == () and not database.mends
    assert np.ptp(record.counts_LT[1] * record.microvolt_per_count[1]) < 10.0


def test_a_record_cut_short_is_refused(tmp_path: Path, signal_mv_LT: NDArray[np.float64]) -> None:
    path = write(tmp_path, "I0001", np.rint(signal_mv_LT[:, :5140] * 306).astype(np.int16), "306.0(0)/mV")
    matlab = path.with_suffix(".mat")
    matlab.write_bytes(matlab.read_bytes()[:-1000])
    database = load_database("st-petersburg-incart")
    (ref,) = database.refs(tmp_path)
    with pytest.raises(RecordError) as caught:
        database.read(ref)
    assert caught.value.reason == "truncated"
