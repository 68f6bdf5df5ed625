"""The folder that a download fills: what is there and right, and files that appear whole or not at all.

A file is written as `<path>.part` and renamed when its hash is right and its bytes are on the disk. Beside the
database, `.download/` holds what a second call needs:

    lock          held while a download runs
    database      the published address, so that two databases do not mix in one folder
    journal       a line `<hash> <bytes> <mtime_ns> <path>` for every file whose hash was found right
    archives/     for each archive that was unpacked and deleted: its hash and its members
    missing       what the last call had to fetch or to check, one file a line
    failed.txt    what could not be had, and why

A file that has the size and the time of its journal line is taken to be right; whoever doubts it asks for the
hashes to be computed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ecgfm.databases._download_list import PART, STATE, Entry, safe_path
from ecgfm.errors import DatabaseError

CHUNK_BYTES = 1 << 16
Check = Callable[[], None]


class BadArchive(Exception):
    """A zip archive that will not be unpacked; the message says why."""


def new_hash(digest: str) -> Any:
    """Return the hash function whose digests are as long as `digest`; SHA-256 when that is empty."""
    return hashlib.md5(usedforsecurity=False) if len(digest) == 32 else hashlib.sha256()


def hash_of(path: Path, like: str, check: Check = lambda: None) -> str:
    """Return the hash of a file, of the kind of `like`; `check` is called between reads and may raise."""
    hasher = new_hash(like)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            check()
            hasher.update(chunk)
    return str(hasher.hexdigest())


class Part:
    """A file on its way: bytes are appended and hashed; at the end it is kept, discarded, or left to be resumed.

    Args:
        final: Where the whole file belongs.
        like: A digest of the kind that is wanted.
        check: Called while what is there already is hashed; may raise.
    """

    def __init__(self, final: Path, like: str, check: Check = lambda: None) -> None:
        self.path = self.beside(final)
        self._final = final
        self._like = like
        self._hasher = new_hash(like)
        self.bytes = 0
        final.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        while chunk := self._file.read(1 << 20):
            check()
            self._hasher.update(chunk)
            self.bytes += len(chunk)

    @staticmethod
    def beside(final: Path) -> Path:
        """Return where a file is written before it is whole."""
        return final.with_name(final.name + PART)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append bytes, so that they are there even when the process is killed."""
        self._file.write(chunk)
        self._file.flush()
        self._hasher.update(chunk)
        self.bytes += len(chunk)

    def restart(self) -> None:
        """Forget all bytes."""
        self._file.seek(0)
        self._file.truncate()
        self._hasher = new_hash(self._like)
        self.bytes = 0

    def digest(self) -> str:
        """Return the hash of the bytes so far."""
        return str(self._hasher.hexdigest())

    def keep(self) -> None:
        """Put the file in its place, for good."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(self._final)

    def discard(self) -> None:
        """Delete the file."""
        self._file.close()
        self.path.unlink()


class Tree:
    """The folder, for one process alone; use as a context.

    Args:
        out: The folder; made if need be.
        database: Published address of the database that it holds.

    Raises:
        DatabaseError: Another process fills it, it holds another database, or cannot be written.
    """

    def __init__(self, out: Path, database: str) -> None:
        self.out = out
        self.state = out / STATE
        self._prefix = f"{out}/"
        self._database = database
        self._stack = contextlib.ExitStack()
        self._known: set[int] = set()

    def __enter__(self) -> Tree:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock = self._stack.enter_context((self.state / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stack.close()
            raise DatabaseError(f"another download fills {self.out}; wait for it, or give another folder") from error
        except OSError as error:
            self._stack.close()
            raise DatabaseError(f"{self.out} cannot be written: {error.strerror}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(self._stack.close)
            self._check_database()
            self._open_journal()
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def is_known(self, entry: Entry) -> bool:
        """Tell whether a file of this hash is there, by its size and time."""
        line = self._line(entry)
        return line is not None and hash(line) in self._known

    def note(self, entry: Entry) -> None:
        """Write down that the file which is there has the entry's hash."""
        line = self._line(entry)
        if line is not None and hash(line) not in self._known:
            self._known.add(hash(line))
            self._journal.write(line)
            self._journal.flush()

    def is_unpacked(self, archive: Entry, *, check: Check | None = None) -> bool:
        """Tell whether all members of an archive of this hash are there.

        Args:
            archive: Entry of the archive.
            check: When given, the members are hashed, and this is called between reads; otherwise their size and
                time decide.
        """
        path = self._members_path(archive)
        if not path.exists():
            return False
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["digest"] != archive.digest:
            return False
        for member in record["members"]:
            try:
                found = (self.out / member["path"]).stat()
            except FileNotFoundError:
                return False
            if found.st_size != member["bytes"]:
                return False
            if check is None and found.st_mtime_ns != member["mtime_ns"]:
                return False
            if check is not None and hash_of(self.out / member["path"], "", check) != member["sha256"]:
                return False
        return True

    def unpack(self, archive: Entry, check: Check) -> None:
        """Unpack a zip archive beside itself, note its members, and delete it.

        Raises:
            BadArchive: It is damaged, or names a member that is unsafe, doubled, encrypted or no plain file.
        """
        path = self.out / archive.path
        try:
            with zipfile.ZipFile(path) as file:
                members = [self._unpack_member(file, *pair, check) for pair in _members(file, archive.path)]
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, DatabaseError) as error:
            raise BadArchive(f"it cannot be unpacked: {error}") from error
        record = {"digest": archive.digest, "members": members}
        self._members_path(archive).parent.mkdir(exist_ok=True)
        self.write(self._members_path(archive), json.dumps(record).encode())
        path.unlink()

    def write(self, path: Path, content: bytes) -> None:
        """Write a small file whole or not at all."""
        with Part(path, "") as part:
            part.restart()
            part.write(content)
            part.keep()

    def _unpack_member(
        self, file: zipfile.ZipFile, info: zipfile.ZipInfo, path: str, check: Check
    ) -> dict[str, str | int]:
        """Unpack one member and return what is noted of it; zipfile checks its size and CRC-32."""
        with Part(self.out / path, "") as part:
            part.restart()
            with file.open(info) as source:
                while chunk := source.read(1 << 20):
                    check()
                    part.write(chunk)
            part.keep()
            found = (self.out / path).stat()
            return {"path": path, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": part.digest()}

    def _line(self, entry: Entry) -> bytes | None:
        """Return the journal's line for the file that is there."""
        try:
            # Not by pathlib, which is slower than the disk: a plan asks this 1.6 million times.
            found = os.stat(f"{self._prefix}{entry.path}")  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{entry.digest or '-'} {found.st_size} {found.st_mtime_ns} {entry.path}\n".encode()

    def _members_path(self, archive: Entry) -> Path:
        return self.state / "archives" / (quote(archive.path, safe="") + ".json")

    def _check_database(self) -> None:
        path = self.state / "database"
        if not path.exists():
            self.write(path, self._database.encode())
            return
        held = path.read_text(encoding="utf-8")
        if held != self._database:
            raise DatabaseError(f"{self.out} holds a download of {held}, not of {self._database}; give another folder")

    def _open_journal(self) -> None:
        path = self.state / "journal"
        self._journal = self._stack.enter_context(path.open("a+b"))
        self._journal.seek(0)
        line = b"\n"
        # 61 bits of each line instead of the line: 1.6 million lines would be 400 MB. That two differ and
        # look alike to us has a chance of one in ten million.
        for line in self._journal:
            self._known.add(hash(line))
        if not line.endswith(b"\n"):  # killed while it was written
            self._journal.write(b"\n")


def _members(file: zipfile.ZipFile, archive: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Yield the files of an archive with the path that each is written to; all are checked before the first."""
    above, slash, _ = archive.rpartition("/")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in file.infolist():
        # zipfile cuts a name at a zero byte; the name as it is written is judged.
        name = info.orig_filename
        if name.endswith("/"):
            continue  # a folder; those that files need are made with them
        path = above + slash + safe_path(name, archive)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BadArchive(f"its member {path!r} is a link or a device")
        if info.flag_bits & 1:
            raise BadArchive(f"its member {path!r} is encrypted")
        if path in found or path == archive:
            raise BadArchive(f"it names {path!r} twice, or as itself")
        found[path] = info
    yield from ((info, path) for path, info in found.items())
