"""Shards of elsewhere, kept in a folder of this machine and then read like its own.

A folder of the cache is named by the hash of its manifest, which through its own hashes names the data: it does not
matter where the shards came from, and other data lie in another folder. A shard is fetched under a temporary name,
compared with its size and SHA-256, and renamed when it is on the disk. The processes of a machine, or of several that
share the folder, take turns by a lock, so each shard is fetched once.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from ecgfm.databases._download_disk import Part
from ecgfm.errors import ShardError
from ecgfm.shards.manifest import MANIFEST, Shard, read_manifest, write_bytes
from ecgfm.shards.remote import Buffer, Remote

CONNECTIONS = 4
SAY_EVERY_S = 10.0


def fetch_manifest(remote: Remote, cache: Path | None) -> Path:
    """Return a folder that holds a remote folder's manifest.

    Args:
        remote: The folder elsewhere.
        cache: Where to keep it; None for a temporary folder that is removed when Python ends.

    Raises:
        ShardError: It cannot be had, is damaged, or cannot be written.
    """
    got = Buffer()
    remote.fetch(MANIFEST, got)
    content = bytes(got.content)
    try:
        if cache is None:
            folder = Path(tempfile.mkdtemp(prefix="ecgfm-manifest-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        else:
            folder = cache / hashlib.sha256(content).hexdigest()[:32]
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / MANIFEST
        # A disk may have damaged it; and a cache that is filled may be of those who can only read it.
        if not path.exists() or path.read_bytes() != content:
            with _locked(folder):
                write_bytes(path, content)
    except OSError as error:
        where = f"--data.cache {cache}" if cache else f"the folder for temporary files, {tempfile.gettempdir()},"
        raise ShardError(f"{where} cannot be written: {error.strerror}; give another folder") from error
    try:
        read_manifest(folder)
    except ShardError as error:
        raise ShardError(f"{remote.shown}: {error}") from error
    return folder


def fetch_shards(remote: Remote, folder: Path, say: Callable[[str], None]) -> None:
    """Fetch the shards that a folder of the cache lacks.

    Args:
        remote: Where they are.
        folder: Of the cache, with a manifest.
        say: Takes a line about how far it is.

    Raises:
        ShardError: One cannot be had or written, or is not what the manifest says. The others are kept.
    """
    shards = read_manifest(folder).shards
    if not _missing(folder, shards):
        return
    with _locked(folder):
        wanted = _missing(folder, shards)  # another process may have fetched them while this one waited
        if not wanted:
            return
        needed = sum(shard.bytes for shard in wanted)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ShardError(
                f"--data.cache: {folder.parent} has {free / 1e9:,.1f} GB free and {len(wanted):,} shards of "
                f"{remote.shown} take {needed / 1e9:,.1f} GB; free space, give another folder, or none to stream"
            )
        said, done = time.monotonic(), 0
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="cache") as pool:
            fetching = {pool.submit(_fetch_shard, remote, folder, shard): shard for shard in wanted}
            try:
                for number, future in enumerate(as_completed(fetching), start=1):
                    future.result()
                    done += fetching[future].bytes
                    if time.monotonic() - said > SAY_EVERY_S or number == len(wanted):
                        said = time.monotonic()
                        say(
                            f"fetched {number:,} of {len(wanted):,} shards of {remote.shown}, {done / 1e9:,.2f} of "
                            f"{needed / 1e9:,.2f} GB"
                        )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                remote.stop()
                raise


def _missing(folder: Path, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that are not there in their size; a name is given when the hash is right."""
    there = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    return [shard for shard in shards if there.get(shard.name) != shard.bytes]


def _fetch_shard(remote: Remote, folder: Path, shard: Shard) -> None:
    try:
        # What an earlier call left is gone on with, where the place allows it; if it is wrong, from the beginning.
        for last in (False, True):
            with Part(folder / shard.name, shard.sha256) as part:
                began = part.bytes
                if part.bytes > shard.bytes:
                    part.restart()
                if part.bytes < shard.bytes:
                    remote.fetch(shard.name, part)
                if part.digest() == shard.sha256:
                    part.keep()
                    return
                part.discard()
                size = part.bytes
            if last or not began:
                break
    except OSError as error:
        raise ShardError(f"{folder / shard.name} cannot be written: {error.strerror}; free space") from error
    raise ShardError(
        f"{remote.shown}: {shard.name} came with {size:,} bytes, its manifest says {shard.bytes:,} of another SHA-256: "
        "it was changed or damaged there; upload it again"
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder of the cache; wait for the one that is in it.

    Raises:
        ShardError: The folder cannot be written.
    """
    try:
        file = (folder / "lock").open("w")
    except OSError as error:
        raise ShardError(f"{folder} cannot be written: {error.strerror}; give another --data.cache") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
