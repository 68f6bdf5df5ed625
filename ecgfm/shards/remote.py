"""Folders of shards that are not on this machine: fetch a whole file from a server, an object store or a command.

    https://host/path/         by requests; broken connections, time-outs and busy servers are tried again
    s3://bucket/prefix/        by a command: `aws s3 cp {url} -` unless another is given
    gs://bucket/prefix/        by `gsutil cat`
    pipe:cat /path/{name}      by any shell command that writes the file to its standard output; without `{name}` the
                               file's name is put at the end

All but the first are opened by WebDataset's `gopen`, which runs the command and looks at its exit status.

Secrets stay out of settings, which are written to run.json: a query is given by the name of an environment variable,
`https://host/path/?$TOKEN`; the shell fills in those of a command. What is said of a place leaves both out.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from ecgfm.databases._download_http import Client, FetchError, Pace, Patience, Sink
from ecgfm.errors import ConfigError, ShardError

# Together below --engine.timeout-min, after which the other ranks take this one for dead.
PATIENCE = Patience(attempts=5, longest_wait_s=15.0, longest_asked_s=30.0, connect_s=10.0, silence_s=20.0)
S3_COMMAND = "aws s3 cp --only-show-errors {url} -"
CHUNK_BYTES = 1 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)(://|:)", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_QUERY = re.compile(r"\?[^\s'\")]+")


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
        patience: How long a server is waited for; `PATIENCE` by default.

    Raises:
        ConfigError: The place is of an unknown kind, or holds a password or a query.
    """

    def __init__(self, place: str, s3_command: str = S3_COMMAND, patience: Patience | None = None) -> None:
        self._place = place
        self._s3_command = s3_command
        self._patience = patience or PATIENCE
        self._pace = Pace()
        self._local = threading.local()
        found = _SCHEME.match(place)
        self._scheme = found[1].lower() if found else ""
        if self._scheme == "pipe":
            words = place[len("pipe:") :].split(maxsplit=1)
            if not words:
                raise ConfigError(f"--data.shards {place} names no command, such as pipe:cat /path/{{name}}")
            self.shown = f"pipe:{PurePosixPath(words[0]).name} ..."
            return
        if self._scheme not in ("http", "https", "s3", "gs"):
            raise ConfigError(
                f"--data.shards {_QUERY.sub('?...', place)}: nothing is known of {self._scheme}; give a folder, an "
                "address with https, s3 or gs, or pipe: and a command"
            )
        parts = urlsplit(place)
        self.shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        if "@" in parts.netloc or (parts.query and not _VARIABLE.fullmatch(parts.query)):
            raise ConfigError(
                f"--data.shards {self.shown} holds a password or a query, and settings are written to run.json: put "
                f"the query into an environment variable and write {self.shown}?$NAME"
            )

    def stop(self) -> None:
        """End all fetching, which then raises an error of its own."""
        self._pace.stop()

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
        try:
            if self._scheme in ("http", "https"):
                self._client().fetch(self._url(name), sink, lambda count: None)
            else:
                self._run(name, sink)
        except FetchError as error:
            reason = _QUERY.sub("?...", str(error))
            raise ShardError(f"{self.shown}: {name} cannot be fetched: {reason}") from None

    def _client(self) -> Client:
        """Return the connection of this thread."""
        if not hasattr(self._local, "client"):
            self._local.client = Client(self._pace, self._patience)
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
        """Return the address that `gopen` opens."""
        if self._scheme == "gs":
            return self._url(name)
        if self._scheme == "s3":
            return "pipe:" + self._s3_command.replace("{url}", shlex.quote(self._url(name)))
        return self._place.replace("{name}", name) if "{name}" in self._place else self._place + name

    def _run(self, name: str, sink: Sink) -> None:
        """Take what a command writes, and run it again when it fails."""
        failures = 0
        while True:
            sink.restart()  # a command cannot go on in the middle
            try:
                self._take(self._command(name), sink)
            except OSError as error:
                failures += 1
                if failures >= self._patience.attempts:
                    status = re.search(r"exit (-?\d+)", str(error))
                    words = f"exit status {status[1]}" if status else (error.strerror or "it cannot be run")
                    raise FetchError(f"the command failed {failures} times: {words}") from None
                wait_s = self._patience.first_wait_s * 2 ** (failures - 1)
                self._pace.sleep(min(self._patience.longest_wait_s, wait_s))
            else:
                return

    def _take(self, command: str, sink: Sink) -> None:
        from webdataset.gopen import gopen

        with gopen(command) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                self._pace.check()
                sink.write(chunk)
