"""MATLAB files of version 5: matrices, and one struct of numbers and texts, read strictly.

"MAT-File Format", The MathWorks, chapter 1 (level 5). A file is a header of 128 bytes and elements, each a tag of
type and length with its content; an element may be a compressed one (zlib, which carries a checksum).

Why not `scipy.io.loadmat`: with one to three bits of a file changed it ended the whole process with a segmentation
fault (SciPy 1.17.1; 3 of 188 changed files that were not compressed), and a worker that dies takes the conversion
with it. A struct of plain arrays is all that is needed here, and anything else in it is refused; nothing is ever
executed or unpickled.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_header import read_file
from ecgfm.errors import RecordError

LARGEST_BYTES = 1 << 28
"""A compressed element that grows beyond this is refused: 256 MiB are 90 minutes of twelve leads at 500 Hz."""

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "utf-8", 2: "utf-8", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_STRUCT_CLASS, _TEXT_CLASS = 2, 4
_NUMBER_CLASSES = range(6, 16)  # double, single, and the integers
_COMPLEX_FLAG = 0x800

Fields = dict[str, NDArray[np.float64] | str]


def read_struct(path: Path, name: str) -> Fields:
    """Read the struct called `name`, of shape 1 x 1.

    Returns:
        By name of the field: a matrix in float64 (column-major, as stored) or a text.

    Raises:
        RecordError: `file-missing`; `file-malformed`: damaged, of another version, or holding anything else.
    """
    content = read_file(path)
    _check_version(path, content)
    try:
        return _struct_called(name, content[_HEADER_BYTES:])
    except (_MalformedError, zlib.error, UnicodeDecodeError) as error:
        raise RecordError("file-malformed", f"{path}: {error}; download it again") from error


def read_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read every matrix of real numbers: a variable by its name, a field of a 1 x 1 struct as `struct.field`.

    What is neither (texts, cells, structs in structs) is passed over.

    Raises:
        RecordError: As `read_struct`.
    """
    content = read_file(path)
    _check_version(path, content)
    try:
        return dict(_arrays(content[_HEADER_BYTES:]))
    except (_MalformedError, zlib.error) as error:
        raise RecordError("file-malformed", f"{path}: {error}; download it again") from error


class _MalformedError(Exception):
    """What is wrong, without the path."""


def _check_version(path: Path, content: bytes) -> None:
    if not content.startswith(b"MATLAB 5.0") or content[124:128] != b"\x00\x01IM":
        raise RecordError(
            "file-malformed",
            f"{path} is not a little-endian MATLAB file of version 5 (it begins with {content[:10]!r}); give the file "
            "as published",
        )


def _struct_called(name: str, content: bytes) -> Fields:
    for array in _matrices(content):
        if array.name == name:
            return {field: _value(field, value) for field, value in _fields(array).items()}
    raise _MalformedError(f"it holds no variable {name}")


def _arrays(content: bytes) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for array in _matrices(content):
        if array.kind == _STRUCT_CLASS and array.shape == (1, 1):
            named = {f"{array.name}.{field}": value for field, value in _fields(array).items()}
        else:
            named = {array.name: array}
        for name, matrix in named.items():
            if matrix.kind in _NUMBER_CLASSES and not matrix.complex:
                value = _value(name, matrix)
                assert not isinstance(value, str)
                yield name, value


def _matrices(content: bytes) -> Iterator[_Matrix]:
    for kind, element in _elements(content):
        if kind == _COMPRESSED:
            kind, element = _one(_decompressed(element))
        if kind == _MATRIX:
            yield _Matrix(element)


