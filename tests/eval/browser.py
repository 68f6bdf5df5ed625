"""A real browser without a window, or a skip that says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser() -> Iterator[Any]:
    """Give a browser of playwright's."""
    sync = pytest.importorskip(
        "playwright.sync_api", reason="the browser test needs playwright: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync.sync_playwright() as play:
        try:
            # Without its sandbox: it opens one file of ours, and containers that run as root have no other way.
            opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"no browser starts: apt-get install chromium, or playwright install chromium ({error})")
        try:
            yield opened
        finally:
            opened.close()
