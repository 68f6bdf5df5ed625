"""The training loop: it knows no method, only batches, losses, steps and checkpoints."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfm import config
from ecgfm.data.batch import Draws
from ecgfm.data.loader import Loader
from ecgfm.data.prepare import Prepare
from ecgfm.errors import CheckpointError, ConfigError, EcgfmError
from ecgfm.objectives.base import Objective, Progress
from ecgfm.shards.manifest import manifest_sha256, write_json
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.alarms import Watch
from ecgfm.train.engine import Engine, World, end_world, start_world
from ecgfm.train.log import RunLog
from ecgfm.train.optim import build_optimizer, set_values
from ecgfm.train.plan import check_data, dry_run, run_loader, run_objective, signal_contract
from ecgfm.train.run import Run, check_run, check_same, identity
from ecgfm.train.stop import EX_INTERRUPTED, EX_REQUEUE, Stop, stopping

RUN = "run.json"


def train(run: Run) -> None:
    """Run, or go on with, a pretraining run, or print its plan. All ranks must call it.

    Raises:
        ConfigError: Settings that cannot work, or differ from the run in the folder.
        ShardError: Shards that are missing or damaged.
        CheckpointError: A checkpoint that cannot be written or continued.
        RankError: Another rank ended, died, or hangs.
        TrainingError: Too many bad steps, or alarms, in a row.
        SystemExit: A signal ended the run before its last step; it was saved. The status is one of train/stop.py.
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
    if run.dry_run:
        dry_run(run, shards, contract, found[1] if found else None)
        return
    world = start_world(run.engine.timeout_min)
    try:
        with world.naming_the_lost():
            _train(run, world, shards, contract, settings, found)
    finally:
        end_world()


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
    leaks, fault = check_data(run) if world.rank == 0 else (None, None)
    world.agree(fault, patient=True)
    start = found[1].step if found else 0
    position = found[1].records_seen if found else 0
    on_gpu = world.device.type == "cuda"
    loader = run_loader(run, shards, contract, rank=world.rank, ranks=world.size, position=position, pin_memory=on_gpu)
    objective = run_objective(run, contract)
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
        for note in leaks.notes if leaks else ():
            log.say(note)
        _introduce(log, run, world, loader, objective, config.fingerprint(settings), start)
    facts = {
        "world_size": world.size,
        "fingerprint": config.fingerprint(settings),
        "identity": settings,
        "shards": _shard_facts(loader),
        "versions": checkpoint.versions(),
    }
    watch = Watch(run.alarms, run.optim.warmup_steps, found[1].alarms if found else {})
    try:
        with stopping() as stop:
            _steps(run, engine, loader, shards, contract, start, watch, log, stop, facts)
    finally:
        if log:
            log.close()
    # A launcher ends all ranks when the first one ends with a status: by then none may have anything left to do.
    world.barrier()
    if stop.status:
        raise SystemExit(stop.status)


