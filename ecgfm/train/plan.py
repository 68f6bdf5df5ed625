"""What a run will do, settled before it begins: its windows, its model, and what forbids it; and `--dry-run`.

The dry run goes through the same checks as a run, in the order of a run, and stops before DeepSpeed starts. The model
is built on the meta device, where weights have shapes and no memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ecgfm.data.loader import Loader
from ecgfm.data.mixture import parse_weights
from ecgfm.errors import CheckpointError, EcgfmError
from ecgfm.leads import LEADS
from ecgfm.objectives.base import Objective, build_objective
from ecgfm.rng import derive
from ecgfm.shards.check import require_whole
from ecgfm.shards.leaks import LeakReport, require_no_leak
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.engine_config import deepspeed_settings
from ecgfm.train.run import Run


def signal_contract(run: Run, shards: Shards) -> SignalContract:
    """Return what the encoder will demand of a signal: the shards' rate, and their pooled mean and std."""
    weight = torch.tensor([manifest.segments for manifest in shards.manifests], dtype=torch.float64)[:, None]
    mean = torch.tensor([manifest.mean_mv for manifest in shards.manifests], dtype=torch.float64)
    square = torch.tensor([manifest.std_mv for manifest in shards.manifests], dtype=torch.float64) ** 2 + mean**2
    pooled = (weight * mean).sum(0) / weight.sum()
    std = ((weight * square).sum(0) / weight.sum() - pooled**2).clamp(min=0.0).sqrt()
    return SignalContract(
        rate_hz=shards.rate_hz,
        leads=LEADS,
        mean_mv=tuple(pooled.tolist()),
        std_mv=tuple(std.tolist()),
        highpass_hz=_common_highpass(shards),
        clip=run.data.clip,
        window_samples=round(run.data.window_s * shards.rate_hz),
    )


def _common_highpass(shards: Shards) -> float | None:
    """Return the filter that all shards went through.

    Where only the databases that need one were filtered, as by default, the encoder asks for none: those were brought
    to what the others are.
    """
    corners = {manifest.options["signal"]["highpass_hz"] for manifest in shards.manifests}
    return corners.pop() if len(corners) == 1 else None


def check_data(run: Run) -> tuple[LeakReport | None, Exception | None]:
    """Return what is known of the run's records, and what forbids to train on them: damage, or a held-out record."""
    try:
        for folder in run.data.shards if run.data.verify else ():
            require_whole(folder)
        return require_no_leak(run.data.shards, run.data.held_out), None
    except EcgfmError as error:
        return None, error


def run_loader(
    run: Run, shards: Shards, contract: SignalContract, *, rank: int, ranks: int, position: int, pin_memory: bool
) -> Loader:
    """Return the run's windows, from a position on.

    Raises:
        ConfigError: No record may be used, or the batch cannot be split evenly.
    """
    return Loader(
        shards,
        window_samples=contract.window_samples,
        batch_size=run.data.batch_size,
        accumulation=run.engine.accumulation,
        rank=rank,
        world_size=ranks,
        seed=run.seed,
        position=position,
        exclude_flags=run.data.exclude_flags,
        weights=parse_weights(run.data.weights),
        pin_memory=pin_memory,
    )


def run_objective(run: Run, contract: SignalContract) -> Objective:
    """Return the objective with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(run.seed, "weights"))
        return build_objective(run.objective, run.encoder, contract.window_samples)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes: parameters, and bytes over all ranks together where they are split."""

    encoder: int
    """Parameters of the published encoder."""
    total: int
    """Parameters of the objective, the encoder and a target among them."""
    trained: int
    """Of these, those that the optimizer moves."""
    weights_bytes: int
    """On each rank, in float32, buffers among them."""
    optimizer_bytes: int
    """AdamW's two averages; split over the ranks from ZeRO stage 1 on."""
    checkpoint_bytes: int
    """On the disk."""


def sizes(objective: Objective) -> Sizes:
    """Return what an objective takes; its weights may be on the meta device."""
    trained = _count([weight for weight in objective.parameters() if weight.requires_grad])
    return Sizes(
        encoder=_count(objective.published().parameters()),
        total=_count(objective.parameters()),
        trained=trained,
        weights_bytes=sum(
            tensor.numel() * tensor.element_size() for tensor in (*objective.parameters(), *objective.buffers())
        ),
        optimizer_bytes=8 * trained,
        checkpoint_bytes=checkpoint.needed_bytes(objective),
    )


