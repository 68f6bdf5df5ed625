"""Fetching a whole public database: planned first, then fetched by several connections, resumable at any byte.

The published list of hashes says what there is. What is there and right is passed over; the rest is written to
`.download/missing` and fetched from there, so that a list of 1.6 million files (MIMIC-IV-ECG) never lies in memory.
A file appears under its name only when its hash is right; one whose hash is wrong is fetched once more, then
reported. A file that is there with another hash than the list's is replaced. Zip archives are unpacked and deleted.
See `_download_disk` for the folder, `_download_http` for the network, `_download_list` for the lists.
"""

from __future__ import annotations

import contextlib
import filecmp
import fnmatch
import hashlib
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from ecgfm.databases._download_disk import BadArchive, Part, Tree, hash_of
from ecgfm.databases._download_http import Client, FetchError, Pace, Patience, Stopped
from ecgfm.databases._download_list import Entry, entries, safe_path
from ecgfm.databases.base import Database, Download
from ecgfm.errors import ConfigError, DatabaseError

MAX_WORKERS = 32
SECONDS_TO_STOP = 3.0


@dataclass
class Tally:
    """How far a download is."""

    doing: str = "reading the list"
    files: int = 0
    """Files that are wanted."""
    there: int = 0
    """Files that were there and right."""
    fetched: int = 0
    failed: int = 0
    total_bytes: int | None = None
    """Bytes of what is missing, where the list gives sizes."""
    bytes: int = 0
    """Bytes of what was missing that are there now, those of files that are not whole included."""
    received: int = 0
    """Bytes that this call received."""
    examples: list[str] = field(default_factory=list)
    """The first failures, as `path: reason`."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is fetched, and how."""

    address: str = ""
    """A mirror to use instead of the published address."""
    only: tuple[str, ...] = ()
    """Patterns (fnmatch) of the paths that are wanted, instead of those that the reader needs."""
    workers: int = 4
    verify: bool = False
    """Compute the hashes of what is there again."""
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"--workers must be 1 to {MAX_WORKERS}, got {self.workers}")
        if not self.address:
            return
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"--address must be a folder at https://..., got {self.address!r}")
        if parts.username or parts.password:
            raise ConfigError("--address must hold no name or password: nothing of the user is sent")


class _Outcome(NamedTuple):
    """What became of one file."""

    entry: Entry
    what: str
    """fetched, there or failed."""
    message: str = ""


class _Ended(NamedTuple):
    """A worker is at its end; with what it died of, for the thread that raises it."""

    error: BaseException | None


def facts(database: Database) -> Download:
    """Return where a database can be fetched.

    Raises:
        ConfigError: It cannot; the message says what a person can do instead.
    """
    download = database.download
    if download is None or download.steps:
        steps = download.steps if download else f"there are no public files to fetch ({database.address})"
        raise ConfigError(
            f"{database.title} ({database.licence}) cannot be fetched by this command: {steps}\n"
            f"Then: python tools/convert.py {database.name()} FOLDER SHARDS"
        )
    return download


def fetch_database(
    download: Download, out: Path, choice: Choice, *, progress: Callable[[Tally], None] = lambda tally: None
) -> Tally:
    """Fetch what is missing of a database.

    Args:
        download: Where it is published.
        out: Folder that is filled.
        choice: What is fetched, and how.
        progress: Called a few times a second, with the same object each time.

    Returns:
        What was done; `failed` files are listed in `.download/failed.txt`, and nothing is raised for them.

    Raises:
        ConfigError: No file is of the kind that `only` asks for.
        DatabaseError: The list cannot be had or trusted, the server or the disk fails for good, or `out` is in use.
    """
    base = (choice.address or download.address).rstrip("/") + "/"
    tally, pace = Tally(), Pace()
    try:
        with Tree(out, download.address) as tree:
            progress(tally)
            published = _published(tree, download, base, choice, pace)
            tally.doing = "looking what is there"
            _plan(tree, download, published, choice, tally, lambda: progress(tally))
            tally.doing = "checking" if choice.verify else "fetching"
            progress(tally)
            _Fetching(tree, download, base, choice, tally, pace).run(lambda: progress(tally))
    except OSError as error:
        raise DatabaseError(
            f"{error.filename or out}: {error.strerror or error}. What is whole is kept; mend this and run the same "
            "command again"
        ) from error
    finally:
        pace.stop()
    return tally


