"""What a run will do, settled before it begins: its windows, its model, and what forbids it; and `--dry-run`.

The dry run goes through the same checks as a run, in the order of a run, and stops before DeepSpeed starts. The model
is built on the meta device, where weights have shapes and no memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm import config
from ecgfm.data.labels import LabelTable
from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.mixture import parse_weights
from ecgfm.data.patients import number_people
from ecgfm.data.places import fill_cache, shard_source, stop_fetching
from ecgfm.data.prepare import Prepare
from ecgfm.data.validation import ValidationWindows, hold_out_, validation_windows
from ecgfm.errors import CheckpointError, ConfigError, EcgfmError
from ecgfm.leads import LEADS
from ecgfm.objectives.base import Objective, build_objective, objective_class
from ecgfm.rng import derive
from ecgfm.shards.check import require_whole
from ecgfm.shards.leaks import LeakReport, require_no_leak
from ecgfm.shards.manifest import read_manifest
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.engine import recompute_
from ecgfm.train.engine_config import MASTERS, deepspeed_settings
from ecgfm.train.probe_hook import ProbeHook
from ecgfm.train.run import Run, places


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
        scale="record" if run.data.scale == "record" else "fixed",
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
        for place in places(run) if run.data.verify else ():
            if not (run.dry_run and place.remote):
                require_whole(place.folder)
        held_out = run.data.held_out + ((run.probe.shards,) if run.probe.shards else ())
        return require_no_leak([place.folder for place in places(run)], held_out), None
    except EcgfmError as error:
        return None, error


def open_shards(run: Run) -> Shards:
    """Return the run's records; those of elsewhere as their manifests say, until `fetch_data` has run.

    Raises:
        ConfigError: An address that cannot be read from.
        ShardError: A manifest or shard is missing, cut, or not what it should be.
    """
    here = not run.data.streamed and not any(place.remote for place in places(run))
    shards = Shards([place.folder for place in places(run)], here=here)
    hold_out_(shards, run.data.validation_share)
    return shards


def fetch_data(run: Run, shards: Shards) -> Exception | None:
    """Fetch what the cache lacks; return what went wrong. Every rank does it, and the first of a machine fetches."""
    if run.data.streamed:
        return None
    try:
        fill_cache(places(run))
        shards.check_sizes()
    except EcgfmError as error:
        return error
    return None


def run_loader(
    run: Run, shards: Shards, contract: SignalContract, *, rank: int, ranks: int, position: int, pin_memory: bool
) -> Loader:
    """Return the run's windows, from a position on.

    Raises:
        ConfigError: No record may be used, or the batch cannot be split evenly.
    """
    streaming = None
    if run.data.streamed:
        there = places(run)
        streaming = Streaming(
            read_shard=shard_source(there, shards),
            block_shards=run.data.stream_block,
            readers=run.data.stream_readers,
            stop=lambda: stop_fetching(there),
        )
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
        streaming=streaming,
        skip_damaged=run.data.on_corrupt == "skip",
        check_records=run.data.check_records,
        labels=run_labels(run, shards),
        person_N=run_people(run, shards),
    )


def run_labels(run: Run, shards: Shards) -> LabelTable | None:
    """Return the labels that the objective learns from; None where it learns from none.

    Raises:
        ConfigError: The shards do not have them.
    """
    names = objective_class(run.objective).labels(run.objective)
    return LabelTable(shards, names) if names else None


def run_people(run: Run, shards: Shards) -> NDArray[np.int64] | None:
    """Return whose each record is, where the objective asks."""
    return number_people(shards)[0] if objective_class(run.objective).asks_patients(run.objective) else None


def run_prepare(run: Run, shards: Shards, contract: SignalContract, *, keep_counts: bool = False) -> Prepare:
    """Return what normalises the run's windows, or on a GPU leaves that to an encoder that takes counts."""
    scales = shards.manifests if run.data.scale == "database" else [contract] * len(shards.manifests)
    return Prepare(
        torch.tensor([scale.mean_mv for scale in scales]),
        torch.tensor([scale.std_mv for scale in scales]),
        contract.clip,
        rate_hz=contract.rate_hz,
        per_window=run.data.scale == "record",
        databases=tuple(manifest.database for manifest in shards.manifests),
        keep_counts=keep_counts,
    )


def run_validation(run: Run, shards: Shards, contract: SignalContract) -> ValidationWindows | None:
    """Return the windows that the run validates on; None where it does not.

    Raises:
        ConfigError: Patients were held out for it, and none of their records can be used.
    """
    if not run.data.validation_windows:
        return None
    samples, flags = contract.window_samples, run.data.exclude_flags
    found = validation_windows(shards, samples, flags, run.data.validation_windows, by_shard=run.data.streamed)
    if found is None and run.data.validation_share:
        raise ConfigError(
            f"--data.validation-share {run.data.validation_share:g} holds out patients all of whose records are "
            f"shorter than --data.window-s {run.data.window_s:g} or have a flag of --data.exclude-flags; give a larger "
            "share"
        )
    return replace(found, labels=run_labels(run, shards), person_N=run_people(run, shards)) if found else None


