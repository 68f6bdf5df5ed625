"""Arrays in HDF5 files, with what is told of them; see `_arrays`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecgfm.files._arrays import chosen, facts, recordings_of
from ecgfm.files.base import FileFormat, Recording, Told, reads


class Hdf5(FileFormat):
    """Arrays in HDF5 files; see the module."""

    title = "HDF5"
    endings = (".h5", ".hdf5")
    self_describing = False

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the recordings of a dataset, one after another; see `FileFormat.read`."""
        known = facts(path, told)
        with reads(path, RuntimeError, LookupError):
            import h5py

            # Locks are for writers, and some network disks have none.
            with h5py.File(path, "r", locking=False) as file:
                arrays = datasets(file)
                name = chosen(path, {name: tuple(array.shape) for name, array in arrays.items()}, known)
                yield from recordings_of(arrays[name], path, known, what=name)


def datasets(file: Any) -> dict[str, Any]:
    """Return the datasets of numbers of an HDF5 file at any depth, by their path with dots."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and item.dtype.kind in "iuf":
            found[name.replace("/", ".")] = item

    file.visititems(visit)
    return found
