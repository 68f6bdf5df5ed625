"""Checkpoints: whole or not there, and enough to go on bit for bit.

`RUN/checkpoints/step-00001000/` holds weights and AdamW's state in `engine.safetensors`, whole, so that any
number of ranks goes on from them, and for everybody else the published encoder as safetensors, the signal
contract, and `state.json` (where the run stands, what it saw, the size and hash of every file). A folder is
written under a temporary name and renamed when it is on the disk, so a name without `.tmp` is a whole
checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ecgfm import config
from ecgfm.errors import CheckpointError, ConfigError, ShardError
from ecgfm.objectives.base import Objective
from ecgfm.shards.manifest import write_json
from ecgfm.signal.contract import SignalContract
from ecgfm.train.engine import Engine
from ecgfm.train.world import lost_rank

CHECKPOINTS = "checkpoints"
STATE = "state.json"
ENCODER = "encoder.safetensors"
CONTRACT = "contract.json"
TEMPORARY = ".tmp"


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
    last_metrics: dict[str, Any]
    alarms: dict[str, Any] = field(default_factory=dict)
    """What the alarms remember of the steps before."""
    files: dict[str, Any]
    """Bytes and SHA-256 of each file."""


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    found = (run / CHECKPOINTS).glob("step-*") if (run / CHECKPOINTS).is_dir() else []
    return sorted(path for path in found if path.is_dir() and not path.name.endswith(TEMPORARY))


def save(engine: Engine, run: Path, state: dict[str, Any], contract: SignalContract, keep: int) -> Path:
    """Write a checkpoint and remove the oldest beyond `keep`. All ranks must call it.

    Raises:
        CheckpointError: It cannot be written, on every rank; those before it are whole.
    """
    world = engine.world
    folder = run / CHECKPOINTS / f"step-{state['step']:08d}"
    temporary = folder.with_name(folder.name + TEMPORARY)
    world.agree(_try(lambda: _begin(engine, temporary)) if world.rank == 0 else None)
    world.agree(_try(lambda: engine.save(temporary)))
    world.agree(_try(lambda: _finish(engine, temporary, folder, state, contract)) if world.rank == 0 else None)
    if world.rank == 0:
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    return folder


def load(engine: Engine, folder: Path, state: State) -> None:
    """Continue from a checkpoint. All ranks must call it.

    Raises:
        CheckpointError: A file is not the one that was written, or cannot be read.
    """
    world = engine.world
    world.agree(_try(lambda: _verify(folder, state)) if world.rank == 0 else None)
    world.agree(_try(lambda: engine.load(folder)))


def read_state(folder: Path) -> State:
    """Return the state of a checkpoint.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return config.from_dict(State, config.read_json(folder / STATE), STATE)
    except ConfigError as error:
        raise CheckpointError(f"{folder} is damaged: {error}; delete it to go on from the one before") from error


def needed_bytes(objective: Objective) -> int:
    """Return about how much disk a checkpoint takes."""
    # Float32: every weight, AdamW's two averages of the trained ones, and the published encoder once more.
    everything = sum(weight.numel() * (3 if weight.requires_grad else 1) for weight in objective.parameters())
    return 4 * (everything + sum(weight.numel() for weight in objective.published().parameters()))


def _begin(engine: Engine, temporary: Path) -> None:
    """Make room: an empty folder, and enough space on the disk for what is coming."""
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    needed = needed_bytes(engine.objective)
    free = shutil.disk_usage(temporary).free
    if free < needed:
        temporary.rmdir()
        raise CheckpointError(
            f"the disk of {temporary.parent} has {free / 1e6:,.0f} MB free and a checkpoint takes about "
            f"{needed / 1e6:,.0f} MB; free space and run the same command, it goes on from the checkpoint before"
        )


def _finish(engine: Engine, temporary: Path, folder: Path, state: dict[str, Any], contract: SignalContract) -> None:
    """Write what others read, bring all to the disk, and give the folder its name."""
    weights = {name: weight.contiguous() for name, weight in engine.objective.published().state_dict().items()}
    save_file({name: weight.float().cpu() for name, weight in weights.items()}, temporary / ENCODER)
    write_json(temporary / CONTRACT, config.to_dict(contract))
    files = {}
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[str(path.relative_to(temporary))] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(temporary / STATE, {**state, "files": files})
    temporary.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(folder: Path, state: State) -> None:
    for name, facts in state.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; delete {folder} to go on from the checkpoint before")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged; delete {folder} to go on from the checkpoint before")


def _try(action: Any) -> Exception | None:
    """Do it; return what went wrong as the user's error, so that all ranks can be told."""
    try:
        action()
    except (CheckpointError, ShardError) as error:
        return error
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        if lost_rank(error):
            raise
        return CheckpointError(f"the checkpoint could not be written or read: {error}; those before it are whole")
    return None


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
