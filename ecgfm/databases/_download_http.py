"""Fetching one file over HTTP from a server that breaks off, is busy, or ignores what it is asked.

`requests` is used: it keeps connections open, and honours the proxies and certificates that the environment names.
Nothing of the user is sent: no `.netrc`, no cookies, no tokens. A redirect is followed to https only.

A file that is there in part is asked for from its end on (`Range`). A server may answer with all of it (200), with
another part, or that there is no more (416): the file starts over, unless it is whole. Broken connections, time-outs
and the answers 408, 425, 429 and 5xx are tried again, after waits that double and vary at random; `Retry-After` is
honoured by all connections at once. Tries are counted anew when a file has grown.
"""

from __future__ import annotations

import builtins
import email.utils
import http
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.cookies import RequestsCookieJar

from ecgfm import __version__
from ecgfm.databases._download_disk import CHUNK_BYTES

MAX_REDIRECTS = 5
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for."""

    attempts: int = 6
    """Tries in a row that bring nothing new before a file is given up."""
    first_wait_s: float = 1.0
    """Longest wait after the first failure; it doubles with each."""
    longest_wait_s: float = 60.0
    longest_asked_s: float = 600.0
    """Longest `Retry-After` that is obeyed; a file whose server asks for more is given up."""
    connect_s: float = 15.0
    silence_s: float = 60.0
    """Time without a byte after which a connection counts as broken."""
    failures_in_a_row: int = 20
    """Files given up one after the other before the whole download is."""


class Sink(Protocol):
    """Where the bytes of a file go."""

    bytes: int
    """How many there are."""

    def write(self, chunk: builtins.bytes) -> None:
        """Append bytes."""

    def restart(self) -> None:
        """Forget all bytes."""


class FetchError(Exception):
    """A file that cannot be had; the message says why."""


class Stopped(Exception):
    """The download was told to stop."""


class _Again(Exception):
    """A try that failed and may be repeated, not before `asked_s` when the server said so."""

    def __init__(self, message: str, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


class Pace:
    """What all connections share: the word to stop, and until when the server wants to be left alone."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._until = 0.0

    def stop(self) -> None:
        """End all waits, and all work at its next check."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Stopped` when the download was told to stop."""
        if self._stop.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait, unless the download is told to stop."""
        if self._stop.wait(seconds):
            raise Stopped

    def hold(self, seconds: float) -> None:
        """Let no request begin for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    def ready(self) -> None:
        """Wait until a request may begin."""
        while (left_s := self._until - time.monotonic()) > 0:
            self.sleep(left_s)
        self.check()


