"""What takes the place of a record that cannot be read, and who hears of it.

Which record that is follows from the seed, the position and what is damaged, and from nothing else: a run that goes on
sees the same as one that was not stopped, and so does one on other ranks, as long as the same is damaged.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.rng import derive

ATTEMPTS = 64
"""Substitutes that are tried for one position before the run stops."""


@dataclass(frozen=True, order=True)
class Replaced:
    """A record that another one stands in for."""

    position: int
    """In the order of the run."""
    shard: str
    record: str
    by: str
    """The record that was read instead."""
    reason: str


class Replacements:
    """Collects, from any thread, what was replaced."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[Replaced] = []

    def add(self, replaced: Replaced) -> None:
        """Note one."""
        with self._lock:
            self._found.append(replaced)

    def take(self, before: int) -> list[Replaced]:
        """Return and forget those at positions below `before`, in their order."""
        with self._lock:
            taken = sorted(one for one in self._found if one.position < before)
            self._found = [one for one in self._found if one.position >= before]
        return taken


def substitute(seed: int, position: int, attempt: int, pool: NDArray[np.int64]) -> int:
    """Return the record of a pool that is tried at a position."""
    return int(pool[derive(seed, "substitute", position, attempt) % len(pool)])
