"""One run in a folder at a time: two would write each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ecgfm.errors import CheckpointError, EcgfmError

LOCK = ".lock"
WAIT_S = 90.0
"""How long a run that is ending may take: ranks whose launcher was killed still save."""


class RunLock:
    """The lock of a run's folder. It is given back by `release`, and by the end of the process however that ends.

    Args:
        out: Folder of the run; it is made.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._lock = FileLock(out / LOCK)

    def take(self, wait_s: float = WAIT_S) -> EcgfmError | None:
        """Take it; return what keeps it from being taken.

        A file system that knows no locks keeps nobody from anything.

        Args:
            wait_s: How long to wait for another process that has it.
        """
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                print(f"another process writes into {self._out}; waiting {wait_s:.0f} s for its end", flush=True)
                self._lock.acquire(timeout=wait_s)
        except Timeout:
            return CheckpointError(
                f"another process has been writing into {self._out} for {wait_s:.0f} s: end it, or give another --out"
            )
        except NotImplementedError:
            return None
        except OSError as error:
            return CheckpointError(f"{self._out} cannot be written: {error.strerror}; check its permissions and space")
        return None

    def release(self) -> None:
        """Give it back; a folder into which nothing was written is removed."""
        if not self._lock.is_locked:
            return
        if self._out.is_dir() and [path.name for path in self._out.iterdir()] == [LOCK]:
            (self._out / LOCK).unlink()
            self._out.rmdir()
        self._lock.release()
