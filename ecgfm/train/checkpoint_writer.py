"""Writes checkpoints while the run goes on.

The step waits until rank 0 has a copy of everything in its memory, which takes the collectives that make it whole
and a copy from the device. A thread of rank 0 then writes it, reads it back, and gives the folder its name. One is
written at a time: a step whose checkpoint is due before the last one is on the disk waits for it.

Reading back compares every tensor bit for bit with the copy in memory, after the file was brought to the disk and
its pages were dropped from the system's cache. So a disk, a file system or a network that lost or changed bytes is
found while the checkpoint before is still there. It does not show that the bytes survive a power cut inside of a
device that keeps a cache of its own, and on a file system in memory, or where the system does not follow the advice
to drop its pages, it shows only what that cache holds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecgfm import config
from ecgfm.errors import CheckpointError
from ecgfm.objectives.base import Objective
from ecgfm.run_folder import CHECKPOINTS, CONTRACT, ENCODER, STATE, checkpoints, step_of
from ecgfm.shards.manifest import write_bytes
from ecgfm.signal.contract import SignalContract
from ecgfm.train.checkpoint import (
    TEMPORARY,
    attempt,
    checksum,
    needed_bytes,
    point_latest,
    sync_folder,
)
from ecgfm.train.engine import ENGINE, Engine

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Write:
    """A checkpoint that is being written."""

    folder: Path
    waited_s: float
    """What the step waited for its copy."""
    future: Future[float]
    """Seconds that writing took, or why it failed."""


class Saver:
    """Writes the checkpoints of a run, on rank 0, and removes those that need not be kept.

    Args:
        engine: Of the run.
        run: Folder of the run.
        contract: What the encoder will demand of a signal.
        keep: Newest checkpoints that are kept.
        keep_every: Checkpoints at multiples of this step are kept for ever; None keeps none so.
        say: Tells the user; None on all ranks but the first.
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        contract: SignalContract,
        *,
        keep: int,
        keep_every: int | None,
        say: Say | None,
    ) -> None:
        self._engine, self._run, self._contract = engine, run, contract
        self._keep, self._keep_every = keep, keep_every
        self._say: Say = say or (lambda message: None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: _Write | None = None

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint. All ranks must call it.

        Args:
            state: The entries of `checkpoint.State`, but for the files and the checksum.

        Raises:
            CheckpointError: This one cannot be begun, or the one before could not be written; on every rank.
        """
        world = self._engine.world
        folder = self._run / CHECKPOINTS / f"step-{state['step']:08d}"
        temporary = folder.with_name(folder.name + TEMPORARY)
        error = self._wait(f"step {state['step']:,}: ")
        if world.rank == 0 and error is None:
            error = attempt(lambda: self._make_room(temporary), self._failure(folder))
        # Patient: the disk may be slower than a rank may take to answer.
        world.agree(error, patient=True)
        began = time.perf_counter()
        whole: dict[str, Tensor] = {}
        world.agree(attempt(lambda: whole.update(self._engine.collect()), self._failure(folder)))
        if world.rank == 0:
            named = copy.deepcopy(state)  # the run changes it
            waited_s = time.perf_counter() - began
            future = self._thread.submit(self._put, folder, whole, named)
            self._write = _Write(folder, waited_s, future)

    def failed(self) -> bool:
        """Tell whether writing has failed, and the user when it has not. Waits for nothing."""
        if self._write is None or not self._write.future.done():
            return False
        if self._write.future.exception() is not None:
            return True
        self._announce()
        return False

    def finish(self) -> None:
        """Wait until the last checkpoint is whole. All ranks must call it.

        Raises:
            CheckpointError: It could not be written, on every rank.
        """
        self._engine.world.agree(self._wait(""), patient=True)

    def close(self) -> None:
        """Wait for what is being written, on this rank alone, when the run ends for another reason."""
        try:
            error = self._wait("")
        finally:
            self._thread.shutdown()
        if error:
            self._say(f"error: {error}")

    def _wait(self, before: str) -> CheckpointError | None:
        """Wait for the write that is going on; return why it failed."""
        if self._write is None:
            return None
        late, began = not self._write.future.done(), time.perf_counter()
        error = self._write.future.exception()
        if error is not None:
            self._write = None
            if isinstance(error, CheckpointError):
                return error
            raise error
        waited_s = time.perf_counter() - began
        if late and before and waited_s >= 0.05:  # less is not worth a line
            self._say(f"{before}waited {waited_s:.1f} s for the checkpoint before")
        self._announce()
        return None

    def _announce(self) -> None:
        assert self._write is not None
        folder, step = self._write.folder, step_of(self._write.folder)
        self._say(
            f"step {step:,}: wrote {folder} in {self._write.future.result():.1f} s beside the training, which waited "
            f"{self._write.waited_s:.2f} s for the copy"
        )
        self._write = None

    def _make_room(self, temporary: Path) -> None:
        """Make an empty folder, where there is enough space on the disk for what is coming."""
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        needed = needed_bytes(self._engine.objective)
        free = shutil.disk_usage(temporary).free
        if free < needed:
            temporary.rmdir()
            raise CheckpointError(
                f"{self._failure(temporary.with_suffix(''))}: the disk of {temporary.parent} has {free / 1e6:,.0f} MB "
                f"free and a checkpoint takes about {needed / 1e6:,.0f} MB"
            )

    def _failure(self, folder: Path) -> str:
        """Return how a message begins: what failed, and what the run goes on from."""
        there = checkpoints(self._run)
        before = f"{there[-1]} is whole, and the same command goes on from it" if there else "there is none before it"
        return f"{folder} could not be written; {before}"

    def _put(self, folder: Path, whole: dict[str, Tensor], state: dict[str, Any]) -> float:
        """Write a checkpoint and remove what need not be kept; return the seconds. Runs in the thread."""
        began = time.perf_counter()
        temporary = folder.with_name(folder.name + TEMPORARY)

        def write() -> None:
            write_files(temporary, whole, self._engine.objective, self._contract, state)
            temporary.rename(folder)
            sync_folder(folder.parent)
            point_latest(folder)

        error = attempt(write, self._failure(folder))
        whole.clear()
        if error:
            # It takes room that the next attempt needs. Where this fails too the next start removes it.
            shutil.rmtree(temporary, ignore_errors=True)
            raise error
        for old in surplus(self._run, self._keep, self._keep_every):
            if error := attempt(partial(remove, old), f"{folder} is whole, and {old} could not be removed"):
                raise error
        return time.perf_counter() - began


def write_files(
    folder: Path, whole: dict[str, Tensor], objective: Objective, contract: SignalContract, state: dict[str, Any]
) -> None:
    """Write the files of a checkpoint into a folder, and make sure that they are on the disk as they were meant.

    Raises:
        OSError: They cannot be written, or what was read back is not what was written.
        SafetensorError: The same, of a file of tensors.
    """
    files = {}
    for name, tensors in ((ENGINE, whole), (ENCODER, published(objective, whole))):
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, folder / name)
        files[name] = _read_back(folder / name)
        _compare(folder / name, tensors)
    raw = _json(config.to_dict(contract))
    write_bytes(folder / CONTRACT, raw)
    files[CONTRACT] = _read_back(folder / CONTRACT, raw)
    said = {**state, "files": files}
    raw = _json({**said, "checksum": checksum(said)})
    write_bytes(folder / STATE, raw)
    _read_back(folder / STATE, raw)
    sync_folder(folder)


def published(objective: Objective, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the published encoder's weights out of what the engine collected, under their own names."""
    encoder = objective.published()
    prefix = next((f"model.{name}." for name, module in objective.named_modules() if module is encoder), None)
    assert prefix is not None, f"{type(objective).__name__}.published() is none of its modules"
    found = {name[len(prefix) :]: tensor for name, tensor in whole.items() if name.startswith(prefix)}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def surplus(run: Path, keep: int, keep_every: int | None) -> list[Path]:
    """Return the checkpoints that need not be kept: all but the newest, and those at multiples of `keep_every`."""
    old = checkpoints(run)[:-keep]
    return [folder for folder in old if keep_every is None or (step_of(folder) or 0) % keep_every]


def remove(folder: Path) -> None:
    """Remove a checkpoint, so that no kill leaves half of it under its name."""
    temporary = folder.with_name(folder.name + TEMPORARY)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def _read_back(path: Path, meant: bytes | None = None) -> dict[str, Any]:
    """Bring a file to the disk, read it from there, and return its size and hash."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if meant is not None and digest != hashlib.sha256(meant).hexdigest():
        raise OSError(f"the disk gave back other bytes of {path} than were written")
    return {"bytes": path.stat().st_size, "sha256": digest}


def _compare(path: Path, tensors: dict[str, Tensor]) -> None:
    """Compare a file that was read back with the tensors in memory, bit for bit."""
    with safe_open(path, framework="pt") as file:
        same = set(file.keys()) == tensors.keys()
        for name, tensor in tensors.items() if same else ():
            there = file.get_tensor(name)
            same = there.dtype == tensor.dtype and there.shape == tensor.shape
            # As bytes: a NaN is not equal to itself.
            if not same or not torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (there, tensor))):
                raise OSError(f"the disk gave back another {name} of {path} than was written")
    if not same:
        raise OSError(f"the disk gave back other tensors of {path} than were written")


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
