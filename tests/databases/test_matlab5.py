"""The strict MATLAB reader against SciPy's, and against damage of every kind."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from ecgfm.databases._matlab5 import read_struct
from ecgfm.errors import RecordError

RNG = np.random.default_rng(0)


def save(folder: Path, *, compressed: bool = True, **variables: Any) -> Path:
    path = folder / "x.mat"
    scipy.io.savemat(path, variables, do_compression=compressed)
    return path


def refusal(path: Path) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read_struct(path, "ECG")
    return caught.value


def test_genuine_records_are_those_of_scipy(ecg_data: Path) -> None:
    paths = sorted((ecg_data / "cpsc2018").glob("*.mat"))
    assert len(paths) == 5
    for path in paths:
        ours, theirs = read_struct(path, "ECG"), scipy.io.loadmat(path)["ECG"][0, 0]
        assert tuple(ours) == theirs.dtype.names == ("sex", "age", "data")
        np.testing.assert_array_equal(ours["data"], theirs["data"])
        np.testing.assert_array_equal(ours["age"], theirs["age"])
        assert ours["sex"] == theirs["sex"][0]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4"])
def test_every_type_of_number_comes_back_exactly(tmp_path: Path, dtype: str, compressed: bool) -> None:
    values = (RNG.normal(size=(3, 5)) * 50).astype(dtype)
    fields = read_struct(save(tmp_path, compressed=compressed, ECG={"data": values, "one": values[:1, :1]}), "ECG")
    np.testing.assert_array_equal(fields["data"], values.astype(np.float64))
    np.testing.assert_array_equal(fields["one"], values[:1, :1].astype(np.float64))


@pytest.mark.parametrize("text", ["", "F", "Male", "Femme \u00e9\u6f22"])
def test_texts_of_any_length_come_back(tmp_path: Path, text: str) -> None:
    fields = read_struct(save(tmp_path, before=np.zeros(3), ECG={"sex": text, "n": np.eye(2)}), "ECG")
    assert fields["sex"] == text
    np.testing.assert_array_equal(fields["n"], np.eye(2))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.eye(2), "ECG is not a struct"),
        ([{"a": 1}, {"a": 2}], "ECG is not a struct"),
        ({"a": {"b": 1}}, "field a is not a matrix of real numbers"),
        ({"a": np.array([1, "x"], dtype=object)}, "field a is not a matrix of real numbers"),
        ({"a": np.eye(2) * 1j}, "field a is not a matrix of real numbers"),
        ({"a": scipy.sparse.eye_array(3, format="csc")}, "field a is not a matrix of real numbers"),
        ({"a": np.zeros((2, 2, 2))}, "not that of a matrix"),
    ],
)
def test_anything_but_a_struct_of_matrices_and_texts_is_refused(tmp_path: Path, value: Any, words: str) -> None:
    error = refusal(save(tmp_path, ECG=value))
    assert error.reason == "file-malformed" and words in error.message and "x.mat" in error.message


def test_a_file_without_the_variable_is_refused(tmp_path: Path) -> None:
    assert "holds no variable ECG" in refusal(save(tmp_path, other={"a": 1})).message


@pytest.mark.parametrize(
    "content", [b"", b"MATLAB 5.0", b"not a MATLAB file" * 20, b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    error = refusal(tmp_path / "x.mat")
    assert error.reason == "file-malformed" and "version 5" in error.message


def test_version_4_is_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"val": np.zeros((12, 10), np.int16)}, format="4")
    assert "version 5" in refusal(tmp_path / "x.mat").message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "x.mat").reason == "file-missing"


def test_what_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecgfm.databases._matlab5.LARGEST_BYTES", 1000)
    path = save(tmp_path, ECG={"a": np.zeros((100, 100))})
    assert "larger than 1,000 bytes" in refusal(path).message


def test_no_cut_of_a_file_gives_a_record(tmp_path: Path) -> None:
    for compressed in (True, False):
        path = save(tmp_path, compressed=compressed, ECG={"sex": "Male", "data": RNG.normal(size=(12, 6))})
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            assert refusal(path).reason == "file-malformed"


def test_no_changed_bit_of_a_compressed_file_goes_unnoticed(ecg_data: Path, tmp_path: Path) -> None:
    content = (ecg_data / "cpsc2018/A1980.mat").read_bytes()
    path = tmp_path / "x.mat"
    chooser = random.Random(0)
    for _ in range(60):
        changed = bytearray(content)
        changed[chooser.randrange(128, len(content))] ^= 1 << chooser.randrange(8)
        path.write_bytes(changed)
        assert refusal(path).reason == "file-malformed"


@given(data=st.data())
def test_a_changed_plain_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # No checksum there: a changed value cannot be noticed, but it must never end in another error or in a crash.
    folder = tmp_path_factory.mktemp("plain")
    path = save(folder, compressed=False, ECG={"sex": "Male", "age": 52.0, "data": np.ones((12, 4))})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(128, 500))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        fields = read_struct(path, "ECG")
    except RecordError as error:
        assert error.reason == "file-malformed"
    else:
        assert all(isinstance(value, str) or value.dtype == np.float64 for value in fields.values())


def test_a_checksum_that_is_wrong_is_refused(tmp_path: Path) -> None:
    plain = save(tmp_path, compressed=False, ECG={"a": np.eye(3)}).read_bytes()
    packed = zlib.compress(plain[128:])
    path = tmp_path / "x.mat"
    path.write_bytes(plain[:128] + struct.pack("<2I", 15, len(packed)) + packed)
    np.testing.assert_array_equal(read_struct(path, "ECG")["a"], np.eye(3))
    packed = packed[:-1] + bytes([packed[-1] ^ 1])
    path.write_bytes(plain[:128] + struct.pack("<2I", 15, len(packed)) + packed)
    assert refusal(path).reason == "file-malformed"
