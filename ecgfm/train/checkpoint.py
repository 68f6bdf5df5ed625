"""Checkpoints: whole or not there, and enough to go on bit for bit. Here they are found, checked and read.

`RUN/checkpoints/step-00001000/` holds weights and AdamW's state in `engine.safetensors`, whole, so that any
number of ranks goes on from them, and for everybody else the published encoder as safetensors, the signal
contract, and `state.json` (where the run stands, what it saw, the size and hash of every file). A folder is
written under a temporary name and renamed when it is on the disk, and renamed again before it is removed, so
that a name without `.tmp` is a whole checkpoint. `RUN/checkpoints/latest` is a line with the newest one's name,
for people and scripts; we look at the folders.

A disk can still damage what it holds. A run goes on from the newest checkpoint whose hashes are right, says so
loudly where that is not the newest, and keeps the damaged one as `step-00001000.damaged`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ecgfm import config
from ecgfm.errors import CheckpointError, ConfigError, ShardError
from ecgfm.objectives.base import Objective
from ecgfm.run_folder import CHECKPOINTS, STATE, checkpoints, step_of
from ecgfm.shards.manifest import write_bytes
from ecgfm.train.engine import Engine
from ecgfm.train.world import World, lost_rank

LATEST = "latest"
TEMPORARY = ".tmp"
DAMAGED = ".damaged"


class DamagedError(CheckpointError):
    """A checkpoint that is not what was written; the one before may be whole."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands."""

    step: int
    """Finished optimizer steps."""
    records_seen: int
    """Position in the order of records."""
    world_size: int
    """Ranks that wrote it."""
    fingerprint: str
    identity: dict[str, Any]
    """Settings that decide the weights; see `run.identity`."""
    shards: list[Any]
    """Facts of each folder of shards, for the model card."""
    versions: dict[str, str]
    recipe: str = ""
    """File name of the recipe that was started; empty where something else was."""
    last_metrics: dict[str, Any]
    alarms: dict[str, Any] = field(default_factory=dict)
    """What the alarms remember of the steps before."""
    files: dict[str, Any]
    """Bytes and SHA-256 of each file."""
    checksum: str = ""
    """`checksum` of all of the above; empty in a checkpoint of an older version."""


def newest(run: Path) -> tuple[Path, State] | None:
    """Return the newest checkpoint whose state can be read; its other files are not looked at.

    Raises:
        CheckpointError: There are checkpoints, and no state of them can be read.
    """
    return _first_good(run, read_state)[0]


def settle(world: World, run: Path) -> tuple[tuple[Path, State] | None, list[str]]:
    """Return the newest whole checkpoint of a run, and what to say of the others. All ranks must call it.

    Rank 0 reads every byte of it, names the damaged ones that are newer so, and removes what a kill left unfinished.

    Raises:
        CheckpointError: There are checkpoints, and none is whole; they stay as they are.
    """
    found: tuple[tuple[Path, State] | None, list[str]] = None, []

    def choose() -> None:
        nonlocal found
        found = _tidy(run)

    fault = attempt(choose, f"{run / CHECKPOINTS} cannot be read and tidied") if world.rank == 0 else None
    world.agree(fault, patient=True)
    return world.from_first(found)


def _tidy(run: Path) -> tuple[tuple[Path, State] | None, list[str]]:
    notes = []
    for path in sorted((run / CHECKPOINTS).glob(f"*{TEMPORARY}")):
        if path.is_dir():
            shutil.rmtree(path)
            notes.append(f"removed {path}, which was not finished")
        else:
            path.unlink()
    chosen, faults = _first_good(run, read_whole)
    if chosen is None:
        return None, notes
    point_latest(chosen[0])
    for folder, fault in faults:
        kept = _free_name(folder)
        folder.rename(kept)
        notes.append(f"WARNING: {fault}. It is kept as {kept}, and the run goes on from the checkpoint before it")
    return chosen, notes


def _first_good(
    run: Path, read: Callable[[Path], State]
) -> tuple[tuple[Path, State] | None, list[tuple[Path, DamagedError]]]:
    """Return the newest checkpoint that can be read so, and what is wrong with the newer ones."""
    faults: list[tuple[Path, DamagedError]] = []
    for folder in reversed(checkpoints(run)):
        try:
            return (folder, read(folder)), faults
        except DamagedError as error:
            faults.append((folder, error))
    if faults:
        listed = "; ".join(str(fault) for _, fault in faults)
        raise CheckpointError(
            f"no checkpoint of {run} is whole: {listed}. They were left as they are; give another --out, or delete "
            f"{run / CHECKPOINTS} to begin anew"
        )
    return None, []