def _steps(
    run: Run,
    engine: Engine,
    loader: Loader,
    shards: Shards,
    contract: SignalContract,
    start: int,
    watch: Watch,
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
    # Of the steps since the last logged one that were not skipped.
    good, total = 0, torch.zeros((), device=world.device)
    timer = _Timer()
    batches = iter(loader)
    try:
        while step < run.last_step:
            log_now = (step + 1) % run.log_every == 0 or step + 1 == run.last_step
            at = Progress(step=step, schedule_steps=run.optim.schedule_steps, measure=log_now)
            values = run.optim.values(step)
            set_values(engine.param_groups, values)
            micro_losses = []
            for micro in range(run.engine.accumulation):
                # Drawn for the whole step, of which these are rows: another accumulation draws the same.
                before = micro * loader.micro_rows
                draws = Draws(
                    seed=run.seed,
                    step=step,
                    micro=0,
                    rows=(before + loader.rows[0], before + loader.rows[1]),
                    all_rows=run.data.batch_size,
                    device=world.device,
                )
                batch = objective.views(prepare(next(batches).to(world.device)), draws)
                losses = engine.forward(batch, at)
                engine.backward(losses["loss"])
                micro_losses.append(losses["loss"].detach())
                complete = engine.step()
            assert complete, "the engine and the loop count micro-batches differently"
            step += 1
            if engine.applied:
                values |= objective.after_step(at)
                watch.good_step()
                good += 1
                total += torch.stack(micro_losses).mean()
            else:
                _skip(world, loader, position, step, torch.stack(micro_losses), watch, log)
            position += run.data.batch_size
            timer.count += run.data.batch_size
            if log_now:
                mean_loss = total / good if good else None
                last_metrics = _gather(world, engine, losses, mean_loss, timer, step, values)
                good = 0
                total.zero_()
                _look(world, last_metrics, watch, log)
            if log:
                log.advance(step)
            reason = stop.reason()
            stop_now = world.any(reason is not None)
            if stop_now or step % run.checkpoint_every == 0 or step == run.last_step:
                state = {"step": step, "records_seen": position, "last_metrics": last_metrics, **facts}
                state["alarms"] = watch.memory()
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
    if step < run.last_step:
        stop.status = EX_INTERRUPTED if world.any(stop.interrupted()) else EX_REQUEUE
    if log and step < run.last_step:
        log.say(f"stopped at step {step:,} by {reason or 'another rank'}; the same command goes on from there")


def _skip(
    world: World,
    loader: Loader,
    position: int,
    step: int,
    micro_losses: torch.Tensor,
    watch: Watch,
    log: RunLog | None,
) -> None:
    """Write down the records of a step that was skipped. All ranks must call it.

    They are those of the micro-batches whose loss is not finite; where all losses are, those of the whole step.

    Raises:
        TrainingError: It is one too many.
    """
    num_micro, rows = len(micro_losses), loader.rows[1] - loader.rows[0]
    bad_MR = torch.zeros(num_micro, world.size)
    bad_MR[:, world.rank] = (~torch.isfinite(micro_losses)).float().cpu()
    bad = world.mean(bad_MR.flatten()).numpy() > 0
    index, starts = loader.windows(position, position + rows * bad.size)
    taken = np.repeat(bad if bad.any() else ~bad, rows)
    records = []
    for record, start in zip(index[taken].tolist(), starts[taken].tolist(), strict=True):
        about = loader.shards.about(record)
        # A long recording lies in the shards as segments; the window is told by its place in the recording.
        first = round(about["start_s"] * about["rate_hz"]) + start
        records.append({"database": about["database"], "record": about["record"], "start_sample": first})
    what = "loss" if bad.any() else "gradient"
    one = records[0]
    error = watch.bad_step(step, f"{one['database']} {one['record']} from sample {one['start_sample']}")
    if log:
        log.bad_step({"step": step, "not_finite": what, "records": records})
        log.say(f"step {step:,}: skipped, its {what} is not finite; its records are in bad_steps.jsonl")
    if error:
        world.barrier()
        raise error


def _look(world: World, figures: dict[str, Any], watch: Watch, log: RunLog | None) -> None:
    """Write a logged step, with what is wrong. All ranks must call it.

    Raises:
        TrainingError: It has been wrong for too long.
    """
    before = watch.alarmed
    alarms = watch.alarms(figures["step"], figures)
    if watch.skipped:
        figures["skipped_steps"] = watch.skipped
    if alarms:
        figures["alarm"] = "; ".join(alarms)
    if log:
        log.metrics(figures)
        if alarms and not before:
            log.say(f"step {figures['step']:,}: warning: {figures['alarm']}")
        if before and not alarms:
            log.say(f"step {figures['step']:,}: the alarm is over")
    if error := watch.verdict(alarms):
        world.barrier()
        raise error


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
    mean_loss: torch.Tensor | None,
    timer: _Timer,
    step: int,
    values: dict[str, float],
) -> dict[str, Any]:
    """Return the figures of a logged step, as means over ranks; this waits for the device.

    Those that are not finite, in a step that was skipped, are left out.
    """
    figures = {"loss": losses["loss"], **losses}
    mean = world.mean(torch.stack([figure.detach().float() for figure in figures.values()]))
    named = dict(zip(figures, mean.tolist(), strict=True))
    named["loss"] = math.nan if mean_loss is None else world.mean(mean_loss.reshape(1)).item()
    norm = engine.gradient_norm()
    if norm is not None:
        named["gradient_norm"] = norm
    finite = {name: value for name, value in named.items() if math.isfinite(value)}
    return {"step": step, **finite, **values, "records_per_s": timer.rate()}


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
