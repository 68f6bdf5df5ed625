"""Where the shards of a run are: folders of this machine, or elsewhere, with a cache or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ecgfm.errors import ShardError
from ecgfm.shards.reader import Shards

if TYPE_CHECKING:
    # Fetching needs requests; a run on local folders does not.
    from ecgfm.shards.remote import Remote


@dataclass(frozen=True)
class Place:
    """One of `--data.shards`."""

    folder: Path
    """Holds the manifest, and the shards unless they are streamed."""
    remote: Remote | None = None
    """Where the shards are to be fetched from."""

    def __str__(self) -> str:
        return str(self.folder) if self.remote is None else self.remote.shown


def is_remote(place: str) -> bool:
    """Tell whether a place is to be fetched from, and not a folder."""
    return place.startswith("pipe:") or "://" in place


@lru_cache(maxsize=8)
def settle(places: tuple[str, ...], cache: Path | None, s3_command: str) -> tuple[Place, ...]:
    """Return the places with their manifests on this machine; it fetches each manifest once a process.

    Args:
        places: Folders and addresses.
        cache: Where fetched shards are kept; None when they are not.
        s3_command: What writes an object of S3 to its standard output.

    Raises:
        ConfigError: An address that cannot be read from.
        ShardError: A manifest cannot be had, or is damaged.
    """
    found = []
    for place in map(str, places):
        if not is_remote(place):
            found.append(Place(Path(place)))
            continue
        from ecgfm.shards.cache import fetch_manifest
        from ecgfm.shards.remote import Remote

        remote = Remote(place, s3_command)
        found.append(Place(fetch_manifest(remote, cache), remote))
    return tuple(found)


def fill_cache(places: Sequence[Place], say: Callable[[str], None] = print) -> None:
    """Fetch all shards that the cache lacks.

    Raises:
        ShardError: One cannot be had or written, or is not what its manifest says.
    """
    for place in places:
        if place.remote is not None:
            from ecgfm.shards.cache import fetch_shards

            fetch_shards(place.remote, place.folder, say)


def shard_source(places: Sequence[Place], shards: Shards) -> Callable[[int], memoryview]:
    """Return a function that reads a whole shard, by its number, from wherever it is; threads may share it."""
    folders = {place.folder: place for place in places}

    def read(number: int) -> memoryview:
        path = shards.path(number)
        remote = folders[path.parent].remote
        if remote is None:
            try:
                return memoryview(path.read_bytes())
            except OSError as error:
                raise ShardError(f"{path} cannot be read: {error.strerror}; restore it") from error
        from ecgfm.shards.remote import Buffer

        buffer = Buffer(shards.num_bytes(number))
        remote.fetch(path.name, buffer)
        return memoryview(buffer.content)

    return read


def stop_fetching(places: Sequence[Place]) -> None:
    """End what is being read from the places."""
    for place in places:
        if place.remote is not None:
            place.remote.stop()
