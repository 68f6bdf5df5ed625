"""One run in a folder at a time: two would write each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ecgfm.errors import CheckpointError, EcgfmError

LOCK = ".lock"
WAIT_S = 90.0
"""How long a run that is ending may take: ranks whose launcher was killed still save."""


def lock_run(out: Path, wait_s: float = WAIT_S) -> tuple[FileLock | None, EcgfmError | None]:
    """Return the lock of a run's folder, and what keeps it from being taken.

    It is given back by `release`, and by the end of the process however that ends. A file system that knows no locks
    gives None and no error.

    Args:
        out: Folder of the run; it is made.
        wait_s: How long to wait for another process that has it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process writes into {out}; waiting {wait_s:.0f} s for its end", flush=True)
            lock.acquire(timeout=wait_s)
    except Timeout:
        return None, CheckpointError(
            f"another process has been writing into {out} for {wait_s:.0f} s: end it, or give another --out"
        )
    except NotImplementedError:
        return None, None
    except OSError as error:
        return None, CheckpointError(f"{out} cannot be written: {error.strerror}; check its permissions and space")
    return lock, None
