"""The package's tables of codes, as rows of text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources


def rows(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file of this package by its columns' names."""
    text = resources.files("ecgfm.labels").joinpath(name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())