class _Matrix:
    """What a matrix element says of itself, and the elements that follow."""

    def __init__(self, content: bytes) -> None:
        parts = list(_elements(content))
        if [kind for kind, _ in parts[:3]] != [_UINT32, _INT32, _INT8] or len(parts[0][1]) != 8:
            raise _MalformedError("a matrix lacks its flags, shape or name")
        flags = int.from_bytes(parts[0][1][:4], "little")
        self.kind = flags & 0xFF
        self.complex = bool(flags & _COMPLEX_FLAG)
        self.shape = tuple(int(size) for size in _numbers(_INT32, parts[1][1]))
        self.name = parts[2][1].decode("ascii", errors="replace")
        self.parts = parts[3:]
        if len(self.shape) != 2 or min(self.shape) < 0:
            raise _MalformedError(f"shape {self.shape} is not that of a matrix")


def _fields(array: _Matrix) -> dict[str, _Matrix]:
    if array.kind != _STRUCT_CLASS or array.shape != (1, 1):
        raise _MalformedError(f"{array.name} is not a struct of shape 1 x 1 (class {array.kind}, shape {array.shape})")
    if [kind for kind, _ in array.parts[:2]] != [_INT32, _INT8] or len(array.parts[0][1]) != 4:
        raise _MalformedError(f"{array.name} lacks the names of its fields")
    length = int.from_bytes(array.parts[0][1], "little")
    text = array.parts[1][1]
    if length <= 0 or len(text) % length:
        raise _MalformedError(f"{array.name} has {len(text)} bytes of field names of {length} bytes each")
    cells = (text[start : start + length] for start in range(0, len(text), length))
    names = [cell.split(b"\0", 1)[0].decode("ascii", errors="replace") for cell in cells]
    values = array.parts[2:]
    if len(values) != len(names) or len(set(names)) != len(names) or any(kind != _MATRIX for kind, _ in values):
        raise _MalformedError(f"{array.name} has {len(names)} names of fields and {len(values)} values")
    return {name: _Matrix(element) for name, (_, element) in zip(names, values, strict=True)}


def _value(name: str, array: _Matrix) -> NDArray[np.float64] | str:
    size = math.prod(array.shape)
    if array.complex or len(array.parts) != 1:
        raise _MalformedError(f"field {name} is not a matrix of real numbers or a text (class {array.kind})")
    kind, content = array.parts[0]
    if array.kind == _TEXT_CLASS and kind in _TEXTS:
        return content.decode(_TEXTS[kind])
    if array.kind not in _NUMBER_CLASSES or kind not in _NUMBERS:
        raise _MalformedError(f"field {name} is neither numbers nor text (class {array.kind}, type {kind})")
    values = _numbers(kind, content)
    if values.size != size:
        raise _MalformedError(f"field {name} has {values.size} values, its shape {array.shape} needs {size}")
    return values.astype(np.float64).reshape(array.shape, order="F")


def _numbers(kind: int, content: bytes) -> NDArray[np.generic]:
    dtype = np.dtype(_NUMBERS[kind])
    if len(content) % dtype.itemsize:
        raise _MalformedError(f"{len(content)} bytes are not a whole number of {dtype.name}")
    return np.frombuffer(content, dtype=dtype)


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of elements one after another."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise _MalformedError("it ends within the tag of an element: truncated")
        kind, length = struct.unpack_from("<2I", content, at)
        start, step = at + 8, 8
        if kind >> 16:  # a small element: length and type share four bytes, the content has the other four
            kind, length, start, step = kind & 0xFFFF, kind >> 16, at + 4, 4
            if length > 4:
                raise _MalformedError(f"a small element says it has {length} bytes")
        if start + length > len(content):
            raise _MalformedError(f"it ends within an element of {length:,} bytes: truncated")
        yield kind, content[start : start + length]
        # Elements begin at multiples of eight bytes, except that nothing is put after a compressed one.
        at = start + (length if kind == _COMPRESSED else -(-length // step) * step)


def _one(content: bytes) -> tuple[int, bytes]:
    found = list(_elements(content))
    if len(found) != 1:
        raise _MalformedError(f"a compressed element holds {len(found)} elements")
    return found[0]


def _decompressed(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(content, LARGEST_BYTES)
    if not stream.eof:
        raise _MalformedError(f"a compressed element is truncated, or larger than {LARGEST_BYTES:,} bytes")
    return plain
