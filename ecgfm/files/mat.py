"""MATLAB files of versions 4, 5 (also called 6 and 7) and 7.3, with what is told of them; see `_arrays`.

A file of the Challenge has a WFDB header beside it, by which it is read: then nothing has to be told. A field of a
struct is named with a dot, `ECG.data`. Version 4 is read by SciPy, version 5 by our own strict reader (`_matlab5` says
why), version 7.3 is HDF5, whose axes are MATLAB's in reverse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ecgfm.databases._matlab5 import read_arrays
from ecgfm.files._arrays import chosen, facts, recordings_of
from ecgfm.files.base import FileFormat, Recording, Told, reads
from ecgfm.files.hdf5 import datasets

_HDF5_MARK = b"\x89HDF\r\n\x1a\n"
_HDF5_MARK_AT = 512  # behind MATLAB's own header


class Mat(FileFormat):
    """MATLAB files; see the module."""

    title = "MATLAB"
    endings = (".mat",)
    self_describing = False

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the recordings of a matrix; see `FileFormat.read`."""
        known = facts(path, told)
        with reads(path, RuntimeError, LookupError, TypeError, NotImplementedError, struct.error):
            with path.open("rb") as file:
                head = file.read(_HDF5_MARK_AT + len(_HDF5_MARK))
            if head.endswith(_HDF5_MARK) or head.startswith(_HDF5_MARK):
                import h5py

                with h5py.File(path, "r", locking=False) as file:
                    # Compared as MATLAB shows them; only the chosen one is read.
                    arrays: dict[str, Any] = datasets(file)
                    name = chosen(path, {name: tuple(one.shape[::-1]) for name, one in arrays.items()}, known)
                    yield from recordings_of(np.asarray(arrays[name][...]).T, path, known, what=name)
                return
            arrays = _version_4(path) if 0 in head[:4] else dict(read_arrays(path))
            name = chosen(path, {name: array.shape for name, array in arrays.items()}, known)
            yield from recordings_of(arrays[name], path, known, what=name)


def _version_4(path: Path) -> dict[str, Any]:
    # The C code of SciPy, for version 5, is not run: a zero among the first four bytes is how it tells version 4.
    import scipy.io

    found = scipy.io.loadmat(path)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and not name.startswith("__")
    }