def _published(tree: Tree, download: Download, base: str, choice: Choice, pace: Pace) -> Iterator[Entry]:
    """Return the published list's files; the list is fetched only when it is newer than the one that is there."""
    if not download.sums:
        return (Entry(safe_path(path, "files"), "") for path in download.files)
    # A mirror has the list that has an address of its own under its last name.
    name = download.sums.rsplit("/", 1)[-1] if choice.address and "://" in download.sums else download.sums
    url = urljoin(base, name)
    path = tree.state / f"list-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    newer_than = path.stat().st_mtime if path.exists() else 0.0
    try:
        with Client(pace, choice.patience) as client, Part(path, "") as part:
            part.restart()
            changed = client.fetch(url, part, lambda count: None, newer_than=newer_than)
            if changed is None:
                part.discard()
            else:
                os.utime(part.path, (0, 0))
                part.keep()
    except FetchError as error:
        raise DatabaseError(
            f"the list of files {url} cannot be had: {error}. Is there a network? --address names a mirror"
        ) from error
    copy = None if "://" in download.sums else tree.out / safe_path(download.sums, "sums")
    return _read_once(path, url, newer_than if changed is None else changed, copy)


def _read_once(path: Path, url: str, changed: float, copy: Path | None) -> Iterator[Entry]:
    """Yield a list's files. Only one that was good to its end has a date, and is not fetched again before a newer."""
    yield from entries(path, url)
    os.utime(path, (changed, changed))
    # Part of the published folder, and what `sha256sum -c` wants.
    if copy and not (copy.exists() and filecmp.cmp(path, copy, shallow=False)):
        shutil.copyfile(path, Part.beside(copy))
        Part.beside(copy).replace(copy)


def _plan(
    tree: Tree,
    download: Download,
    published: Iterator[Entry],
    choice: Choice,
    tally: Tally,
    progress: Callable[[], None],
) -> None:
    """Write what must be fetched or checked to `.download/missing`."""
    archive = _pattern(download.archives)
    asked = choice.only or (download.files if download.sums else ())
    wanted = _pattern(asked or ("*",))
    unused = {text: _pattern([text]) for text in choice.only}
    space = 0
    with (tree.state / "missing").open("w", encoding="utf-8") as missing:
        for entry in published:
            if not wanted.match(entry.path):
                continue
            for text in [text for text, pattern in unused.items() if pattern.match(entry.path)]:
                del unused[text]
            tally.files += 1
            if tally.files % 10_000 == 0:
                progress()
            there = tree.is_unpacked(entry) if archive.match(entry.path) else tree.is_known(entry)
            if there and not choice.verify:
                tally.there += 1
                continue
            missing.write(f"{entry.digest or '-'} {-1 if entry.bytes is None else entry.bytes} {entry.path}\n")
            if entry.bytes is not None:
                tally.total_bytes = (tally.total_bytes or 0) + entry.bytes
                space += 0 if there else max(0, entry.bytes - _size(Part.beside(tree.out / entry.path)))
    if unused:
        raise ConfigError(f"--only {' '.join(unused)} fits no file; give paths below {download.address}")
    if not tally.files:
        raise DatabaseError(
            f"the list of {download.address} holds no file that fits {', '.join(download.files) or '*'}"
        )
    free = shutil.disk_usage(tree.out).free
    if space > free:
        raise DatabaseError(f"{tree.out} has room for {free / 1e9:,.1f} GB, and {space / 1e9:,.1f} GB are missing")


