"""Folders of shards that are not on this machine: fetch a whole file from a server, an object store or a command.

    https://host/path/         by requests; broken connections, time-outs and busy servers are tried again
    s3://bucket/prefix/        by a command: `aws s3 cp {url} -` unless another is given
    gs://bucket/prefix/        by `gsutil cat`
    pipe:cat /path/{name}      by any shell command that writes the file to its standard output; without `{name}` the
                               file's name is put at the end

What a command writes counts when it ends with status 0. Unlike WebDataset's `gopen`, which runs the same commands, we
end one that says nothing for long, or that nobody waits for any more: else it would hold the run for ever.

Secrets stay out of settings, which are written to run.json: a query is given by the name of an environment variable,
`https://host/path/?$TOKEN`; the shell fills in those of a command. What is said of a place leaves both out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import selectors
import shlex
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from ecgfm.databases._download_http import Client, FetchError, Pace, Patience, Sink
from ecgfm.errors import ConfigError, ShardError

# All tries together stay below --engine.timeout-min, after which the other ranks take this one for dead.
PATIENCE = Patience(attempts=5, longest_wait_s=15.0, longest_asked_s=30.0, connect_s=10.0, silence_s=20.0)
# Commands such as `aws s3 cp` fetch several parts at once and write nothing before the first is there.
COMMAND_PATIENCE = Patience(attempts=5, longest_wait_s=15.0, silence_s=50.0)
LOOK_EVERY_S = 0.2
"""How soon a command that writes nothing is ended when the run is."""
S3_COMMAND = "aws s3 cp --only-show-errors {url} -"
CHUNK_BYTES = 1 << 20
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_QUERY = re.compile(r"\?\S+")


@dataclass
class Buffer:
    """A file on its way into memory, of a size that is known.

    Args:
        limit: Bytes of the whole file; None when nobody knows.
    """

    limit: int | None = None

    def __post_init__(self) -> None:
        self.content = bytearray()
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self.content += chunk
        self.bytes += len(chunk)
        if self.limit is not None and self.bytes > self.limit:
            raise FetchError(f"it has more than the {self.limit:,} bytes of its manifest")

    def restart(self) -> None:
        """Forget all bytes."""
        self.content.clear()
        self.bytes = 0


class Remote:
    """A folder of shards somewhere else; any number of threads may fetch from it.

    Args:
        place: As the module says.
        s3_command: What writes an object of S3 to its standard output, with `{url}`.
        patience: How long a server or a command is waited for; `PATIENCE` or `COMMAND_PATIENCE` by default.

    Raises:
        ConfigError: The place is of an unknown kind, or holds a password or a query.
    """

    def __init__(self, place: str, s3_command: str = S3_COMMAND, patience: Patience | None = None) -> None:
        self._place = place
        self._s3_command = s3_command
        self._pace = Pace()
        self._local = threading.local()
        if place.startswith("pipe:"):
            self._scheme, self._patience = "pipe", patience or COMMAND_PATIENCE
            words = place[len("pipe:") :].split(maxsplit=1)
            if not words:
                raise ConfigError(f"--data.shards {place} names no command, such as pipe:cat /path/{{name}}")
            self.shown = f"pipe:{PurePosixPath(words[0]).name} ..."
            return
        try:
            parts = urlsplit(place)
        except ValueError as error:
            raise ConfigError(f"--data.shards: an address cannot be read: {error}; check its brackets") from None
        self._scheme = parts.scheme
        self._patience = patience or (PATIENCE if self._scheme in ("http", "https") else COMMAND_PATIENCE)
        self.shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        if self._scheme not in ("http", "https", "s3", "gs"):
            raise ConfigError(
                f"--data.shards {self.shown}: nothing is known of {self._scheme}; give a folder, an address with "
                "https, s3 or gs, or pipe: and a command"
            )
        if "@" in parts.netloc or (parts.query and not _VARIABLE.fullmatch(parts.query)):
            raise ConfigError(
                f"--data.shards {self.shown} holds a password or a query, and settings are written to run.json: put "
                f"the query into an environment variable and write {self.shown}?$NAME"
            )

    def stop(self) -> None:
        """End all fetching that is going on, which then raises an error of its own; later it may begin anew."""
        self._pace.stop()
        self._pace = Pace()

    def fetch(self, name: str, sink: Sink) -> None:
        """Fetch a file from where the sink ends.

        Raises:
            ShardError: It cannot be had, after several tries.
        """
        if not _NAME.fullmatch(name):
            # It would be part of a shell's command, and of a path.
            raise ShardError(
                f"{self.shown}: its manifest names {name!r}; the name of a shard has letters, digits, ._- only"
            )
        pace = self._pace
        try:
            if self._scheme in ("http", "https"):
                self._client(pace).fetch(self._url(name), sink, lambda count: None)
            else:
                self._run(self._command(name), sink, pace)
        except FetchError as error:
            reason = _QUERY.sub("?...", str(error))
            raise ShardError(f"{self.shown}: {name} cannot be fetched: {reason}") from None

    def _client(self, pace: Pace) -> Client:
        """Return the connection of this thread."""
        if getattr(self._local, "pace", None) is not pace:
            self._local.pace, self._local.client = pace, Client(pace, self._patience)
        client: Client = self._local.client
        return client

    def _url(self, name: str) -> str:
        parts = urlsplit(self._place)
        path = f"{parts.path.rstrip('/')}/{quote(name)}"
        return urlunsplit((parts.scheme, parts.netloc, path, _VARIABLE.sub(self._variable, parts.query), ""))

    def _variable(self, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ShardError(f"{self.shown}: the environment variable {name} is not set on this machine")
        return os.environ[name]

    def _command(self, name: str) -> str:
        """Return what the shell is given."""
        if self._scheme == "gs":
            return f"gsutil cat {shlex.quote(self._url(name))}"
        if self._scheme == "s3":
            return self._s3_command.replace("{url}", shlex.quote(self._url(name)))
        command = self._place.removeprefix("pipe:")
        return command.replace("{name}", name) if "{name}" in command else command + name

    def _run(self, command: str, sink: Sink, pace: Pace) -> None:
        """Take what a command writes, and run it again when it fails."""
        failures = 0
        while True:
            sink.restart()  # a command cannot go on in the middle
            fault = _take(command, sink, pace, self._patience.silence_s)
            if not fault:
                return
            failures += 1
            if failures >= self._patience.attempts:
                raise FetchError(f"the command failed {failures} times: {fault}")
            pace.sleep(min(self._patience.longest_wait_s, self._patience.first_wait_s * 2 ** (failures - 1)))


def _take(command: str, sink: Sink, pace: Pace, silence_s: float) -> str:
    """Take what a shell command writes, and leave nothing of it running; return what is wrong, or nothing.

    Raises:
        OSError: The sink cannot be written.
        Stopped: The fetching was told to stop.
    """
    try:
        # By a shell, as the user wrote it; in a group of its own, all of which can be ended.
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, process_group=0)  # noqa: S602
    except OSError as error:
        return f"it cannot be started: {error.strerror}"
    assert process.stdout
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux: a pipe holds 64 kB by itself, and each is a switch of processes
        with contextlib.suppress(OSError):  # more than a user may have in all
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
    heard = time.monotonic()
    try:
        with process.stdout as stream, selectors.DefaultSelector() as ready:
            ready.register(stream, selectors.EVENT_READ)
            chunk = None
            while chunk != b"":
                pace.check()
                if ready.select(LOOK_EVERY_S):
                    chunk, heard = os.read(stream.fileno(), CHUNK_BYTES), time.monotonic()
                    sink.write(chunk)
                elif time.monotonic() - heard > silence_s:
                    return f"it wrote nothing for {silence_s:g} s"
        status = process.wait(silence_s)
    except subprocess.TimeoutExpired:
        return f"it wrote all and did not end for {silence_s:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"exit status {status}" if status else ""