def dry_run(run: Run, shards: Shards, contract: SignalContract, found: checkpoint.State | None) -> None:
    """Print the plan of a run.

    Raises:
        EcgfmError: What would keep the run from starting, or from writing its first checkpoint.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    ranks = run.ranks or int(os.environ.get("WORLD_SIZE", "1"))
    report, fault = check_data(run)
    if fault:
        raise fault
    assert report is not None
    position = found.records_seen if found else 0
    loader = run_loader(run, shards, contract, rank=0, ranks=ranks, position=position, pin_memory=False)
    deepspeed_settings(run.engine, micro_batch_size=loader.rows[1] - loader.rows[0], clip_norm=run.optim.clip_norm)
    with torch.device("meta"):
        objective = run_objective(run, contract)
    for line in plan(run, loader, sizes(objective), report, ranks, found.step if found else 0, disk_room(run.out)):
        print(line)


def disk_room(out: Path) -> int:
    """Return the free bytes where a run will be written.

    Raises:
        CheckpointError: Nothing can be written there.
    """
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"--out {out} cannot be written: {there} is no folder, or not yours; give another")
    return shutil.disk_usage(there).free


def plan(run: Run, loader: Loader, size: Sizes, leaks: LeakReport, ranks: int, start: int, free: int) -> list[str]:
    """Return the lines that `--dry-run` prints.

    Args:
        run: The settings.
        loader: The windows of the first of `ranks` ranks.
        size: Of the objective.
        leaks: What the comparison with held-out records found: none.
        ranks: Processes.
        start: Finished steps.
        free: Bytes on the disk of the run's folder.

    Raises:
        CheckpointError: The disk has no room for one checkpoint.
    """
    if free < size.checkpoint_bytes:
        raise CheckpointError(
            f"the disk of {run.out} has {_mb(free)} free and a checkpoint takes about {_mb(size.checkpoint_bytes)}; "
            "free space or give another --out"
        )
    split = ranks if run.engine.zero_stage else 1
    steps = max(run.last_step - start, 0)
    windows = steps * run.data.batch_size
    # The newest is written before the oldest is removed.
    most = run.keep_checkpoints + 1
    lines = [
        f"plan of {run.out}: nothing is written and nothing is trained",
        f"model: encoder {size.encoder:,} parameters; {size.total:,} in all, {size.trained:,} of them trained",
        f"each rank: weights {_mb(size.weights_bytes)}, optimizer state {_mb(size.optimizer_bytes // split)} of "
        f"{_mb(size.optimizer_bytes)}; gradients, activations and the engine's copies come on top",
        f"checkpoint: about {_mb(size.checkpoint_bytes)}, at most {most} at once; {_mb(free)} free at {run.out}",
        f"steps: {start:,} to {run.last_step:,} of schedules of {run.optim.schedule_steps:,}, a checkpoint every "
        f"{run.checkpoint_every:,}",
        f"batch: {run.data.batch_size:,} windows = {ranks} ranks x {loader.rows[1] - loader.rows[0]} x "
        f"{run.engine.accumulation} micro-batches",
        f"windows: {windows:,} of {run.data.window_s:g} s, {windows * run.data.window_s / 3600:,.1f} h to see",
        *_databases(loader, run.last_step * run.data.batch_size),
    ]
    left_out = len(loader.shards) - len(loader.records)
    if left_out:
        lines.append(
            f"left out: {left_out:,} records of a held-out split, shorter than {run.data.window_s:g} s, or flagged"
        )
    lines.append(f"leaks: none among {leaks.pretraining:,} records and {leaks.held_out:,} held out")
    lines += [f"leaks: {note}" for note in leaks.notes]
    if free < most * size.checkpoint_bytes:
        lines.append(f"warning: the disk has no room for {most} checkpoints: free space, or lower --keep-checkpoints")
    return lines


def _databases(loader: Loader, positions: int) -> list[str]:
    """Return a line for each database: its records, hours of signal, and epochs at the end."""
    shards, records = loader.shards, loader.records
    names = np.array([manifest.database for manifest in shards.manifests])
    hours = shards.num_samples[records] / shards.rate_hz / 3600
    own = names[shards.folder_of[records]]
    epochs = loader.mixture.epochs(positions)
    lines = []
    for name in dict.fromkeys(names.tolist()):
        # Without weights all records are drawn as one database.
        times = epochs.get(name, next(iter(epochs.values())))
        lines.append(
            f"data: {name} {(own == name).sum():,} records, {hours[own == name].sum():,.1f} h of signal, "
            f"{times:.3g} epochs at the end"
        )
    return lines


def _count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
