"""Checkpoints of a fine-tuning run: whole or not there, compared with their hashes when read, and never unpickled.

`OUT/checkpoints/step-00000500/` holds `model.safetensors` (all weights, as they are), `best.safetensors` (those that
validated best), `optimizer.safetensors` (AdamW's averages), and `state.json`: where the run stands, what decides its
weights, and the hash of every file. All else is a function of seed and step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ecgfm import config
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.run_folder import CHECKPOINTS, STATE, checkpoints
from ecgfm.shards.manifest import write_bytes

TEMPORARY = ".tmp"
KEPT = 2
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands."""

    step: int = 0
    """Finished optimizer steps of all phases."""
    phase: int = 0
    """Number of the phase that comes next or goes on."""
    phase_step: int = 0
    """Finished steps of it."""
    best: float | None = None
    """Best figure of the validation part; None before the first."""
    best_step: int = 0
    """Step of the weights that had it."""
    since: int = 0
    """Step of this phase after which nothing better came, for its patience."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What decides the weights."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside it."""


def save(run: Path, state: State, files: Mapping[str, Weights]) -> Path:
    """Write a checkpoint, and remove older ones than the last two.

    Raises:
        CheckpointError: It cannot be written; those before are as they were.
    """
    folder = run / CHECKPOINTS / f"step-{state.step:08d}"
    temporary = folder.with_name(folder.name + TEMPORARY)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        hashes = {}
        for name, weights in files.items():
            path = temporary / name
            save_file({key: value.contiguous() for key, value in weights.items()}, path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        content = {**config.to_dict(state), "files": hashes}
        write_bytes(temporary / STATE, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
        if folder.exists():
            _remove(folder)
        temporary.rename(folder)
        _sync(folder.parent)
        for old in checkpoints(run)[:-KEPT]:
            _remove(old)
    # safetensors reports a full disk as an error of its own.
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder} could not be written: {error}; free space, and start it again") from error
    return folder


def read(run: Path) -> tuple[State, dict[str, Weights]] | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    faults = []
    for folder in reversed(checkpoints(run)):
        try:
            return _read(folder)
        except CheckpointError as error:
            faults.append(str(error))
    if faults:
        raise CheckpointError(
            f"no checkpoint of {run} is whole: {'; '.join(faults)}. Delete {run / CHECKPOINTS} to begin anew"
        )
    return None


def remove_all(run: Path) -> None:
    """Remove a run's checkpoints, so that it begins anew."""
    if (run / CHECKPOINTS).is_dir():
        shutil.rmtree(run / CHECKPOINTS)


def _read(folder: Path) -> tuple[State, dict[str, Weights]]:
    try:
        state = config.from_dict(State, config.read_json(folder / STATE), STATE)
        files = {}
        for name, wanted in state.files.items():
            raw = (folder / name).read_bytes()
            if hashlib.sha256(raw).hexdigest() != wanted:
                raise CheckpointError(f"{folder / name} is not what was written")
            files[name] = load_file(folder / name)
    except (OSError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return state, files


def weights_of(module: nn.Module) -> Weights:
    """Return a copy of all weights and buffers, on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def averages_of(optimizer: torch.optim.Optimizer) -> Weights:
    """Return the state of an optimizer, as `weight.name`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value.detach().cpu() for number, each in state.items() for name, value in each.items()}


def restore_(optimizer: torch.optim.Optimizer, averages: Weights) -> None:
    """Give an optimizer the state that `averages_of` returned; its rates stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in averages.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Refuse to go on with other settings.

    Raises:
        ConfigError: What differs.
    """
    changed = config.differences(before, now)
    if changed:
        listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(f"{run} holds a run with other settings: {listed}. Give another --out, or --no-resume")


def _remove(folder: Path) -> None:
    """Remove a checkpoint, so that no kill leaves half of it under its name."""
    temporary = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
