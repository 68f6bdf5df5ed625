"""Fixtures of shards that are streamed, cached or damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgfm.data.places import settle
from ecgfm.shards import remote
from tests.data.elsewhere import QUICK, Server, serving


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for hundredths of a second where users wait for seconds."""
    settle.cache_clear()
    monkeypatch.setattr(remote, "PATIENCE", QUICK)
    monkeypatch.setattr(remote, "COMMAND_PATIENCE", QUICK)


@pytest.fixture
def folder(tmp_path: Path, training_shards: Path) -> Path:
    """Return a copy of the 30 records in four shards, to be damaged."""
    return Path(shutil.copytree(training_shards, tmp_path / "there"))


@pytest.fixture
def server(folder: Path, quick: None) -> Iterator[Server]:
    """Serve that copy."""
    with serving(folder) as running:
        yield running
