"""NumPy arrays, .npy and .npz, with what is told of them; see `_arrays`. Arrays of Python objects are refused."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecgfm.errors import RecordError
from ecgfm.files._arrays import chosen, facts, recordings_of
from ecgfm.files.base import FileFormat, Recording, Told, reads

# zipfile raises RuntimeErrors where a password or an unknown packing is met; NumPy reads the header of an array as a
# Python literal, and asks for the memory that it announces.
_OF_DAMAGE = (
    *(RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, TypeError),
    *(LookupError, OverflowError, MemoryError),
)


class Npy(FileFormat):
    """NumPy arrays; see the module."""

    title = "NumPy"
    endings = (".npy", ".npz")
    self_describing = False

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the recordings of an array; see `FileFormat.read`."""
        known = facts(path, told)
        with reads(path, *_OF_DAMAGE):
            if path.suffix.lower() == ".npy":
                # Reads no other format and never unpickles; an array of many recordings stays on the disk.
                yield from recordings_of(np.lib.format.open_memmap(path, mode="r"), path, known)
                return
            archive = np.load(path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise RecordError("file-unreadable", f"{path} is no .npz file, in spite of its name")
            with archive:
                # One that holds objects raises when it is read, and is none that could be the signal.
                arrays = {name: archive[name] for name in archive.files if known.variable in (None, name)}
                shapes = {name: array.shape for name, array in arrays.items()}
                name = chosen(path, shapes or dict.fromkeys(archive.files, ()), known)
                yield from recordings_of(arrays[name], path, known, what=name)
