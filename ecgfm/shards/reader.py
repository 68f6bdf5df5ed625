"""Read shards by index: every shard is a memory map, every record an offset into it.

Nothing is decoded: a window of a record is a slice of int16 in the page cache, copied once into the
caller's batch. Any WebDataset client can read the same files; this reader needs no library for it.

A whole batch is copied in one call, which looks at each shard and at each record's header once; tools/bench_loader.py
says what that costs, and what else was tried.

Shapes: B windows, L leads, T samples.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.manifest import Manifest, Shard, read_manifest
from ecgfm.shards.tar import array_header

PROBES = 4
"""Records of a batch that are looked for in memory, before the system is asked to read all of them."""
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
        here: Look whether the shards are there. When they are not, the manifests tell all but the signals.

    Raises:
        ShardError: A manifest or shard is missing, cut, or not what the manifest says.
    """

    def __init__(self, folders: Sequence[Path | str], *, here: bool = True) -> None:
        self.folders = tuple(Path(folder) for folder in folders)
        self.manifests: tuple[Manifest, ...] = tuple(read_manifest(folder) for folder in self.folders)
        self._here = here
        self._paths: list[Path] = []
        self._bytes: list[int] = []
        self._maps: list[mmap.mmap | None] = []
        self._counts: list[NDArray[np.int16] | None] = []
        self._files: list[int | None] = []
        self._opening = threading.Lock()
        columns: dict[str, list[NDArray[Any]]] = {}
        splits: list[str] = []
        for number, (folder, manifest) in enumerate(zip(self.folders, self.manifests, strict=True)):
            for shard in manifest.shards:
                path = folder / shard.name
                shared = {"folder": number, "shard": len(self._paths)}
                for name, value in shared.items():
                    columns.setdefault(name, []).append(np.full(shard.samples, value, dtype=np.int64))
                for name in _NUMBERS:
                    columns.setdefault(name, []).append(np.asarray(getattr(shard.members, name)))
                splits += [shard.split] * shard.samples
                self._paths.append(path)
                self._bytes.append(shard.bytes)
                self._maps.append(None)
                self._counts.append(None)
                self._files.append(None)
        if here:
            self.check_sizes()
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
        self.shard_of: NDArray[np.int64] = column["shard"]
        """Which shard each record is in, over all folders; records of a shard follow each other."""
        self._offset = column["offset"]
        self._check_places()
        self._json = (column["json_offset"], column["json_bytes"])

    def __len__(self) -> int:
        return len(self.shard_of)

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

    def check_sizes(self) -> None:
        """Look whether all shards are there, in their size.

        Raises:
            ShardError: One is not.
        """
        for path, size in zip(self._paths, self._bytes, strict=True):
            _check_size(path, size)
        self._here = True
        _allow_open_files(len(self._paths))

    def path(self, shard: int) -> Path:
        """Return where a shard is, or would be."""
        return self._paths[shard]

    def num_bytes(self, shard: int) -> int:
        """Return the size of a shard, as its manifest says it."""
        return self._bytes[shard]

    def name(self, index: int) -> str:
        """Return the name of record `index`, from the manifest."""
        shard, first = self._described(index)
        return shard.members.record[index - first]

    def flagged(self, flags: Sequence[str]) -> NDArray[np.bool_]:
        """Return which samples have one of the quality flags, shape (N,)."""
        wanted = set(flags)
        listed = (text for manifest in self.manifests for shard in manifest.shards for text in shard.members.flags)
        return np.fromiter((bool(text) and not wanted.isdisjoint(text.split(",")) for text in listed), dtype=bool)

    def counts(self, index: int) -> NDArray[np.int16]:
        """Return record `index` as a read-only view of the shard, shape (12, T)."""
        return self._view(index, self._map(int(self.shard_of[index])))

    def copy_windows(
        self,
        index_B: NDArray[np.int64],
        start_B: NDArray[np.int64],
        out_BLT: NDArray[np.int16],
        *,
        hashed: bool = False,
    ) -> dict[int, ShardError]:
        """Copy windows of records; threads may share it. Each is checked as `check` does, its shard once a call.

        Args:
            index_B: Records.
            start_B: The sample that each window begins at.
            out_BLT: Where they go, shape (B, 12, T), in one piece.
            hashed: Compare each record's SHA-256, too.

        Returns:
            What is wrong, by row; what is in such a row of `out_BLT` means nothing.
        """
        window = out_BLT.shape[2]
        flat_BN = out_BLT.reshape(len(out_BLT), -1)
        opened: dict[int, tuple[mmap.mmap, NDArray[np.int16]] | ShardError] = {}
        headers = {samples: array_header(len(LEADS), samples) for samples in set(self.num_samples[index_B].tolist())}
        wrong: dict[int, ShardError] = {}
        # Lists, because NumPy's own numbers cost a hundred nanoseconds each to take out.
        columns = (index_B, self.shard_of[index_B], self._offset[index_B], self.num_samples[index_B], start_B)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for row, (index, shard, offset, samples, start) in enumerate(rows):
            if shard not in opened:
                opened[shard] = self._look(shard)
            found = opened[shard]
            if isinstance(found, ShardError):
                wrong[row] = found
                continue
            content, counts = found
            record = counts[offset // 2 : offset // 2 + len(LEADS) * samples]
            if samples == window:
                flat_BN[row] = record
            else:
                out_BLT[row] = record.reshape(len(LEADS), samples)[:, start : start + window]
            # Looked at after the copy, which waited for the disk without Python's lock; this holds it.
            header = headers[samples]
            if content[offset - len(header) : offset] != header:
                wrong[row] = self._damaged(index, _other_header(samples))
            elif hashed:
                try:
                    self.cut(index, memoryview(content))
                except ShardError as error:
                    wrong[row] = error
        return wrong

    def expect(self, index_B: NDArray[np.int64]) -> None:
        """Have the system read records ahead, in the order in which they lie, unless it has them in memory already.

        A few of them tell which: asking for a record costs a quarter of its copy even when it is there. Where the
        system does not say what it has, all are asked for; where it cannot be asked, this does nothing.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        # Records are numbered in the order in which they lie.
        index_B = np.sort(index_B)
        probed = index_B[np.linspace(0, len(index_B) - 1, PROBES, dtype=np.int64)]
        if all(self._in_memory(index) for index in probed.tolist()):
            return
        columns = (self.shard_of[index_B], self._offset[index_B], self.num_samples[index_B])
        for shard, offset, samples in zip(*(column.tolist() for column in columns), strict=True):
            file = self._file(shard)
            if file is not None:
                os.posix_fadvise(file, offset, 2 * len(LEADS) * samples, os.POSIX_FADV_WILLNEED)

    def _in_memory(self, index: int) -> bool:
        """Tell whether the middle of a record is in the page cache, where the system says so."""
        file = self._file(int(self.shard_of[index]))
        middle = int(self._offset[index]) + len(LEADS) * int(self.num_samples[index])
        if file is None:
            return True  # whoever reads it says what is wrong
        try:
            return hasattr(os, "RWF_NOWAIT") and os.preadv(file, [bytearray(1)], middle, os.RWF_NOWAIT) == 1
        except OSError:
            return False

    def _file(self, shard: int) -> int | None:
        """Return a shard's open file, which its memory map does not give away; None when there is none."""
        if self._files[shard] is None:
            with self._opening:
                if self._files[shard] is None:
                    try:
                        opened = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                    except OSError:
                        return None
                    weakref.finalize(self, os.close, opened)
                    self._files[shard] = opened
        return self._files[shard]

    def _look(self, shard: int) -> tuple[mmap.mmap, NDArray[np.int16]] | ShardError:
        """Return a shard's memory map, as int16 too, or what is wrong with it."""
        try:
            content = self._map(shard)
        except ShardError as error:
            return error
        counts = self._counts[shard]
        if counts is None:
            counts = np.frombuffer(content, dtype="<i2", count=len(content) // 2)
            self._counts[shard] = counts
        return content, counts

    def _check_places(self) -> None:
        """Look whether all records lie within their shards, at places that hold int16.

        Raises:
            ShardError: One does not.
        """
        size = np.asarray(self._bytes)[self.shard_of]
        end = self._offset + 2 * len(LEADS) * self.num_samples
        wrong = np.flatnonzero((self._offset < 0) | (self._offset % 2 != 0) | (self.num_samples < 0) | (end > size))
        if len(wrong):
            index = int(wrong[0])
            folder = self.folders[int(self.folder_of[index])]
            raise ShardError(
                f"{folder}: its manifest puts record {self.name(index)} at byte {self._offset[index]} of a shard of "
                f"{size[index]} bytes, where it cannot be; convert or fetch the manifest again"
            )

    def about(self, index: int, shard: memoryview | None = None) -> dict[str, Any]:
        """Return the JSON member of record `index`.

        Args:
            index: The record.
            shard: The bytes of its shard. Without them, of shards that are not here what the manifest says is returned.

        Raises:
            ShardError: It cannot be read.
        """
        if not self._here and shard is None:
            manifest = self.manifests[int(self.folder_of[index])]
            # Where a segment starts is known to its shard alone.
            return {
                "database": manifest.database,
                "record": self.name(index),
                "rate_hz": self.rate_hz,
                "start_s": 0.0,
            }
        start, size = int(self._json[0][index]), int(self._json[1][index])
        content = self._map(int(self.shard_of[index])) if shard is None else shard
        try:
            about: dict[str, Any] = json.loads(bytes(content[start : start + size]))
        except ValueError as error:
            raise self._damaged(index, "its JSON cannot be read") from error
        return about

    def check(self, index: int, *, hashed: bool = False) -> None:
        """Compare what stands before a record's numbers, and its SHA-256 on demand.

        Raises:
            ShardError: It is damaged; the message names shard and record.
        """
        content = memoryview(self._map(int(self.shard_of[index])))
        if hashed:
            self.cut(index, content)
        else:
            self._check_header(index, content)

    def cut(self, index: int, content: memoryview) -> NDArray[np.int16]:
        """Return record `index` from the bytes of its shard, which need not be whole, and check it by its SHA-256.

        Raises:
            ShardError: It is damaged or not in these bytes; the message names shard and record.
        """
        self._check_header(index, content)
        offset, samples = int(self._offset[index]), int(self.num_samples[index])
        about = self.about(index, content)
        numbers = content[offset : offset + 2 * len(LEADS) * samples]
        if not isinstance(about, dict) or hashlib.sha256(numbers).hexdigest() != about.get("sha256"):
            raise self._damaged(index, "its numbers do not have their SHA-256")
        return self._view(index, content)

    def _check_header(self, index: int, content: memoryview) -> None:
        offset, samples = int(self._offset[index]), int(self.num_samples[index])
        header = array_header(len(LEADS), samples)
        if bytes(content[offset - len(header) : offset]) != header:
            raise self._damaged(index, _other_header(samples))

    def _view(self, index: int, content: memoryview | mmap.mmap) -> NDArray[np.int16]:
        samples = int(self.num_samples[index])
        view = np.frombuffer(content, dtype="<i2", count=len(LEADS) * samples, offset=int(self._offset[index]))
        return view.reshape(len(LEADS), samples)

    def _damaged(self, index: int, what: str) -> ShardError:
        shard = self._paths[int(self.shard_of[index])]
        path = shard if self._here else shard.name
        return ShardError(
            f"{path}: record {self.name(index)} is damaged: {what}; run tools/check_shards.py, and convert or fetch "
            "the shard again"
        )

    def _described(self, index: int) -> tuple[Shard, int]:
        """Return a record's shard in the manifest, and the number of the shard's first record."""
        shard = int(self.shard_of[index])
        folder = int(self.folder_of[index])
        # Shards without records are in no column, and are counted all the same.
        before = sum(len(manifest.shards) for manifest in self.manifests[:folder])
        return self.manifests[folder].shards[shard - before], int(np.searchsorted(self.shard_of, shard))

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
            with self._opening:  # one map a shard, whichever thread comes first
                opened = self._maps[shard] or self._open(shard)
        # A page beyond the end of a file that was cut meanwhile is no error but a signal that kills. This asks the
        # system for the size: half a microsecond.
        elif opened.size() < self._bytes[shard]:
            path = self._paths[shard]
            raise ShardError(f"{path} was cut while it was read: it has {opened.size()} bytes; restore it")
        return opened

    def _open(self, shard: int) -> mmap.mmap:
        """Map a shard, and look whether it begins as its manifest says."""
        path = self._paths[shard]
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != self._bytes[shard]:
                    raise ShardError(_other_size(path, size, self._bytes[shard]))
                opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ShardError(f"{path} cannot be read any longer: {error.strerror}; restore it") from error
        first = int(np.searchsorted(self.shard_of, shard))
        wanted = f"'shape': ({len(LEADS)}, {int(self.num_samples[first])})".encode()
        header = opened[max(int(self._offset[first]) - 128, 0) : int(self._offset[first])]
        if wanted not in header or b"'<i2'" not in header:
            raise ShardError(f"{path} is not the shard that its manifest describes; run tools/check_shards.py")
        self._maps[shard] = opened
        return opened


def _other_header(samples: int) -> str:
    return f"it does not begin as an array of {len(LEADS)} leads x {samples}"


def _check_size(path: Path, wanted: int) -> None:
    if not path.is_file():
        raise ShardError(f"{path} is missing; run the same tools/convert.py again, it writes what is missing")
    size = path.stat().st_size
    if size != wanted:
        raise ShardError(_other_size(path, size, wanted))


def _other_size(path: Path, size: int, wanted: int) -> str:
    return (
        f"{path} has {size} bytes, its manifest says {wanted}: it is cut or damaged; "
        "run the same tools/convert.py again, it writes what is missing"
    )


def _allow_open_files(number: int) -> None:
    """Raise this process's limit of open files, where it may: a shard takes one for its map, and one to read ahead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * number + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
