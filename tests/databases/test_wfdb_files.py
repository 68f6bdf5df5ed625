"""The strict WFDB reader against wfdb, hand-written headers, and every kind of damage."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfm.databases._wfdb_files import read_counts
from ecgfm.databases._wfdb_header import Header, find_headers, lead_names, of_standard_leads, read_header, scale
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import MISSING

Write = Callable[..., Path]


def header_of(tmp_path: Path, text: str) -> Header:
    path = tmp_path / "x.hea"
    path.write_text(text)
    return read_header(path)


def physical_mv(path: Path) -> NDArray[np.float64]:
    header = read_header(path)
    counts_LT = read_counts(header, path.parent)
    microvolt_L, offset_L = scale(header)
    signal_LT = (counts_LT - offset_L[:, None]) * microvolt_L[:, None] * 1e-3
    signal_LT[counts_LT == MISSING] = np.nan
    return np.asarray(signal_LT)


@pytest.mark.parametrize("folder", ["challenge-2021/training", "ptb-xl", "ludb", "ptbdb"])
def test_physical_values_are_those_of_wfdb(ecg_data: Path, folder: str) -> None:
    paths = list(find_headers(ecg_data / folder))[:60]
    # Three of the PTB samples lack their .xyz file; wfdb cannot read them either.
    paths = [path for path in paths if folder != "ptbdb" or path.with_suffix(".xyz").exists()]
    assert paths
    for path in paths:
        theirs = wfdb.rdrecord(str(path.with_suffix("")))
        assert lead_names(read_header(path)) == tuple(theirs.sig_name)
        assert read_header(path).rate_hz == theirs.fs
        np.testing.assert_allclose(physical_mv(path), theirs.p_signal.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("folder", ["challenge-2021/training", "ptb-xl", "ludb/data", "ptbdb", "cinc2011-set-a"])
def test_every_count_of_every_genuine_record_is_that_of_wfdb_and_so_are_its_sums(ecg_data: Path, folder: str) -> None:
    # Lead by lead: three of the PTB samples lack their .xyz file, and have their twelve leads all the same.
    for path in sorted((ecg_data / folder).rglob("*.hea")):
        theirs = wfdb.rdrecord(str(path.with_suffix("")), channels=list(range(12)), physical=False)
        header = of_standard_leads(read_header(path))
        counts_LT = read_counts(header, path.parent)
        assert counts_LT.dtype == np.int16 and lead_names(header) == tuple(theirs.sig_name)
        np.testing.assert_array_equal(counts_LT, theirs.d_signal.T)
        stated = [spec.checksum for spec in header.signals]
        if any(stated):
            summed = theirs.calc_checksum()
            assert [one % 65536 for one in summed] == [None if one is None else one % 65536 for one in stated]
            assert [spec.initial_value for spec in header.signals] == theirs.d_signal[0].tolist()


def test_first_samples_of_a_record_are_those_in_its_bytes(ecg_data: Path) -> None:
    # Read off a hex dump of E07500.mat: bc ff c6 ff 09 00 3f 00 d9 ff e8 ff 9c 00 61 00 6e ff bc ff d0 ff 64 ff.
    path = ecg_data / "challenge-2021/training/georgia/g1/E07500.hea"
    first_mv = dict(zip(lead_names(read_header(path)), physical_mv(path)[:, 0], strict=True))
    by_hand = {
        "I": -0.068, "II": -0.058, "III": 0.009, "aVR": 0.063, "aVL": -0.039, "aVF": -0.024,
        "V1": 0.156, "V2": 0.097, "V3": -0.146, "V4": -0.068, "V5": -0.048, "V6": -0.156,
    }  # fmt: skip
    assert first_mv == pytest.approx(by_hand, abs=1e-12)


def test_both_header_styles_give_the_same_signal_lines(ecg_data: Path) -> None:
    older = sorted((ecg_data / "challenge-2021/headers-2020").glob("*.hea"))
    compared = 0
    for path in older:
        newer = next((ecg_data / "challenge-2021/training").rglob(path.name))
        one, two = read_header(path), read_header(newer)
        assert one.record == two.record == path.stem
        assert (one.signals, one.rate_hz, one.samples) == (two.signals, two.rate_hz, two.samples)
        compared += 1
    assert compared == 25


def test_fields_of_a_signal_line_follow_the_format(tmp_path: Path) -> None:
    header = header_of(
        tmp_path,
        "# before\nx 4 500/500(0) 10 10:00:00 1/1/2000\n"
        "x.dat 16 200.5(-12)/uV 12 1024 7 -3 0 lead one\nx.dat 16+8 100 12 1024\nx.dat 16 1e3/V\nx.dat 16\n#after: a\n",
    )
    one, two, three, four = header.signals
    assert (one.gain_per_unit, one.baseline, one.unit, one.initial_value, one.checksum) == (200.5, -12, "uV", 7, -3)
    assert one.description == "lead one"
    # The baseline falls back to the ADC zero, and that to 0; the unit to mV. The gain falls back to nothing.
    assert (two.baseline, two.unit, two.byte_offset, two.initial_value, two.checksum) == (1024, "mV", 8, None, None)
    assert (three.baseline, three.unit, three.gain_per_unit) == (0, "V", 1000.0)
    assert four.gain_per_unit == 0
    assert (header.rate_hz, header.samples, header.comments) == (500.0, 10, ("before", "after: a"))


def test_scale_is_microvolt_per_count(tmp_path: Path) -> None:
    header = header_of(
        tmp_path, "x 4 500 10\nx.dat 16 200/mV\nx.dat 16 2/uV\nx.dat 16 1e6/V\nx.dat 16 500(7)/mv 16 3\n"
    )
    microvolt_L, offset_L = scale(header)
    assert microvolt_L.tolist() == [5.0, 0.5, 1.0, 2.0]
    assert offset_L.tolist() == [0, 0, 0, 7]


@pytest.mark.parametrize("gain", ["", "0/mV", "0", "-200/mV"])
def test_a_signal_without_calibration_is_refused(tmp_path: Path, gain: str) -> None:
    with pytest.raises(RecordError, match="not calibrated") as caught:
        scale(header_of(tmp_path, f"x 1 500 10\nx.dat 16 {gain}\n"))
    assert caught.value.reason == "header-malformed"


@pytest.mark.parametrize("unit", ["MV", "mmHg", "bananas"])
def test_a_foreign_unit_is_refused_by_name(tmp_path: Path, unit: str) -> None:
    with pytest.raises(RecordError, match=f"II.*{unit}") as caught:
        scale(header_of(tmp_path, f"x 1 500 10\nx.dat 16 200/{unit} 16 0 0 0 0 II\n"))
    assert caught.value.reason == "unit-unknown"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "x\n",
        "x 2 500 10\nx.dat 16 200/mV\n",
        "x 1 500 10\nx.dat 16 200/mV\nx.dat 16 200/mV\n",
        "x 1\nx.dat 16 200/mV\n",
        "x 1 500\nx.dat 16 200/mV\n",
        "x 1 500 0\nx.dat 16 200/mV\n",
        "x 1 0 10\nx.dat 16 200/mV\n",
        "x 1 nan 10\nx.dat 16 200/mV\n",
        "x 0 500 10\n",
        "x/3 1 500 10\nx.dat 16 200/mV\n",
        "x 1 500 10\nx.dat\n",
        "x 1 500 10\nx.dat sixteen 200/mV\n",
        "x 1 500 10\nx.dat 16x2 200/mV\n",
        "x 1 500 10\nx.dat 16:4 200/mV\n",
        "x 1 500 10\nx.dat 16 --/mV\n",
        "x 1 500 10\nx.dat 16 200/mV 16 0 first\n",
        "x 1 500 10\n../x.dat 16 200/mV\n",
        "x 1 500 10\n/etc/passwd 16 200/mV\n",
    ],
)
def test_a_malformed_header_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecordError, match=r"x\.hea") as caught:
        header_of(tmp_path, text)
    assert caught.value.reason == "header-malformed"


def test_bytes_that_are_no_text_are_a_malformed_header(tmp_path: Path) -> None:
    path = tmp_path / "x.hea"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(RecordError) as caught:
        read_header(path)
    assert caught.value.reason == "header-malformed"


def test_carriage_returns_change_nothing(tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]) -> None:
    plain = read_header(write_challenge(tmp_path / "a", "E00001", counts_LT))
    returned = read_header(write_challenge(tmp_path / "b", "E00001", counts_LT, newline="\r\n"))
    assert plain == returned


def test_counts_come_back_as_written(tmp_path: Path, write_challenge: Write) -> None:
    counts_LT = np.random.default_rng(0).integers(-32768, 32768, (12, 777)).astype(np.int16)
    path = write_challenge(tmp_path, "E00001", counts_LT)
    read_LT = read_counts(read_header(path), tmp_path)
    assert read_LT.dtype == np.int16 and read_LT.flags.c_contiguous
    np.testing.assert_array_equal(read_LT, counts_LT)


def test_signals_in_two_files_keep_the_headers_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    one_TL, two_TL = (rng.integers(-999, 999, (50, width)).astype("<i2") for width in (2, 3))
    (tmp_path / "x.dat").write_bytes(one_TL.tobytes())
    (tmp_path / "x.xyz").write_bytes(b"skip" + two_TL.tobytes())
    header = header_of(
        tmp_path, "x 5 1000 50\n" + "x.dat 16 2000 16 0\n" * 2 + "x.xyz 16+4 2000 16 0\n" * 3
    )  # no initial values, no checksums
    np.testing.assert_array_equal(read_counts(header, tmp_path), np.concatenate([one_TL, two_TL], axis=1).T)


@pytest.mark.parametrize(("form", "bits"), [("212", 12), ("80", 8)])
def test_other_formats_are_read_through_wfdb(tmp_path: Path, form: str, bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    counts_TL = np.random.default_rng(2).integers(-limit, limit, (60, 2))
    wfdb.wrsamp(
        "x", 250, ["mV", "mV"], ["I", "II"], d_signal=counts_TL, fmt=[form] * 2, adc_gain=[200.0] * 2,
        baseline=[0, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    np.testing.assert_array_equal(read_counts(read_header(tmp_path / "x.hea"), tmp_path), counts_TL.T)


def test_format_160_is_offset_binary(tmp_path: Path) -> None:
    counts_TL = np.array([[-5, 12], [32767, -32767]])
    (tmp_path / "x.dat").write_bytes((counts_TL + 32768).astype("<u2").tobytes())
    header = header_of(tmp_path, "x 2 500 2\n" + "x.dat 160 200/mV 16 0\n" * 2)
    np.testing.assert_array_equal(read_counts(header, tmp_path), counts_TL.T)


@pytest.mark.parametrize("content", [b"", b"abcd"])
def test_a_truncated_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dat").write_bytes(content)
    header = header_of(tmp_path, "x 2 500 20\n" + "x.dat 212 200/mV 12 0\n" * 2)
    with pytest.raises(RecordError) as caught:
        read_counts(header, tmp_path)
    assert caught.value.reason == "truncated"


def test_missing_samples_of_other_formats_get_the_one_mark(tmp_path: Path) -> None:
    counts_TL = np.array([[5], [-2048], [7], [-9]])
    wfdb.wrsamp(
        "x", 250, ["mV"], ["I"], d_signal=counts_TL, fmt=["212"], adc_gain=[200.0], baseline=[0],
        write_dir=str(tmp_path),
    )  # fmt: skip
    assert read_counts(read_header(tmp_path / "x.hea"), tmp_path).tolist() == [[5, MISSING, 7, -9]]


def test_a_format_that_does_not_fit_int16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.dat").write_bytes(bytes(40))
    with pytest.raises(RecordError, match="format 32 is not supported"):
        read_counts(header_of(tmp_path, "x 1 500 10\nx.dat 32 200/mV\n"), tmp_path)


def test_reading_format_16_never_imports_wfdb(tmp_path: Path, write_challenge: Write) -> None:
    write_challenge(tmp_path, "E00001", np.zeros((12, 10), np.int16))
    code = (
        "import sys; from pathlib import Path; from ecgfm.databases.base import load_database\n"
        f"database = load_database('georgia'); [database.read(ref) for ref in database.refs(Path({str(tmp_path)!r}))]\n"
        "assert not {'wfdb', 'pandas', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def damage_cut(matlab: Path, header: Path) -> None:
    matlab.write_bytes(matlab.read_bytes()[:-1])


def damage_cut_to_nothing(matlab: Path, header: Path) -> None:
    matlab.write_bytes(b"")


def damage_lengthen(matlab: Path, header: Path) -> None:
    matlab.write_bytes(matlab.read_bytes() + b"\0\0")


def damage_sample(matlab: Path, header: Path) -> None:
    content = bytearray(matlab.read_bytes())
    content[24 + 2 * (12 * 3 + 1)] ^= 1  # lead II at sample 3
    matlab.write_bytes(content)


def damage_first_sample(matlab: Path, header: Path) -> None:
    content = bytearray(matlab.read_bytes())
    content[24 + 2] ^= 1  # lead II
    matlab.write_bytes(content)


def damage_type(matlab: Path, header: Path) -> None:
    matlab.write_bytes(struct.pack("<i", 0) + matlab.read_bytes()[4:])


def damage_shape(matlab: Path, header: Path) -> None:
    content = matlab.read_bytes()
    rows, columns = struct.unpack_from("<2i", content, 4)
    matlab.write_bytes(content[:4] + struct.pack("<2i", columns, rows) + content[12:])


def damage_header_length(matlab: Path, header: Path) -> None:
    header.write_text(header.read_text().replace("500 5000", "500 4999", 1))


def damage_remove(matlab: Path, header: Path) -> None:
    matlab.unlink()


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (damage_cut, "truncated", "120,023 bytes.*120,024"),
        (damage_cut_to_nothing, "truncated", "0 bytes"),
        (damage_lengthen, "header-signal-disagree", "120,026 bytes.*120,024"),
        (damage_sample, "header-signal-disagree", "checksum of lead II is"),
        (damage_first_sample, "header-signal-disagree", "initial value of lead II is"),
        (damage_type, "header-signal-disagree", "type 0"),
        (damage_shape, "header-signal-disagree", "5000 x 12.*12 x 5000"),
        (damage_header_length, "header-signal-disagree", "12 x 5000.*12 x 4999"),
        (damage_remove, "file-missing", r"E00001\.mat"),
    ],
)
def test_damage_is_refused_with_its_reason(
    tmp_path: Path,
    write_challenge: Write,
    counts_LT: NDArray[np.int16],
    damage: Callable[[Path, Path], None],
    reason: str,
    words: str,
) -> None:
    path = write_challenge(tmp_path, "E00001", counts_LT)
    damage(path.with_suffix(".mat"), path)
    with pytest.raises(RecordError, match=words) as caught:
        read_counts(read_header(path), tmp_path)
    assert caught.value.reason == reason


def test_a_truncated_dat_file_is_refused(ecg_data: Path, tmp_path: Path) -> None:
    for suffix in (".hea", ".dat"):
        content = (ecg_data / f"ptb-xl/records100/00000/00001_lr{suffix}").read_bytes()
        (tmp_path / f"00001_lr{suffix}").write_bytes(content[:-100] if suffix == ".dat" else content)
    with pytest.raises(RecordError) as caught:
        read_counts(read_header(tmp_path / "00001_lr.hea"), tmp_path)
    assert caught.value.reason == "truncated"


def test_a_missing_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        read_header(tmp_path / "nothing.hea")
    assert caught.value.reason == "file-missing"


def test_every_stated_checksum_and_initial_value_of_the_samples_holds(ecg_data: Path) -> None:
    checked = 0
    for folder in ("challenge-2021/training", "ptb-xl", "ludb", "cinc2011-set-a"):
        for path in find_headers(ecg_data / folder):
            header = read_header(path)
            counts_LT = read_counts(header, path.parent)  # raises where one does not
            for spec, row in zip(header.signals, counts_LT.astype(np.int64), strict=True):
                assert spec.checksum is not None and (int(row.sum()) - spec.checksum) % 65536 == 0
                assert spec.initial_value == row[0]
            checked += 1
    assert checked == 1031


def test_linked_folders_are_followed_once(tmp_path: Path, write_challenge: Write) -> None:
    elsewhere, top = tmp_path / "elsewhere", tmp_path / "top"
    write_challenge(elsewhere / "g1", "E00001", np.zeros((12, 10), np.int16))
    write_challenge(top, "E00002", np.zeros((12, 10), np.int16))
    (top / "linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(top)
    assert [path.stem for path in find_headers(top)] == ["E00002", "E00001"]


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root, to whom nothing is closed")
def test_a_closed_folder_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "g1").mkdir(mode=0)
    with pytest.raises(DatabaseError, match="g1 cannot be listed"):
        list(find_headers(tmp_path))


def test_lead_names_are_as_published(tmp_path: Path, write_challenge: Write) -> None:
    path = write_challenge(tmp_path, "E00001", np.zeros((12, 10), np.int16))
    assert lead_names(read_header(path)) == LEADS


@pytest.mark.parametrize("form", ["16", "212"])
def test_a_header_that_announces_terabytes_asks_for_none(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.dat").write_bytes(bytes(300))
    header = header_of(tmp_path, f"x 2 500 900000000000\nx.dat {form} 200/mV\nx.dat {form} 200/mV\n")
    with pytest.raises(RecordError) as caught:
        read_counts(header, tmp_path)
    assert caught.value.reason == "truncated"


def test_a_baseline_of_twenty_digits_is_a_malformed_header(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is no count of a converter") as caught:
        header_of(tmp_path, "x 1 500 10\nx.dat 16 200(99999999999999999999)/mV\n")
    assert caught.value.reason == "header-malformed"


def test_hidden_files_that_a_copy_left_are_no_records(tmp_path: Path, write_challenge: Write) -> None:
    path = write_challenge(tmp_path, "E00001", np.zeros((12, 10), np.int16))
    (tmp_path / "._E00001.hea").write_bytes(b"\0\5\26\7")  # as macOS leaves on a foreign disk
    assert list(find_headers(tmp_path)) == [path]