def run_probe(run: Run, shards: Shards, contract: SignalContract) -> ProbeHook | None:
    """Return the probe of the run; None where it has none.

    Raises:
        ConfigError: It cannot be done.
        ShardError: Its shards are missing or damaged.
    """
    if run.probe.shards is None:
        return None
    return ProbeHook(run.probe, shards, config.to_dict(run.encoder), contract)


def quality_plan(run: Run, windows: ValidationWindows | None, probe: ProbeHook | None) -> list[str]:
    """Return what is said of validation and probe."""
    lines = []
    if windows:
        lines.append(
            f"validation: {len(windows):,} windows of {windows.records:,} records of {windows.patients:,} patients, "
            f"every {run.validate_every or run.checkpoint_every:,} steps"
        )
    if probe:
        lines.append(
            f"probe: {probe.target.label} in {len(probe.index_N):,} records of {len(set(probe.target.patients)):,} "
            f"patients, every {run.probe.every or run.checkpoint_every:,} steps"
        )
    return lines


def run_objective(run: Run, contract: SignalContract) -> Objective:
    """Return the objective with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(run.seed, "weights"))
        return build_objective(run.objective, run.encoder, contract.window_samples, contract.rate_hz)


def planned_objective(run: Run, contract: SignalContract) -> Objective:
    """Return the objective on the meta device, where it takes no memory, once the engine has nothing against it.

    Raises:
        ConfigError: The encoder, the objective and the engine cannot work together.
    """
    deepspeed_settings(run.engine, micro_batch_size=1, clip_norm=run.optim.clip_norm)
    with torch.device("meta"):
        objective = run_objective(run, contract)
    if run.engine.checkpoint_activations:
        recompute_(objective, compiled=run.engine.compile)
    return objective


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
    copy_bytes: int
    """In the memory of rank 0, while it writes a checkpoint and the run goes on."""


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
        copy_bytes=checkpoint.collected_bytes(objective),
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
    objective = planned_objective(run, contract)
    quality = quality_plan(run, run_validation(run, shards, contract), run_probe(run, shards, contract))
    for line in plan(run, loader, sizes(objective), report, ranks, found.step if found else 0, disk_room(run.out)):
        print(line)
    for line in quality:
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
    masters = run.engine.precision in MASTERS
    weights = size.weights_bytes // (2 if masters else 1) // (ranks if run.engine.zero_stage == 3 else 1)
    state = size.optimizer_bytes * 3 // 2 if masters else size.optimizer_bytes
    steps = max(run.last_step - start, 0)
    windows = steps * run.data.batch_size
    # The newest is written before the oldest is removed. Those for ever may be among the newest: not fewer than this.
    most = run.keep_checkpoints + 1 + (run.last_step // run.keep_every if run.keep_every else 0)
    lines = [
        f"plan of {run.out}: nothing is written and nothing is trained",
        f"model: encoder {size.encoder:,} parameters; {size.total:,} in all, {size.trained:,} of them trained",
        f"each rank: weights {_mb(weights)}, optimizer state {_mb(state // split)} of "
        f"{_mb(state)}; gradients, activations and the engine's copies come on top",
        f"checkpoint: about {_mb(size.checkpoint_bytes)}, at most {most} at once; {_mb(free)} free at {run.out}; "
        f"while it is written rank 0 keeps a copy of {_mb(size.copy_bytes)} in its memory",
        f"steps: {start:,} to {run.last_step:,} of schedules of {run.optim.schedule_steps:,}, a checkpoint every "
        f"{run.checkpoint_every:,}",
        f"batch: {run.data.batch_size:,} windows = {ranks} ranks x {loader.rows[1] - loader.rows[0]} x "
        f"{run.engine.accumulation} micro-batches",
        f"windows: {windows:,} of {run.data.window_s:g} s, {windows * run.data.window_s / 3600:,.1f} h to see",
        *_databases(loader, run.last_step * run.data.batch_size),
        *reading(run, loader),
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


def reading(run: Run, loader: Loader) -> list[str]:
    """Return what is to be said of shards that are not read by index from a folder."""
    there = [place for place in places(run) if place.remote]
    listed = ", ".join(map(str, there)) or "the folders"
    shards = [shard for manifest in loader.shards.manifests for shard in manifest.shards]
    size = sum(shard.bytes for shard in shards)
    if run.data.streamed:
        block = run.data.stream_block * max(shard.bytes for shard in shards)
        return [
            f"streamed: {len(shards):,} shards ({size / 1e9:,.2f} GB) of {listed}, read by every rank; in memory, over "
            f"the ranks together, up to {2 * len(loader.mixture.parts) * block / 1e9:,.2f} GB"
        ]
    if there:
        size = sum(shard.bytes for place in there for shard in read_manifest(place.folder).shards)
        return [f"cache: {listed} is kept in {run.data.cache} ({size / 1e9:,.2f} GB)"]
    return []


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
