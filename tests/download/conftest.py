"""A server of files on this machine, with the faults that real ones have."""

from __future__ import annotations

import email.utils
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest


@dataclass
class Server:
    """What is served, how, and what was asked for."""

    root: Path
    address: str = ""
    ignores_ranges: bool = False
    wrong_range: bool = False
    """Answers a range with the right length and the wrong start."""
    chunk_wait_s: float = 0.0
    """Waits before each 10,000 bytes."""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """By path: the connection breaks after so many bytes of the body, one entry a request."""
    answers: dict[str, list[tuple[int, Mapping[str, str | Callable[[], str]]]]] = field(default_factory=dict)
    """By path: status and headers to answer instead, one entry a request."""
    contents: dict[str, list[bytes]] = field(default_factory=dict)
    """By path: other content than the file's, one entry a request."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each of them came."""
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, path: str) -> list[dict[str, str]]:
        """Return the headers of all requests for a path."""
        with self.lock:
            return [headers for asked, headers in self.requests if asked == path]

    def write_sums(self, name: str = "SHA256SUMS.txt", kind: str = "sha256", between: str = " ") -> None:
        """Write the list of all files as PhysioNet does: hash, one space, path."""
        paths = sorted(path for path in self.root.rglob("*") if path.is_file() and path.name != name)
        lines = [
            f"{hashlib.new(kind, path.read_bytes()).hexdigest()}{between}{path.relative_to(self.root)}"
            for path in paths
        ]
        (self.root / name).write_text("".join(line + "\n" for line in lines))

    def write_zenodo(self, name: str) -> None:
        """Write the description of a record as Zenodo's API does."""
        files = [
            {"key": path.name, "size": path.stat().st_size, "checksum": f"md5:{_md5(path)}", "links": {}}
            for path in sorted(self.root.iterdir())
            if path.name != name
        ]
        (self.root / name).write_text(json.dumps({"id": int(name), "files": files}))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open

        def setup(self) -> None:
            super().setup()
            with server.lock:
                server.connections += 1

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(self.path).removeprefix("/")
            with server.lock:
                server.times.append(time.monotonic())
                server.requests.append((path, {key.lower(): value for key, value in self.headers.items()}))
                answer = server.answers[path].pop(0) if server.answers.get(path) else None
                cut = server.cut_after[path].pop(0) if server.cut_after.get(path) else None
                other = server.contents[path].pop(0) if server.contents.get(path) else None
            file = server.root / path
            if answer:
                self._send(answer[0], answer[1], b"", None)
            elif not file.is_file():
                self._send(404, {}, b"no such file", None)
            else:
                self._send_file(file, file.read_bytes() if other is None else other, cut)

        def _send_file(self, file: Path, content: bytes, cut: int | None) -> None:
            changed = email.utils.formatdate(int(file.stat().st_mtime), usegmt=True)
            headers = {"Last-Modified": changed}
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if self.headers.get("If-Modified-Since") == changed:
                self._send(304, headers, b"", None)
            elif asked is None or server.ignores_ranges:
                self._send(200, headers, content, cut)
            elif int(asked[1]) >= len(content):
                self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"", None)
            else:
                start = int(asked[1]) - (7 if server.wrong_range else 0)
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self._send(206, headers, content[start:], cut)

        def _send(
            self, status: int, headers: Mapping[str, str | Callable[[], str]], body: bytes, cut: int | None
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value if isinstance(value, str) else value())
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            sent = body if cut is None else body[:cut]
            try:
                for start in range(0, len(sent), 10_000):
                    time.sleep(server.chunk_wait_s)
                    self.wfile.write(sent[start : start + 10_000])
            except (BrokenPipeError, ConnectionResetError):
                cut = 0  # the client went away
            if cut is not None:
                self.close_connection = True

    return Handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a running server of an empty folder."""
    state = Server(root=tmp_path / "published")
    state.root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as running:
        running.daemon_threads = True
        state.address = f"http://127.0.0.1:{running.server_address[1]}/"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()