def _free_name(folder: Path) -> Path:
    name = folder.with_name(folder.name + DAMAGED)
    number = 2
    while name.exists():
        name = folder.with_name(f"{folder.name}{DAMAGED}-{number}")
        number += 1
    return name


def load(engine: Engine, folder: Path) -> None:
    """Continue from a checkpoint that is whole. All ranks must call it.

    Raises:
        CheckpointError: It is not this engine's, or cannot be read.
    """
    engine.world.agree(attempt(lambda: engine.load(folder), f"{folder} could not be read"))


def read_whole(folder: Path) -> State:
    """Return the state of a checkpoint after comparing every file with its hash.

    Raises:
        DamagedError: A file is missing, cut short or not the one that was written.
        CheckpointError: It cannot be read, or another version of ecgfm wrote it.
    """
    state = read_state(folder)
    for name, facts in state.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise DamagedError(f"{path} is damaged: it has {size:,} bytes of {facts['bytes']:,}")
        try:
            digest = sha256(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        if digest != facts["sha256"]:
            raise DamagedError(f"{path} is damaged: its SHA-256 is not the one that was written down")
    return state


def read_state(folder: Path) -> State:
    """Return the state of a checkpoint.

    Raises:
        DamagedError: It is missing or damaged.
        CheckpointError: It is whole, and another version of ecgfm wrote it; or it cannot be read.
    """
    path = folder / STATE
    try:
        data = config.read_json(path)
    except ConfigError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    known = data.get("checksum") if isinstance(data, dict) else None
    if known and known != checksum(data):
        raise DamagedError(f"{path} is damaged: its content is not what was written")
    try:
        state = config.from_dict(State, data, STATE)
    except ConfigError as error:
        if known:
            raise CheckpointError(f"{path} is of another version of ecgfm: {error}; use that one") from error
        raise DamagedError(f"{path} is damaged: {error}") from error
    if state.step != step_of(folder):
        raise DamagedError(f"{path} says step {state.step}: this is not the folder that it was written to")
    return state


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return what it means that a file cannot be read: a bad sector is damage, a missing permission is not."""
    kind = DamagedError if error.errno == errno.EIO else CheckpointError
    return kind(f"{path} cannot be read: {error.strerror}")


def checksum(state: Mapping[str, Any]) -> str:
    """Return a hash of what a state says, as JSON has it, but for its checksum."""
    said = json.loads(json.dumps({name: value for name, value in state.items() if name != "checksum"}))
    return config.fingerprint(said)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point_latest(folder: Path) -> None:
    """Write down that a whole checkpoint is the newest; no reader ever sees half a name."""
    latest = folder.parent / LATEST
    line = f"{folder.name}\n".encode()
    if not latest.is_file() or latest.read_bytes() != line:
        write_bytes(latest, line)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def needed_bytes(objective: Objective) -> int:
    """Return about how much disk a checkpoint takes."""
    return collected_bytes(objective) + 4 * sum(_numel(weight) for weight in objective.published().parameters())


def collected_bytes(objective: Objective) -> int:
    """Return about how much memory rank 0 needs for the copy that is written while the run goes on."""
    # Float32: every weight, and AdamW's two averages of the trained ones.
    return 4 * sum(_numel(weight) * (3 if weight.requires_grad else 1) for weight in objective.parameters())


def _numel(weight: torch.nn.Parameter) -> int:
    """Return the elements of a weight, also of one that ZeRO 3 has cut."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def attempt(action: Callable[[], None], what: str) -> CheckpointError | None:
    """Do it; return what went wrong as the user's error, so that all ranks can be told.

    Args:
        action: Reads or writes.
        what: Begins the message.
    """
    try:
        action()
    except CheckpointError as error:
        return error
    # safetensors reports a full disk as an error of its own, and torch as a RuntimeError.
    except (ShardError, SafetensorError, OSError, RuntimeError) as error:
        if lost_rank(error):
            raise
        return CheckpointError(f"{what}: {error}")
    return None


def recipe() -> str:
    """Return the file name of the recipe that this process was started with; empty where it is none."""
    file = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    return file.name if file.parent.name == "recipes" else ""


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    import deepspeed
    import timm

    import ecgfm

    return {
        "ecgfm": ecgfm.__version__,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "timm": timm.__version__,
    }