class Client:
    """One open connection after the other; for one thread.

    Args:
        pace: Shared by all clients of a download.
        patience: How long the server is waited for.
    """

    def __init__(self, pace: Pace, patience: Patience) -> None:
        self._pace = pace
        self._patience = patience
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": f"ecgfm/{__version__}", "Accept-Encoding": "identity"})
        self._session.auth = _no_login

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def fetch(self, url: str, part: Sink, count: Callable[[int], None], *, newer_than: float = 0.0) -> float | None:
        """Bring a file to its end, from where it is.

        Args:
            url: Where it is published.
            part: What there is of it.
            count: Called with the bytes that came, and with a negative number when some are thrown away.
            newer_than: When not 0, nothing is fetched if the server says that the file is as old as this, in seconds
                since 1970.

        Returns:
            When the server says the file was changed last, 0 when it does not; None when it is not newer.

        Raises:
            FetchError: It cannot be had.
            Stopped: The download was told to stop.
        """
        failures, most = 0, part.bytes
        while True:
            try:
                return self._attempt(url, part, count, newer_than)
            except _Again as fault:
                failures = 1 if part.bytes > most else failures + 1
                most = max(most, part.bytes)
                if failures >= self._patience.attempts:
                    raise FetchError(f"{fault}; given up after {failures} tries") from fault
                if fault.asked_s > self._patience.longest_asked_s:
                    raise FetchError(f"{fault}; the server asks to come back in {fault.asked_s:,.0f} s") from fault
                self._pace.hold(fault.asked_s)
                wait_s = min(self._patience.longest_wait_s, self._patience.first_wait_s * 2 ** (failures - 1))
                # Many clients that failed together must not come back together: no seed.
                self._pace.sleep(wait_s * random.uniform(0.5, 1.0))

    def _attempt(self, url: str, part: Sink, count: Callable[[int], None], newer_than: float) -> float | None:
        headers = {"Range": f"bytes={part.bytes}-"} if part.bytes else {}
        if newer_than:
            headers["If-Modified-Since"] = email.utils.formatdate(newer_than, usegmt=True)
        try:
            with self._open(url, headers) as response:
                if response.status_code == http.HTTPStatus.NOT_MODIFIED and newer_than:
                    return None
                if part.bytes and self._is_whole(response, part, count):
                    return _changed(response)
                if response.status_code not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
                    raise _refusal(response)
                # The bytes as they are sent: a file that is itself compressed must not be unpacked on the way.
                for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                    self._pace.check()
                    part.write(chunk)
                    count(len(chunk))
                return _changed(response)
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            cause = _cause(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FetchError(f"the server's certificate is not trusted: {cause}") from error
            raise _Again(f"{type(cause).__name__}: {cause}") from error
        except requests.RequestException as error:
            raise FetchError(str(error)) from error

    def _is_whole(self, response: requests.Response, part: Sink, count: Callable[[int], None]) -> bool:
        """Compare the answer with what was asked: go on, start over, or it is all there."""
        start, total = _content_range(response)
        status = response.status_code
        if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and total == part.bytes:
            return True
        if status == http.HTTPStatus.PARTIAL_CONTENT and start == part.bytes:
            return False
        if status in (
            http.HTTPStatus.OK,
            http.HTTPStatus.PARTIAL_CONTENT,
            http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        ):
            count(-part.bytes)
            part.restart()
        if status in (http.HTTPStatus.PARTIAL_CONTENT, http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise _Again("the server's file is not the one that was begun")
        return False

    def _open(self, url: str, headers: dict[str, str]) -> requests.Response:
        """Send a request, and follow redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            self._pace.ready()
            self._session.cookies = RequestsCookieJar()  # servers' cookies are not kept
            response = self._session.get(
                url,
                headers=headers,
                stream=True,
                timeout=(self._patience.connect_s, self._patience.silence_s),
                allow_redirects=False,
            )
            if not response.is_redirect:
                return response
            response.close()
            url = redirect_target(url, response.headers["location"])
        raise FetchError(f"more than {MAX_REDIRECTS} redirects, the last to {url}")


def redirect_target(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        FetchError: It does not lead to https, where nobody between can change what is sent.
    """
    target = urljoin(url, location)
    if urlsplit(target).scheme != "https":
        raise FetchError(f"the server sends on to {target}, which is not https")
    return target


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # Given as the session's login, it keeps requests from looking into .netrc.
    return request


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """Return where the part that is sent starts, and how long the whole file is, as far as the server says."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if match is None:
        return None, None
    start, total = match[1], match[2]
    return (None if start is None else int(start)), (None if total == "*" else int(total))


def _refusal(response: requests.Response) -> Exception:
    """Return what to raise for an answer that is not the file."""
    status = response.status_code
    words = f"HTTP {status} {response.reason or ''}".strip()
    if status in _AGAIN:
        return _Again(words, _asked_s(response.headers.get("retry-after", "")))
    if status in (401, 403):
        words += " (the server wants an account, or does not know the file)"
    return FetchError(words)


def _asked_s(text: str) -> float:
    """Return how long a Retry-After asks to wait; it may be seconds or a date."""
    if text.strip().isdecimal():
        return float(text)
    when = _date(text)
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when else 0.0


def _changed(response: requests.Response) -> float:
    when = _date(response.headers.get("last-modified", ""))
    return when.timestamp() if when else 0.0


def _date(text: str) -> datetime | None:
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:  # not a date, or none given: servers write what they like
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _cause(error: BaseException) -> BaseException:
    """Return the innermost of nested errors of the network: the one that a user can understand."""
    while True:
        reason = getattr(error, "reason", None)
        below = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
        if below is None:
            return error
        error = below