class _Fetching:
    """The workers, and the thread that counts what they bring."""

    def __init__(self, tree: Tree, download: Download, base: str, choice: Choice, tally: Tally, pace: Pace) -> None:
        self._tree = tree
        self._base = base
        self._choice = choice
        self._tally = tally
        self._pace = pace
        self._archive = _pattern(download.archives)
        self._lock = threading.Lock()
        self._results: queue.Queue[_Outcome | _Ended] = queue.Queue(maxsize=1000)

    def run(self, progress: Callable[[], None]) -> None:
        """Fetch all that is missing; only this thread writes the journal."""
        failed_path = self._tree.state / "failed.txt"
        try:
            with (
                (self._tree.state / "missing").open(encoding="utf-8") as missing,
                failed_path.open("w", encoding="utf-8") as failed,
            ):
                # Daemons: one that waits for a silent server must not keep Ctrl-C from ending the program.
                threads = [
                    threading.Thread(target=self._work, args=(missing,), daemon=True)
                    for _ in range(self._choice.workers)
                ]
                for thread in threads:
                    thread.start()
                try:
                    self._collect(len(threads), failed, progress)
                finally:
                    self._pace.stop()
                    self._drain(threads, failed)
        finally:
            if not self._tally.failed:
                failed_path.unlink(missing_ok=True)
        progress()

    def _collect(self, working: int, failed: IO[str], progress: Callable[[], None]) -> None:
        """Count what the workers bring, until all are at their end."""
        failures = 0
        while working:
            try:
                result = self._results.get(timeout=0.2)
            except queue.Empty:
                progress()
                continue
            if isinstance(result, _Ended):
                working -= 1
                if result.error is not None:
                    raise result.error
                continue
            self._count(result, failed)
            if result.what != "there":
                failures = failures + 1 if result.what == "failed" else 0
            if failures >= self._choice.patience.failures_in_a_row:
                raise DatabaseError(
                    f"{failures} files in a row could not be fetched, the last {result.entry.path}: {result.message}. "
                    f"What is whole is kept; see whether {self._base} answers, and run the same command again"
                )
            progress()

    def _drain(self, threads: list[threading.Thread], failed: IO[str]) -> None:
        """Count what was finished while the work was stopped; a worker that hears nothing is not waited for."""
        until = time.monotonic() + SECONDS_TO_STOP
        while not self._results.empty() or (any(one.is_alive() for one in threads) and time.monotonic() < until):
            with contextlib.suppress(queue.Empty):
                result = self._results.get(timeout=0.05)
                if isinstance(result, _Outcome):
                    self._count(result, failed)

    def _count(self, result: _Outcome, failed: IO[str]) -> None:
        """Note what became of one file."""
        if result.what == "failed":
            self._tally.failed += 1
            failed.write(f"{result.entry.path}\t{result.message}\n")
            if len(self._tally.examples) < 5:
                self._tally.examples.append(f"{result.entry.path}: {result.message}")
            return
        if result.what == "there":
            self._tally.there += 1
            self._add(result.entry.bytes or 0, received=0)
        else:
            self._tally.fetched += 1
        if not self._archive.match(result.entry.path):
            self._tree.note(result.entry)

    def _work(self, missing: IO[str]) -> None:
        """Fetch one file after the other until none is left."""
        error: BaseException | None = None
        try:
            with Client(self._pace, self._choice.patience) as client:
                while (entry := self._next(missing)) is not None:
                    self._results.put(self._settle(client, entry))
        except Stopped:
            pass  # told to
        except BaseException as caught:
            # Not handled here but by the thread that counts, which raises it.
            error = caught
        self._results.put(_Ended(error))

    def _next(self, missing: IO[str]) -> Entry | None:
        self._pace.check()
        with self._lock:
            line = missing.readline()
        if not line:
            return None
        digest, size, path = line.rstrip("\n").split(" ", 2)
        return Entry(path, "" if digest == "-" else digest, None if size == "-1" else int(size))

    def _settle(self, client: Client, entry: Entry) -> _Outcome:
        """See whether a file is there and right, or fetch it."""
        final = self._tree.out / entry.path
        is_archive = self._archive.match(entry.path) is not None
        try:
            if is_archive and self._tree.is_unpacked(entry, check=self._pace.check):
                return _Outcome(entry, "there")
            there = bool(entry.digest) and final.is_file()
            there = there and hash_of(final, entry.digest, self._pace.check) == entry.digest
            if not there:
                self._fetch(client, entry, final)
            if is_archive:
                self._tree.unpack(entry, self._pace.check)
        except (FetchError, BadArchive) as error:
            return _Outcome(entry, "failed", str(error))
        return _Outcome(entry, "there" if there else "fetched")

    def _fetch(self, client: Client, entry: Entry, final: Path) -> None:
        """Fetch a file, once more if its hash is wrong, and put it in its place."""
        url = self._base + quote(entry.path)
        found = ""
        for _ in range(2):
            with Part(final, entry.digest, self._pace.check) as part:
                if not entry.digest:
                    part.restart()  # without a hash nobody could tell whether two parts belong together
                self._add(part.bytes, received=0)
                client.fetch(url, part, lambda count: self._add(count, received=max(0, count)))
                found = part.digest()
                if found == entry.digest or not entry.digest:
                    part.keep()
                    return
                self._add(-part.bytes, received=0)
                part.discard()
        raise FetchError(f"wrong hash, twice: the list says {entry.digest}, the server's file has {found}")

    def _add(self, count: int, *, received: int) -> None:
        with self._lock:
            self._tally.bytes += count
            self._tally.received += received


def _pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """Return what matches any of the patterns, and nothing when there is none."""
    return re.compile("|".join(fnmatch.translate(text) for text in texts) or r"(?!)")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
