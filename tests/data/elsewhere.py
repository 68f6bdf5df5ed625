"""Shards that are somewhere else: a server that fails as it is told, loaders that stream from it, and damage."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.places import settle, shard_source, stop_fetching
from ecgfm.databases._download_http import Patience
from ecgfm.shards.reader import Shards
from ecgfm.shards.remote import S3_COMMAND

RECORDS, BATCH, WINDOW = 30, 12, 4000
QUICK = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, silence_s=5.0)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, and fails as it is told."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[int]] = {}
        """By name: what each of the next requests answers; 0 sends half and breaks off."""

    @property
    def url(self) -> str:
        """Return the address of the folder."""
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET, with a range on demand."""

    server: Server

    def do_GET(self) -> None:
        """Answer, or fail as told."""
        name = self.path.partition("?")[0].strip("/")
        self.server.asked[name] += 1
        path = self.server.folder / name
        fault = self.server.faults.get(name, [])
        status = fault.pop(0) if fault else 200
        if status >= 400 or not path.is_file():
            self.send_error(status if status >= 400 else 404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        start = int(wanted) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: len(rest) // 2] if status == 0 else rest)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder for a while."""
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def streamed(
    *places: str,
    rank: int = 0,
    world_size: int = 1,
    position: int = 0,
    block: int = 2,
    skip: bool = False,
    weights: dict[str, float] | None = None,
    batch_size: int = BATCH,
    seed: int = 5,
) -> Loader:
    """Return what streams from places, in blocks."""
    there = settle(places, None, S3_COMMAND)
    shards = Shards([place.folder for place in there], here=False)
    return Loader(
        shards,
        window_samples=WINDOW,
        batch_size=batch_size,
        accumulation=1,
        rank=rank,
        world_size=world_size,
        seed=seed,
        position=position,
        weights=weights,
        streaming=Streaming(
            read_shard=shard_source(there, shards), block_shards=block, readers=2, stop=lambda: stop_fetching(there)
        ),
        skip_damaged=skip,
    )


def by_index(folder: Path, *, skip: bool, position: int = 0, check: bool = False) -> Loader:
    """Return what maps the shards of a folder."""
    return Loader(
        Shards([folder]),
        window_samples=WINDOW,
        batch_size=BATCH,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=5,
        position=position,
        skip_damaged=skip,
        check_records=check,
    )


def steps(loader: Loader, number: int) -> torch.Tensor:
    """Return the windows of some steps from the loader's position on, shape (steps, B, 12, T)."""
    return torch.stack([loader.read(loader.position + step * BATCH).signal_BLT for step in range(number)])


def expected(loader: Loader, folders: list[Path], first: int, last: int) -> torch.Tensor:
    """Return the windows at some positions, read from the files of the folders by index."""
    shards = Shards(folders)
    index, starts = loader.windows(first, last)
    rows = [shards.counts(int(record))[:, start : start + WINDOW] for record, start in zip(index, starts)]
    return torch.from_numpy(np.stack(rows))


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards of a folder."""
    return sorted(folder.glob("*.tar"))


def damage(kind: str, folder: Path) -> tuple[str, set[int]]:
    """Damage the second shard; return what is said of it, and the records that cannot be read."""
    shards = Shards([folder])
    path, (first, *_, last) = shards.path(1), np.flatnonzero(shards.shard_of == 1).tolist()
    members = shards.manifests[0].shards[1].members
    if kind == "a changed sample":
        flip(path, members.offset[2] + 4000)
        return "do not have their SHA-256", {first + 2}
    if kind == "a changed JSON":
        flip(path, members.json_offset[2])
        return "JSON cannot be read", {first + 2}
    if kind == "half a tar":
        path.write_bytes(path.read_bytes()[: members.offset[4] + 10])
        return "came with .* bytes, its manifest says", set(range(first + 4, last + 1))
    path.unlink()
    return "cannot be", set(range(first, last + 1))
