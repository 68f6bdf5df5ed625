"""The training loop: it knows no method, only batches, losses, steps and checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfm import config
from ecgfm.data.batch import Draws
from ecgfm.data.loader import Loader
from ecgfm.data.mixture import parse_weights
from ecgfm.data.prepare import Prepare
from ecgfm.errors import CheckpointError, ConfigError, EcgfmError
from ecgfm.leads import LEADS
from ecgfm.objectives.base import Objective, Progress, build_objective
from ecgfm.rng import derive
from ecgfm.shards.check import require_whole
from ecgfm.shards.leaks import require_no_leak
from ecgfm.shards.manifest import manifest_sha256, write_json
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.engine import Engine, World, end_world, start_world
from ecgfm.train.log import RunLog
from ecgfm.train.optim import build_optimizer, set_values
from ecgfm.train.run import Run, check_run, check_same, identity
from ecgfm.train.stop import Stop, stopping

RUN = "run.json"


def train(run: Run) -> None:
    """Run, or go on with, a pretraining run. All ranks must call it.

    Raises:
        ConfigError: Settings that cannot work, or differ from the run in the folder.
        ShardError: Shards that are missing or damaged.
        CheckpointError: A checkpoint that cannot be written or continued.
    """
    if not run.data.shards:
        raise ConfigError("--data.shards is missing: give one or more folders that tools/convert.py wrote")
    shards = Shards(run.data.shards)
    contract = signal_contract(run, shards)
    check_run(run, contract.window_samples)
    settings = identity(run)
    found = _found(run)
    if found:
        check_same(found[1].identity, settings, run)
    world = start_world()
    try:
        _train(run, world, shards, contract, settings, found)
    finally:
        end_world()


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


def _found(run: Run) -> tuple[Path, checkpoint.State] | None:
    """Return the newest checkpoint in the run's folder, if there is one to go on from."""
    there = checkpoint.checkpoints(run.out)
    if not there:
        return None
    if not run.resume:
        raise ConfigError(f"{run.out} holds a run already ({there[-1].name}): give another --out, or drop --no-resume")
    return there[-1], checkpoint.read_state(there[-1])


def _train(
    run: Run,
    world: World,
    shards: Shards,
    contract: SignalContract,
    settings: dict[str, Any],
    found: tuple[Path, checkpoint.State] | None,
) -> None:
    notes, fault = _check_data(run) if world.rank == 0 else ((), None)
    world.agree(fault)
    start = found[1].step if found else 0
    position = found[1].records_seen if found else 0
    loader = Loader(
        shards,
        window_samples=contract.window_samples,
        batch_size=run.data.batch_size,
        accumulation=run.engine.accumulation,
        rank=world.rank,
        world_size=world.size,
        seed=run.seed,
        position=position,
        exclude_flags=run.data.exclude_flags,
        weights=parse_weights(run.data.weights),
        pin_memory=world.device.type == "cuda",
    )
    objective = _build(run, contract)
    engine = Engine(
        run.engine,
        world,
        objective,
        build_optimizer(run.optim, objective),
        micro_batch_size=loader.rows[1] - loader.rows[0],
        clip_norm=run.optim.clip_norm,
    )
    if found:
        checkpoint.load(engine, *found)
    world.agree(_write_settings(run, engine) if world.rank == 0 else None)
    log = RunLog(run.out, start, run.last_step) if world.rank == 0 else None
    if log:
        for note in notes:
            log.say(note)
        _introduce(log, run, world, loader, objective, config.fingerprint(settings), start)
    facts = {
        "world_size": world.size,
        "fingerprint": config.fingerprint(settings),
        "identity": settings,
        "shards": _shard_facts(loader),
        "versions": checkpoint.versions(),
    }
    try:
        with stopping() as stop:
            _steps(run, engine, loader, shards, contract, start, log, stop, facts)
    finally:
        if log:
            log.close()


def _steps(
    run: Run,
    engine: Engine,
    loader: Loader,
    shards: Shards,
    contract: SignalContract,
    start: int,
    log: RunLog | None,
    stop: Stop,
    facts: dict[str, Any],
) -> None:
    """Train from `start` to the run's last step, or to the step in which a signal came."""
    world, objective = engine.world, engine.objective
    pooled = [contract] * len(shards.manifests)
    scales = shards.manifests if run.data.scale == "database" else pooled
    prepare = Prepare(
        torch.tensor([scale.mean_mv for scale in scales]),
        torch.tensor([scale.std_mv for scale in scales]),
        contract.clip,
    ).to(world.device)
    step, saved, position = start, start, loader.position
    reason: str | None = None
    last_metrics: dict[str, Any] = {}
    logged = start
    total = torch.zeros((), device=world.device)
    timer = _Timer()
    batches = iter(loader)
    try:
        while step < run.last_step:
            log_now = (step + 1) % run.log_every == 0 or step + 1 == run.last_step
            at = Progress(step=step, schedule_steps=run.optim.schedule_steps, measure=log_now)
            values = run.optim.values(step)
            set_values(engine.param_groups, values)
            for micro in range(run.engine.accumulation):
                draws = Draws(
                    seed=run.seed,
                    step=step,
                    micro=micro,
                    rows=loader.rows,
                    all_rows=loader.micro_rows,
                    device=world.device,
                )
                batch = objective.views(prepare(next(batches).to(world.device)), draws)
                losses = engine.forward(batch, at)
                engine.backward(losses["loss"])
                total += losses["loss"].detach() / run.engine.accumulation
                complete = engine.step()
            assert complete, "the engine and the loop count micro-batches differently"
            values |= objective.after_step(at)
            step += 1
            position += run.data.batch_size
            timer.count += run.data.batch_size
            if log_now:
                last_metrics = _gather(world, engine, losses, total / (step - logged), timer, step, values)
                total.zero_()
                logged = step
                if log:
                    log.metrics(last_metrics)
            if log:
                log.advance(step)
            reason = stop.reason()
            stop_now = world.any(reason is not None)
            if stop_now or step % run.checkpoint_every == 0 or step == run.last_step:
                state = {"step": step, "records_seen": position, "last_metrics": last_metrics, **facts}
                folder = checkpoint.save(engine, run.out, state, contract, run.keep_checkpoints)
                saved = step
                timer.pause()
                if log:
                    log.say(f"step {step:,}: wrote {folder}")
            if stop_now:
                break
    finally:
        batches.close()  # type: ignore[attr-defined]
    assert saved == step
    if log and step < run.last_step:
        log.say(f"stopped at step {step:,} by {reason or 'another rank'}; the same command goes on from there")


