"""How a rank hears within milliseconds that another is gone, which one, and how.

A collective that lost a rank says only that a connection was closed, and not every rank is told: one that waits for
a neighbour waits until that one has ended too, and one that waits for its GPU hears nothing at all. So every rank
has a thread that waits for a message from the next one, in a ring and in a group of its own. The kernel closes the
connections of a process that dies, which fails the wait: its neighbour knows who it was, and passes it on.

A process that is stopped, or a machine that is cut off, keeps its connections; only `--engine.timeout-min` and the
roll call of `world.py` find those.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist

FOREVER = timedelta(days=3650)
GRACE_S = 30
"""Seconds that a rank has to end by itself once another is gone, as many as the launchers give it. One that waits for
its GPU cannot."""
PASS_S = 5
"""Longest wait for a message that another thread of this rank is sending."""


class How(IntEnum):
    """How a rank went."""

    FINISHED = 0
    FAILED = 1
    DIED = 2
    SILENT = 3


SAID = {
    How.FAILED: "ended with an error of its own, which its message says",
    How.DIED: "ended without a word: it was killed, ran out of memory or crashed",
    How.SILENT: "does not answer: it hangs, or its machine is cut off",
}


class Lifeline:
    """Waits in a thread for the end of another rank. All ranks must build it, and leave it once.

    Args:
        hosts: The machine of each rank; two or more.
    """

    def __init__(self, hosts: tuple[str, ...]) -> None:
        group = dist.new_group(backend="gloo", timeout=FOREVER)
        assert isinstance(group, dist.ProcessGroup)
        self._group, self._hosts, self._rank = group, hosts, dist.get_rank()
        self._news: tuple[How, int] | None = None
        self._heard, self._left = threading.Event(), threading.Event()
        self._sent, self._passed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._wait, name="lifeline", daemon=True)
        self._thread.start()

    def lost(self, wait_s: float) -> str | None:
        """Return which rank is gone and how, or None when nothing is heard of it in time."""
        self._heard.wait(wait_s)
        if self._news is None or self._news[0] is How.FINISHED:
            return None
        how, rank = self._news
        return f"rank {rank} on {self._hosts[rank]} {SAID[how]}"

    def leave(self, how: How, rank: int) -> None:
        """Tell the others that this rank ends, and why: `rank` is the one at fault. Later calls do nothing."""
        if self._left.is_set():
            return
        self._left.set()
        self._pass_on(how, rank)
        if how is How.FINISHED:
            # The next rank has finished too, or is about to.
            self._thread.join(GRACE_S)
        else:
            atexit.register(self._end)

    def _end(self) -> None:
        """End the process before Python pulls the ground from under a thread that still waits, which aborts it."""
        if self._thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _wait(self) -> None:
        following = (self._rank + 1) % len(self._hosts)
        message = torch.zeros(2, dtype=torch.int64)
        try:
            dist.recv(message, src=following, group=self._group)
            self._news = How(int(message[0])), int(message[1])
        except RuntimeError:  # its connection is closed
            self._news = How.DIED, following
        self._heard.set()
        if self._news[0] is How.FINISHED:
            return
        self._pass_on(*self._news)
        if not self._left.wait(GRACE_S):
            # The main thread waits for its GPU, or for a rank that waits as well.
            print(f"error on rank {self._rank}: {self.lost(0)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _pass_on(self, how: How, rank: int) -> None:
        """Send to the rank before this one, which waits for exactly one message."""
        if not self._sent.acquire(blocking=False):
            # The other thread is at it. A process that ended meanwhile would pass for the one that died.
            self._passed.wait(PASS_S)
            return
        before = (self._rank - 1) % len(self._hosts)
        try:
            if before != rank:
                dist.send(torch.tensor([how, rank]), dst=before, group=self._group)
        except (RuntimeError, ValueError):
            # It is gone as well; or this rank has left all groups meanwhile.
            return
        finally:
            self._passed.set()
