"""An archive of one's own as arrays: real recordings saved in every way that is allowed, and every slip.

The recordings are those of the China challenge of 2018 (float64, mV), CODE-15% (400 Hz) and LUDB (integers), which are
published in other packings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import wfdb
from numpy.typing import NDArray

from ecgfm.databases.base import load_database
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import Record
from ecgfm.shards.writer import Options, convert

Signal = NDArray[np.float64]
NAMES = ";".join(LEADS)


@pytest.fixture(scope="module")
def real_LT(ecg_data: Path) -> Signal:
    """Return a recording of the China challenge in mV, 12 x N."""
    return np.asarray(scipy.io.loadmat(ecg_data / "cpsc2018/A1980.mat")["ECG"][0, 0]["data"], dtype=np.float64)


@pytest.fixture(scope="module")
def counts_LT(ecg_data: Path) -> NDArray[np.int16]:
    """Return a recording of LUDB in microvolt, 12 x 5000."""
    return np.asarray(wfdb.rdrecord(str(ecg_data / "ludb/data/8"), physical=False).d_signal.T, dtype=np.int16)


def table(root: Path, *rows: dict[str, str], **about: Any) -> Path:
    """Write records.csv, by default at 500 Hz in mV with the twelve leads, and dataset.json; return the folder."""
    if not about:
        rows = tuple({"rate_hz": "500", "unit": "mV", "leads": NAMES} | row for row in rows)
    else:
        (root / "dataset.json").write_text(json.dumps(about))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(columns), *(",".join(row.get(name, "") for name in columns) for row in rows)]
    (root / "records.csv").write_text("\n".join(lines) + "\n")
    return root


def records(root: Path) -> dict[str, Record]:
    database = load_database("numpy-folder")
    refs = sorted(database.refs(root), key=lambda ref: (ref.split, ref.path, ref.index))
    return {ref.record: database.read(ref) for ref in refs}


def millivolt(record: Record) -> Signal:
    assert record.counts_LT.flags.c_contiguous and record.counts_LT.base is None  # its own memory
    signal_LT = (record.counts_LT - record.offset_counts[:, None]) * record.microvolt_per_count[:, None] * 1e-3
    if record.counts_LT.dtype == np.int16:
        signal_LT[record.counts_LT == -32768] = np.nan
    return np.asarray(signal_LT)


@pytest.mark.parametrize(("unit", "factor"), [("mV", 1.0), ("uV", 1e3), ("V", 1e-3)])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2"])
def test_millivolts_come_back_in_every_unit_and_float(
    tmp_path: Path, real_LT: Signal, unit: str, factor: float, dtype: str
) -> None:
    saved = (real_LT * factor).astype(dtype)
    np.save(tmp_path / "a.npy", saved)
    record = records(table(tmp_path, {"record": "a", "file": "a.npy", "unit": unit}))["a"]
    assert record.counts_LT.dtype == (np.float64 if dtype.endswith("8") else np.float32)
    # No more is lost than in saving.
    np.testing.assert_allclose(millivolt(record), saved.astype(np.float64) / factor, rtol=1e-12, atol=0)
    assert (record.leads, record.rate_hz) == (LEADS, 500.0)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".hdf5", ".h5"])
@pytest.mark.parametrize("order", ["C", "F", "samples;leads"])
@pytest.mark.parametrize("together", [True, False])
def test_millivolts_come_back_from_every_file_and_order(
    tmp_path: Path, ecg_data: Path, ending: str, order: str, together: bool
) -> None:
    paths = sorted((ecg_data / "code-15").glob("*.mat"))[:4]
    signals = [scipy.io.loadmat(path)["feats"][:, :2934].astype(np.float32) for path in paths]
    assert signals[0].shape == (12, 2934)
    saved: Any = np.stack(signals)
    if order == "samples;leads":
        saved = saved.swapaxes(1, 2)
    saved = np.asarray(saved, order="F" if order == "F" else "C")
    arrays = {"all": saved} if together else {f"e{number}": array for number, array in enumerate(saved)}
    if ending == ".npz":
        np.savez_compressed(tmp_path / "x.npz", **arrays)
    for name, array in arrays.items():
        if ending == ".npy":
            np.save(tmp_path / f"{name}.npy", array)
        if ending in (".hdf5", ".h5"):
            with h5py.File(tmp_path / f"x{ending}", "a") as file:
                file.create_dataset(f"group/{name}", data=array, compression="gzip")
    rows = []
    for number in (2, 0, 3, 1):  # rows of a table are in any order
        name = "all" if together else f"e{number}"
        row = {"record": f"r{number}", "index": str(number) if together else ""}
        row["file"] = f"{name}.npy" if ending == ".npy" else f"x{ending}"
        row["dataset"] = "" if ending == ".npy" else name if ending == ".npz" else f"group/{name}"
        row["axes"] = order if ";" in order else ""
        rows.append({"rate_hz": "400", **row})
    found = records(table(tmp_path, *rows))
    for number, signal in enumerate(signals):
        np.testing.assert_allclose(millivolt(found[f"r{number}"]), signal, rtol=1e-12)
        assert found[f"r{number}"].rate_hz == 400


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "<i8"])
def test_integers_that_fit_stay_counts(tmp_path: Path, counts_LT: NDArray[np.int16], dtype: str) -> None:
    np.save(tmp_path / "a.npy", counts_LT.astype(dtype))
    row = {"record": "a", "file": "a.npy", "unit": "counts", "microvolt_per_count": "4.88"}
    record = records(table(tmp_path, row))["a"]
    assert record.counts_LT.dtype == np.int16 and record.counts_LT.dtype.isnative
    np.testing.assert_array_equal(record.counts_LT, counts_LT)
    assert record.microvolt_per_count.tolist() == [4.88] * 12


def test_integers_in_microvolt_are_counts_of_one_microvolt(tmp_path: Path, counts_LT: NDArray[np.int16]) -> None:
    np.save(tmp_path / "a.npy", counts_LT)
    record = records(table(tmp_path, {"record": "a", "file": "a.npy", "unit": "uV"}))["a"]
    assert record.counts_LT.dtype == np.int16
    np.testing.assert_allclose(millivolt(record), counts_LT / 1000, rtol=1e-12)


def test_integers_beyond_int16_become_floats_without_loss(tmp_path: Path, counts_LT: NDArray[np.int16]) -> None:
    wide = counts_LT.astype(np.int32) * 1000
    wide[0, 0] = -32768
    np.save(tmp_path / "a.npy", wide)
    row = {"record": "a", "file": "a.npy", "unit": "counts", "microvolt_per_count": "0.001"}
    record = records(table(tmp_path, row))["a"]
    assert record.counts_LT.dtype == np.float64
    np.testing.assert_array_equal(record.counts_LT, wide)


def test_the_lowest_int16_and_nan_are_no_sample_but_a_wide_integer_is(tmp_path: Path, real_LT: Signal) -> None:
    small = np.zeros((12, 100), dtype=np.int16)
    small[3, 7] = -32768
    floats = real_LT.copy()
    floats[2, 5] = np.nan
    for name, array in (("small", small), ("wide", small.astype(np.int32)), ("floats", floats)):
        np.save(tmp_path / f"{name}.npy", array)
    rows = ({"record": name, "file": f"{name}.npy"} for name in ("small", "wide", "floats"))
    found = {name: np.isnan(millivolt(record)) for name, record in records(table(tmp_path, *rows)).items()}
    assert found["small"].sum() == 1 and found["small"][3, 7]
    assert found["floats"].sum() == 1 and found["floats"][2, 5]
    assert not found["wide"].any()


def test_what_is_the_same_for_all_may_stand_in_the_facts(tmp_path: Path, real_LT: Signal) -> None:
    np.savez(tmp_path / "a.npz", ecg=real_LT.T)
    about = {"rate_hz": 500, "unit": "mV", "leads": list(LEADS), "axes": ["samples", "leads"], "dataset": "ecg"}
    root = table(tmp_path, {"record": "a", "file": "a.npz"}, **about, title="Ward", licence="LicenseRef-ward")
    np.testing.assert_allclose(millivolt(records(root)["a"]), real_LT, rtol=1e-12)
    database = load_database("numpy-folder")
    list(database.refs(root))
    assert (database.title, database.licence, database.version) == ("Ward", "LicenseRef-ward", "unknown")
    assert load_database("numpy-folder").title != "Ward"


def test_another_order_of_leads_is_kept_with_its_names(tmp_path: Path, real_LT: Signal) -> None:
    order = [0, 1, 6, 7, 8, 9, 10, 11]
    np.save(tmp_path / "a.npy", real_LT[order])
    record = records(table(tmp_path, {"record": "a", "file": "a.npy", "leads": "I;ii;V1;V2;V3;V4;V5;v6"}))["a"]
    assert record.leads == ("I", "ii", "V1", "V2", "V3", "V4", "V5", "v6")
    np.testing.assert_allclose(millivolt(record), real_LT[order], rtol=1e-12)


def test_person_split_and_labels_are_those_of_the_table(tmp_path: Path, real_LT: Signal) -> None:
    np.save(tmp_path / "a.npy", real_LT)
    full = {"patient": "p1", "age": "63", "sex": "F", "split": "val", "fold": "3.0", "labels:snomed": "1;2;1"}
    table(tmp_path, {"record": "a", "file": "a.npy", **full, "labels:rhythm": "none", "labels:other": ""})
    (ref,) = load_database("numpy-folder").refs(tmp_path)
    record = load_database("numpy-folder").read(ref)
    assert (record.patient, record.age, record.sex, ref.split, record.fold) == ("p1", 63.0, "female", "val", 3)
    assert record.labels == {"snomed": ("1", "2"), "rhythm": ()}


GOOD = {"record": "a", "file": "a.npy"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rate_hz": ""}, r"rate_hz is not given, and is never guessed.*dataset\.json"),
        ({"unit": ""}, "unit is not given"),
        ({"leads": ""}, "leads is not given"),
        ({"rate_hz": "500 Hz"}, "rate_hz '500 Hz' is not a number above 0"),
        ({"rate_hz": "0"}, "rate_hz '0'"),
        ({"rate_hz": "inf"}, "rate_hz 'inf'"),
        ({"unit": "volts"}, "unit 'volts' is not known.*counts with microvolt_per_count"),
        ({"unit": "MV"}, "unit 'MV'"),
        ({"unit": "counts"}, "unit counts needs microvolt_per_count"),
        ({"unit": "counts", "microvolt_per_count": "-1"}, "microvolt_per_count '-1'"),
        ({"microvolt_per_count": "5"}, "unit 'mV' and microvolt_per_count '5' are both given"),
        ({"leads": NAMES.replace(";", " ")}, "separate the names by semicolons"),
        ({"leads": NAMES.replace("V6", "v5")}, "V5 is named twice"),
        ({"axes": "leads"}, "axes 'leads' is not leads;samples or samples;leads"),
        ({"file": "a.mat"}, r"'a\.mat' is not \.npy, \.npz"),
        ({"file": "../a.npy"}, r"'\.\./a\.npy' must lie below"),
        ({"file": "/a.npy"}, r"'/a\.npy' must lie below"),
        ({"file": ""}, "file is empty"),
        ({"file": "a.npz"}, "needs dataset"),
        ({"dataset": "x"}, "leave dataset 'x' out"),
        ({"index": "-1"}, "index '-1' is not a whole number from 0"),
        ({"age": "x"}, "age 'x'"),
        ({"lead": "x"}, r"no column 'lead' \(did you mean leads"),
    ],
)
def test_every_slip_in_the_table_is_named_with_its_line(tmp_path: Path, row: dict[str, str], message: str) -> None:
    table(tmp_path, GOOD | row)
    with pytest.raises(DatabaseError, match=rf"records\.csv line [12]: .*{message}"):
        list(load_database("numpy-folder").refs(tmp_path))


def test_a_record_or_an_array_named_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    table(tmp_path, GOOD, {"record": "a", "file": "b.npy"})
    with pytest.raises(DatabaseError, match="line 3: record 'a' is on line 2 already"):
        list(load_database("numpy-folder").refs(tmp_path))
    table(tmp_path, GOOD, {"record": "b", "file": "./a.npy"})
    with pytest.raises(DatabaseError, match=r"line 3: the array in .*a\.npy.* is on line 2 already"):
        list(load_database("numpy-folder").refs(tmp_path))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"rate_hz": "500"}, "rate_hz is '500', expected as in 500"),
        ({"rate_hz": True}, "rate_hz is True"),
        ({"leads": NAMES}, r"leads is .*expected as in \["),
        ({"unit": 1}, "unit is 1"),
        ({"samplingrate_hz": 500}, r"'samplingrate_hz' is not known"),
        ({"axis": ["leads", "samples"]}, r"did you mean axes\?"),
    ],
)
def test_every_slip_in_the_facts_is_named(tmp_path: Path, about: dict[str, Any], message: str) -> None:
    table(tmp_path, GOOD, **about)
    with pytest.raises(DatabaseError, match=rf"dataset\.json.*{message}"):
        list(load_database("numpy-folder").refs(tmp_path))


def test_what_is_given_in_both_places_is_refused(tmp_path: Path) -> None:
    table(tmp_path, GOOD | {"rate_hz": "500"}, rate_hz=500)
    with pytest.raises(DatabaseError, match=r"line 2: rate_hz is given here and in dataset\.json"):
        list(load_database("numpy-folder").refs(tmp_path))


def test_a_table_without_rows_or_no_table_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"records\.csv does not exist; write one line a record"):
        list(load_database("numpy-folder").refs(tmp_path))
    (tmp_path / "records.csv").write_text("record,file\n")
    with pytest.raises(DatabaseError, match="has no row"):
        list(load_database("numpy-folder").refs(tmp_path))


@pytest.mark.parametrize(
    ("shape", "row", "message"),
    [
        ((5000, 12), {}, r"\(5000, 12\), which is not leads;samples: write the axes samples;leads"),
        ((12, 5000), {"axes": "samples;leads"}, r"is not samples;leads: write the axes leads;samples"),
        ((8, 5000), {}, "the table names 12 leads, I, II"),
        ((3, 12, 500), {}, r"\(3, 12, 500\), expected are two axes; give the column index"),
        ((12, 500), {"index": "0"}, "index 0 needs three axes.*leave index empty"),
        ((3, 12, 500), {"index": "3"}, "has 3 records, so that there is no index 3"),
        ((3, 500, 12), {"index": "1"}, r"index 1 has the shape \(500, 12\).*write the axes"),
        ((6000,), {}, r"\(6000,\), expected are two axes; save"),
        ((12, 0), {}, "is empty"),
    ],
)
def test_a_shape_that_is_not_as_said_is_refused_with_the_fix(
    tmp_path: Path, shape: tuple[int, ...], row: dict[str, str], message: str
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.float32))
    with pytest.raises(RecordError, match=message) as caught:
        records(table(tmp_path, GOOD | row))
    assert caught.value.reason == "array-mismatch" and str(tmp_path / "a.npy") in str(caught.value)


class Trap:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_nothing_is_unpickled(tmp_path: Path, ending: str) -> None:
    sprung = tmp_path / "sprung"
    objects = np.array([Trap(sprung)] * 24, dtype=object).reshape(12, 2)
    if ending == ".npy":
        np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    else:
        np.savez(tmp_path / "a.npz", x=objects)
    row = {"file": f"a{ending}", "dataset": "x" if ending == ".npz" else ""}
    with pytest.raises(RecordError, match=f"a{ending}") as caught:
        records(table(tmp_path, GOOD | row))
    assert caught.value.reason == "array-unreadable" and not sprung.exists()


@pytest.mark.parametrize("dtype", ["complex64", "bool", "U3", "longdouble"])
def test_arrays_that_are_no_plain_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((12, 100), dtype=dtype))
    with pytest.raises(RecordError, match="save integers or floats") as caught:
        records(table(tmp_path, GOOD))
    assert caught.value.reason == "array-unreadable"


def test_infinite_values_are_refused(tmp_path: Path, real_LT: Signal) -> None:
    broken = real_LT.copy()
    broken[4, 4] = np.inf
    np.save(tmp_path / "a.npy", broken)
    with pytest.raises(RecordError, match="infinite") as caught:
        records(table(tmp_path, GOOD))
    assert caught.value.reason == "signal-infinite"


@pytest.mark.parametrize("ending", [".npy", ".npz", ".hdf5"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "missing"])
def test_a_damaged_file_is_refused_with_its_path(tmp_path: Path, real_LT: Signal, ending: str, damage: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".npy":
        np.save(path, real_LT)
    elif ending == ".npz":
        np.savez_compressed(path, x=real_LT)
    else:
        with h5py.File(path, "w") as file:
            file["x"] = real_LT
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello\n" * 99}[damage])
    row = {"file": path.name, "dataset": "" if ending == ".npy" else "x"}
    with pytest.raises(RecordError, match=f"a{ending}") as caught:
        records(table(tmp_path, GOOD | row))
    assert caught.value.reason == ("file-missing" if damage == "missing" else "array-unreadable")


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
def test_bytes_that_changed_in_a_packed_array_are_refused(tmp_path: Path, real_LT: Signal, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".npz":
        np.savez_compressed(path, x=real_LT)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=real_LT, compression="gzip", chunks=real_LT.shape)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"a{ending} cannot be read") as caught:
        records(table(tmp_path, GOOD | {"file": path.name, "dataset": "x"}))
    assert caught.value.reason == "array-unreadable"


@pytest.mark.parametrize("ending", [".npz", ".hdf5"])
def test_an_array_that_is_not_in_the_file_is_refused_with_those_that_are(
    tmp_path: Path, real_LT: Signal, ending: str
) -> None:
    if ending == ".npz":
        np.savez(tmp_path / "a.npz", ecg=real_LT, other=real_LT)
    else:
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file["ecg"], file["other"] = real_LT, real_LT
            file.create_group("group")
    for name in ("x", "group"):
        with pytest.raises(RecordError, match=rf"no array '{name}' \(it has: ecg, .*other\)"):
            records(table(tmp_path, GOOD | {"file": f"a{ending}", "dataset": name}))


def test_an_archive_is_converted_and_the_good_records_are_kept(tmp_path: Path, ecg_data: Path, real_LT: Signal) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = []
    for number in range(1, 6):
        signal = wfdb.rdrecord(str(ecg_data / f"ludb/data/{number}"), physical=False).d_signal.T * 1e-3
        np.save(source / f"e{number}.npy", signal.astype(np.float32))
        rows.append({"record": f"e{number}", "file": f"e{number}.npy", "patient": f"p{number // 2}"})
    np.save(source / "turned.npy", real_LT.T)
    rows.append({"record": "turned", "file": "turned.npy", "patient": "p9"})
    root = table(source, *rows, rate_hz=500, unit="mV", leads=list(LEADS), title="Ward three")
    manifest = convert(load_database("numpy-folder"), root, tmp_path / "shards", Options())
    assert (manifest.title, manifest.seen, manifest.kept, manifest.patients) == ("Ward three", 6, 5, 3)
    assert manifest.refused == {"array-mismatch": 1}


@pytest.mark.parametrize("item", [h5py.Empty("f8"), np.dtype("f8"), h5py.SoftLink("/nowhere")])
def test_what_is_no_array_in_an_hdf5_file_is_refused_with_a_short_list(tmp_path: Path, item: object) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["item"] = item
        for number in range(1000):
            file[f"exam{number:04d}"] = 1.0
    table(tmp_path, {"record": "a", "file": "all.h5", "dataset": "item"})
    with pytest.raises(RecordError, match="has no array 'item' ") as caught:
        records(tmp_path)
    assert caught.value.reason == "array-unreadable" and len(str(caught.value)) < 300


@pytest.mark.parametrize(("local", "central", "value"), [(6, 8, 1), (8, 10, 98)])
def test_an_npz_that_cannot_be_unpacked_refuses_its_record(
    real_LT: Signal, tmp_path: Path, local: int, central: int, value: int
) -> None:
    # A password's flag, and a packing that nobody writes, in both headers of a member.
    np.savez(tmp_path / "a.npz", ecg=real_LT)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"PK\3\4") + local] |= value
    content[content.index(b"PK\1\2") + central] |= value
    (tmp_path / "a.npz").write_bytes(content)
    table(tmp_path, {"record": "a", "file": "a.npz", "dataset": "ecg"})
    with pytest.raises(RecordError, match=r"a\.npz cannot be read") as caught:
        records(tmp_path)
    assert caught.value.reason == "array-unreadable"
