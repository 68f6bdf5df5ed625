"""When to stop early: SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning), or a launcher that is gone.

A signal interrupts nothing: the loop asks after each step, saves, and ends. Every rank then ends with the same status:
`EX_REQUEUE` tells a batch script to start the same command again, 130 that somebody did not want it any longer.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EX_REQUEUE = 85
"""Exit status of a run that was told to stop, saved, and has steps left."""
EX_INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, which a shell would give too."""
IMPATIENT = 3
"""Ctrl-C pressed as often ends the process at once."""


class Stop:
    """Collects reasons to stop."""

    status: int = 0
    """Exit status of the run: not 0 when it ends before its last step."""

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._launcher = _deepspeed_launcher()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal."""
        self._caught.append(number)
        if self._caught.count(signal.SIGINT) >= IMPATIENT:
            os._exit(EX_INTERRUPTED)

    def reason(self) -> str | None:
        """Return why the run should stop, or None."""
        if self._caught:
            return signal.Signals(self._caught[0]).name
        # `kill` on the deepspeed command ends it and leaves its ranks running, without anybody to stop them.
        if self._launcher is not None and _parent(self._launcher[0]) != self._launcher[1]:
            return "the end of the deepspeed command"
        return None

    def interrupted(self) -> bool:
        """Tell whether Ctrl-C was pressed; the deepspeed launcher adds a SIGTERM to it, before or after."""
        return signal.SIGINT in self._caught


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Collect signals inside the block."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    except BaseException:
        # The launcher sends SIGTERM as soon as one rank has ended: this one has yet to say what it ends of.
        before[signal.SIGTERM] = stop.note
        raise
    finally:
        asked = stop.status != 0 or stop.reason() is not None
        for number, handler in before.items():
            # A launcher sends its signal more than once, and SIGTERM to all ranks when the first of them ends with
            # a status: none of it must turn a saved run into a failure.
            signal.signal(number, signal.SIG_IGN if asked else handler)


def _deepspeed_launcher() -> tuple[int, int] | None:
    """Return the process that started this rank and its parent, when they are DeepSpeed's; else None."""
    launcher = os.getppid()
    parent = _parent(launcher)
    if parent is None or not _mentions(launcher, "deepspeed.launcher.launch") or not _mentions(parent, "deepspeed"):
        return None
    return launcher, parent


def _mentions(process: int, word: str) -> bool:
    try:
        return word.encode() in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # gone, or a system without /proc
        return False


def _parent(process: int) -> int | None:
    try:
        # The command's name stands in brackets and may hold blanks; the parent is the second field after it.
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
