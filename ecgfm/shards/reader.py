"""Read shards by index: every shard is a memory map, every record an offset into it.

Nothing is decoded: a window of a record is a slice of int16 in the page cache, copied once into the
caller's batch. Any WebDataset client can read the same files; this reader needs no library for it.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.manifest import Manifest, read_manifest

_NUMBERS = ("offset", "samples", "microvolt_per_count", "json_offset", "json_bytes")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One record of a shard."""

    counts_LT: NDArray[np.int16]
    microvolt_per_count: float
    rate_hz: float
    record: str
    patient: str
    """The record's own name where the database does not say."""
    start_s: float
    """Where it starts in a longer recording."""
    flags: dict[str, list[str]]
    """Leads by quality flag."""
    database: str
    labels: dict[str, list[str]]
    age: float | None
    sex: str | None
    fold: int | None
    split: str

    @property
    def signal_LT(self) -> NDArray[np.float64]:
        """The signal in millivolt."""
        return self.counts_LT * np.float64(self.microvolt_per_count * 1e-3)


class Shards:
    """The records of one or more folders of shards, numbered from 0 in the order given.

    Args:
        folders: Folders that `tools/convert.py` wrote.

    Raises:
        ShardError: A manifest or shard is missing, cut, or not what the manifest says.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self.manifests: tuple[Manifest, ...] = tuple(read_manifest(folder) for folder in self.folders)
        self._paths: list[Path] = []
        self._maps: list[mmap.mmap | None] = []
        columns: dict[str, list[NDArray[Any]]] = {}
        splits: list[str] = []
        for number, (folder, manifest) in enumerate(zip(self.folders, self.manifests, strict=True)):
            for shard in manifest.shards:
                path = folder / shard.name
                _check_size(path, shard.bytes)
                shared = {"folder": number, "shard": len(self._paths)}
                for name, value in shared.items():
                    columns.setdefault(name, []).append(np.full(shard.samples, value, dtype=np.int64))
                for name in _NUMBERS:
                    columns.setdefault(name, []).append(np.asarray(getattr(shard.members, name)))
                splits += [shard.split] * shard.samples
                self._paths.append(path)
                self._maps.append(None)
        column = {name: np.concatenate(values) for name, values in columns.items()}
        if not column:
            raise ShardError(f"there is no record in {', '.join(map(str, self.folders)) or 'no folder'}")
        self.folder_of: NDArray[np.int64] = column["folder"]
        """Which of the folders each record is in."""
        self.split_of: NDArray[np.str_] = np.asarray(splits)
        """`all`, or the database's published `train`, `val`, `test`."""
        self.num_samples: NDArray[np.int64] = column["samples"].astype(np.int64)
        """T of each record."""
        self.microvolt_per_count: NDArray[np.float32] = column["microvolt_per_count"].astype(np.float32)
        self._shard = column["shard"]
        self._offset = column["offset"]
        self._json = (column["json_offset"], column["json_bytes"])

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def rate_hz(self) -> float:
        """The one sampling rate of all records.

        Raises:
            ShardError: The records have several; the message says which folder has which.
        """
        rates = {rate for manifest in self.manifests for rate in manifest.rates_hz}
        if len(rates) != 1:
            listed = ", ".join(
                f"{folder}: {' and '.join(m.rates_hz)} Hz" for folder, m in zip(self.folders, self.manifests)
            )
            raise ShardError(f"the shards have several sampling rates ({listed}); convert them with one --rate-hz")
        return float(rates.pop())

    def flagged(self, flags: Sequence[str]) -> NDArray[np.bool_]:
        """Return which samples have one of the quality flags, shape (N,)."""
        wanted = set(flags)
        listed = (text for manifest in self.manifests for shard in manifest.shards for text in shard.members.flags)
        return np.fromiter((bool(text) and not wanted.isdisjoint(text.split(",")) for text in listed), dtype=bool)

    def counts(self, index: int) -> NDArray[np.int16]:
        """Return record `index` as a read-only view of the shard, shape (12, T)."""
        samples = int(self.num_samples[index])
        view = np.frombuffer(
            self._map(int(self._shard[index])), dtype="<i2", count=len(LEADS) * samples, offset=int(self._offset[index])
        )
        return view.reshape(len(LEADS), samples)

    def about(self, index: int) -> dict[str, Any]:
        """Return the JSON member of record `index`."""
        start, size = int(self._json[0][index]), int(self._json[1][index])
        content: dict[str, Any] = json.loads(self._map(int(self._shard[index]))[start : start + size])
        return content

    def sample(self, index: int) -> Sample:
        """Return record `index` with what is known about it."""
        about = self.about(index)
        return Sample(
            counts_LT=self.counts(index),
            microvolt_per_count=about["microvolt_per_count"],
            rate_hz=about["rate_hz"],
            record=about["record"],
            patient=about["patient"] if about["patient"] is not None else about["record"],
            start_s=about["start_s"],
            flags=about["flags"],
            database=about["database"],
            labels=about["labels"],
            age=about["age"],
            sex=about["sex"],
            fold=about["fold"],
            split=about["split"],
        )

    def _map(self, shard: int) -> mmap.mmap:
        """Return a shard's memory map, opened and looked at when it is first needed."""
        opened = self._maps[shard]
        if opened is None:
            path = self._paths[shard]
            with path.open("rb") as file:
                opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            first = int(np.searchsorted(self._shard, shard))
            wanted = f"'shape': ({len(LEADS)}, {int(self.num_samples[first])})".encode()
            header = opened[max(int(self._offset[first]) - 128, 0) : int(self._offset[first])]
            if wanted not in header or b"'<i2'" not in header:
                raise ShardError(f"{path} is not the shard that its manifest describes; run tools/check_shards.py")
            self._maps[shard] = opened
        return opened


def _check_size(path: Path, wanted: int) -> None:
    if not path.is_file():
        raise ShardError(f"{path} is missing; run the same tools/convert.py again, it writes what is missing")
    size = path.stat().st_size
    if size != wanted:
        raise ShardError(
            f"{path} has {size} bytes, its manifest says {wanted}: it is cut or damaged; "
            "run the same tools/convert.py again, it writes what is missing"
        )