class _Timer:
    """Records a second since the last figure, checkpoints left out."""

    def __init__(self) -> None:
        self.count = 0
        self._since = time.perf_counter()

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self.count / max(now - self._since, 1e-9)
        self.count, self._since = 0, now
        return rate

    def pause(self) -> None:
        """Start again after something that is not training."""
        self.count, self._since = 0, time.perf_counter()


def _gather(
    world: World,
    engine: Engine,
    losses: dict[str, torch.Tensor],
    mean_loss: torch.Tensor,
    timer: _Timer,
    step: int,
    values: dict[str, float],
) -> dict[str, Any]:
    """Return the figures of a logged step, as means over ranks; this waits for the device."""
    figures = {"loss": losses["loss"], **losses}
    mean = world.mean(torch.stack([figure.detach().float() for figure in figures.values()]))
    named = dict(zip(figures, mean.tolist(), strict=True))
    since_last = world.mean(mean_loss.reshape(1)).item()
    named["loss"] = since_last
    norm = engine.gradient_norm()
    if norm is not None:
        named["gradient_norm"] = norm
    if not torch.isfinite(torch.tensor(since_last)):
        raise CheckpointError(
            f"the loss is {since_last} at step {step}: the run has diverged. Lower --optim.lr or set "
            "--optim.clip-norm, and start again from the last checkpoint"
        )
    return {"step": step, **named, **values, "records_per_s": timer.rate()}


def _build(run: Run, contract: SignalContract) -> Objective:
    """Return the objective with weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(run.seed, "weights"))
        return build_objective(run.objective, run.encoder, contract.window_samples)


def _check_data(run: Run) -> tuple[tuple[str, ...], Exception | None]:
    """Return what to know of the run's records, and what forbids to train on them: damage, or a held-out record."""
    try:
        for folder in run.data.shards if run.data.verify else ():
            require_whole(folder)
        return require_no_leak(run.data.shards, run.data.held_out).notes, None
    except EcgfmError as error:
        return (), error


def _write_settings(run: Run, engine: Engine) -> Exception | None:
    """Write run.json and what DeepSpeed was given."""
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        write_json(run.out / RUN, config.to_dict(run))
        write_json(run.out / "deepspeed.json", engine.settings)
    except OSError as error:
        return CheckpointError(f"{run.out} cannot be written: {error.strerror}; check its permissions and space")
    except EcgfmError as error:
        return error
    return None


def _introduce(
    log: RunLog, run: Run, world: World, loader: Loader, objective: Objective, fingerprint: str, start: int
) -> None:
    """Say what is about to happen."""
    weights = sum(weight.numel() for weight in objective.published().parameters()) / 1e6
    batch = f"{world.size} ranks x {loader.rows[1] - loader.rows[0]} windows"
    if run.engine.accumulation > 1:
        batch += f" x {run.engine.accumulation} micro-batches"
    log.say(
        f"{run.out}: encoder of {weights:.2f} M parameters on {world.device.type}, {len(loader.records):,} records, "
        f"{batch} = {run.data.batch_size} a step, settings {fingerprint}"
    )
    skipped = len(loader.shards) - len(loader.records)
    if skipped:
        log.say(
            f"{skipped:,} records are left out: of a held-out split, shorter than {run.data.window_s:g} s, or flagged"
        )
    epochs = loader.mixture.epochs(run.optim.schedule_steps * run.data.batch_size)
    if run.data.weights:
        listed = ", ".join(f"{name} {count:.3g}" for name, count in epochs.items())
        log.say(f"epochs of each database by the schedules' end: {listed}")
    if start >= run.last_step:
        log.say(f"it has {start:,} steps already and is asked for {run.last_step:,}: nothing to do")
        return
    if start:
        log.say(f"going on from step {start:,}")
    if run.last_step < run.optim.schedule_steps:
        rate = run.optim.values(run.last_step)["lr"]
        log.say(
            f"stops at step {run.last_step:,} of schedules of {run.optim.schedule_steps:,} (learning rate then "
            f"{rate:.1e}, highest {run.optim.lr:.1e}); for a short run that is whole: "
            f"--optim.schedule-steps {run.last_step}"
        )


def _shard_facts(loader: Loader) -> list[dict[str, Any]]:
    """Return what a model card says about the data: the records that pretraining reads, and no others."""
    names = ("database", "title", "licence", "citation", "address", "version")
    used = np.bincount(loader.shards.folder_of[loader.records], minlength=len(loader.shards.folders)).tolist()
    return [
        {
            **{name: getattr(manifest, name) for name in names},
            "records": records,
            "patients": manifest.patients if records == manifest.segments else None,
            "manifest_sha256": manifest_sha256(folder),
        }
        for folder, manifest, records in zip(loader.shards.folders, loader.shards.manifests, used, strict=True)
    ]
