"""Write the tar of a shard: members of samples, hashed on their way to the disk.

A member's header is USTAR with neither time nor owner, so that the bytes depend on the content alone. It is put
together from a template: the standard library's way costs more than the copy of a ten-second recording.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import RecordError

_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)


def _template() -> bytes:
    header = bytearray(tarfile.TarInfo("").tobuf(format=tarfile.USTAR_FORMAT))
    header[_SIZE] = bytes(12)
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)


@functools.lru_cache(maxsize=256)
def array_header(rows: int, samples: int) -> bytes:
    """Return what stands before the numbers in a .npy file; NumPy pads it to a multiple of 64 bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i2", "fortran_order": False, "shape": (rows, samples)})
    return header.getvalue()


def member_header(name: str, size: int) -> bytes:
    """Return the 512 bytes before a member of a tar.

    Raises:
        RecordError: `name-too-long`: USTAR holds 100 bytes.
    """
    encoded = name.encode()
    if len(encoded) > _NAME.stop:
        raise RecordError("name-too-long", f"{name} has {len(encoded)} bytes, a shard's member at most {_NAME.stop}")
    octal = b"%011o\0" % size
    header = bytearray(_TEMPLATE)
    header[: len(encoded)] = encoded
    header[_SIZE] = octal
    # Name and size are 0 in the template.
    header[_CHECKSUM] = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(octal))
    return bytes(header)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample was written, as the manifest's index says it."""

    offset: int
    json_offset: int
    json_bytes: int
    sha256: str
    """Of the numbers."""


class TarWriter:
    """Writes samples into a file, counting and hashing its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def sample(self, key: str, counts_LT: NDArray[np.int16], about: Mapping[str, Any]) -> Place:
        """Write the two members of a sample, `<key>.ecg.npy` and `<key>.json`.

        Args:
            key: Name without a dot, at which WebDataset cuts it.
            counts_LT: Shape (12, T).
            about: What the JSON says, besides the SHA-256 of the numbers.

        Raises:
            RecordError: `name-too-long`.
        """
        counts_LT = np.ascontiguousarray(counts_LT, dtype="<i2")
        numbers = counts_LT.data.cast("B")
        digest = hashlib.sha256(numbers).hexdigest()
        text = json.dumps({**about, "sha256": digest}, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        array = array_header(*counts_LT.shape)
        size = len(array) + len(numbers)
        before = member_header(f"{key}.ecg.npy", size) + array
        between = _padding(size) + member_header(f"{key}.json", len(text))
        offset = self.bytes + len(before)
        self._write(before)
        self._write(numbers)
        json_offset = self.bytes + len(between)
        self._write(between + text + _padding(len(text)))
        return Place(offset=offset, json_offset=json_offset, json_bytes=len(text), sha256=digest)

    def end(self) -> None:
        """Write the two empty blocks that end a tar."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.bytes += len(content)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
