"""The training loop: it knows no method, only batches, losses, steps and checkpoints."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch

from ecgfm import config
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.loader import Loader
from ecgfm.errors import CheckpointError, ConfigError, ShardError
from ecgfm.objectives.base import Losses, Progress
from ecgfm.run_folder import checkpoints
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.alarms import Watch
from ecgfm.train.checkpoint_writer import Saver
from ecgfm.train.engine import Engine
from ecgfm.train.engine_config import check_device
from ecgfm.train.figures import Meter, WindowCost
from ecgfm.train.flops import window_flops
from ecgfm.train.hardware import peak_tflops
from ecgfm.train.health import look_at, skip_step
from ecgfm.train.lock import RunLock
from ecgfm.train.log import RunLog
from ecgfm.train.opening import introduce, open_log, shard_facts, write_settings
from ecgfm.train.optim import build_optimizer, set_values
from ecgfm.train.plan import (
    check_data,
    dry_run,
    fetch_data,
    open_shards,
    planned_objective,
    run_loader,
    run_objective,
    run_prepare,
    signal_contract,
)
from ecgfm.train.quality import Quality
from ecgfm.train.run import Run, check_run, check_same, identity
from ecgfm.train.skipped import Skipped
from ecgfm.train.stop import EX_INTERRUPTED, EX_REQUEUE, Stop, stopping
from ecgfm.train.world import Answer, World, end_world, has_gpu, start_world


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
    shards = open_shards(run)
    contract = signal_contract(run, shards)
    check_run(run, contract.window_samples, contract.rate_hz)
    check_device(run.engine, gpu=has_gpu())
    planned_objective(run, contract)
    settings = identity(run)
    found = _found(run)
    if found:
        check_same(found[1].identity, settings, run)
    if run.dry_run:
        dry_run(run, shards, contract, found[1] if found else None)
        return
    world = start_world(run.engine.timeout_min)
    lock = RunLock(run.out)
    try:
        with world.naming_the_lost():
            _train(run, world, lock, shards, contract, settings)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(f"the disk of {run.out} is full: {error}; free space and run the same command") from error
    finally:
        lock.release()
        end_world()


def _found(run: Run) -> tuple[Path, checkpoint.State] | None:
    """Return the newest checkpoint in the run's folder, if there is one to go on from."""
    there = checkpoints(run.out)
    if there and not run.resume:
        raise ConfigError(f"{run.out} holds a run already ({there[-1].name}): give another --out, or drop --no-resume")
    return checkpoint.newest(run.out)


def _train(
    run: Run,
    world: World,
    lock: RunLock,
    shards: Shards,
    contract: SignalContract,
    settings: dict[str, Any],
) -> None:
    world.agree(fetch_data(run, shards), patient=True)
    leaks, fault = check_data(run) if world.rank == 0 else (None, None)
    world.agree(fault, patient=True)
    world.agree(lock.take() if world.rank == 0 else None, patient=True)
    found, notes = checkpoint.settle(world, run.out)
    if found:
        check_same(found[1].identity, settings, run)
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
        checkpoint.load(engine, found[0])
    world.agree(write_settings(run, engine) if world.rank == 0 else None)
    log, fault = open_log(run, start) if world.rank == 0 else (None, None)
    world.agree(fault, patient=True)
    if log:
        for note in (*notes, *(leaks.notes if leaks else ())):
            log.say(note)
        introduce(log, run, world, loader, objective, config.fingerprint(settings), start)
    facts = {
        "world_size": world.size,
        "fingerprint": config.fingerprint(settings),
        "identity": settings,
        "shards": shard_facts(loader),
        "versions": checkpoint.versions(),
        "recipe": checkpoint.recipe(),
    }
    watch = Watch(run.alarms, run.optim.warmup_steps, found[1].alarms if found else {})
    try:
        with stopping() as stop:
            _Training(run, engine, loader, contract, start, watch, log, stop, facts).go()
    finally:
        if log:
            log.close()
    # A launcher ends all ranks when the first one ends with a status: by then none may have anything left to do.
    world.barrier()
    if stop.status:
        raise SystemExit(stop.status)


class _Training:
    """Trains from a step to the run's last one, or to the one in which a signal came.

    Args:
        run: The settings.
        engine: The objective on all ranks.
        loader: This rank's windows, from the records on that the run has not seen.
        contract: What the encoder will demand of a signal.
        step: Finished steps.
        watch: The alarms.
        log: On rank 0.
        stop: Reasons to stop.
        facts: What every checkpoint's state says.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        loader: Loader,
        contract: SignalContract,
        step: int,
        watch: Watch,
        log: RunLog | None,
        stop: Stop,
        facts: dict[str, Any],
    ) -> None:
        self.run, self.engine, self.loader, self.contract = run, engine, loader, contract
        self.world, self.objective = engine.world, engine.objective
        self.watch, self.log, self.stop, self.facts = watch, log, stop, facts
        self.step, self.position = step, loader.position
        counts = self.objective.takes_counts and self.objective.encoder.takes_counts
        self.prepare = run_prepare(run, loader.shards, contract, keep_counts=counts).to(self.world.device)
        self.quality = Quality(run, engine, loader, contract, self.prepare, log)
        self.meter = Meter(engine, _window_cost(run, contract, self.world.device))
        self.saver = Saver(
            engine,
            run.out,
            contract,
            keep=run.keep_checkpoints,
            keep_every=run.keep_every,
            say=log.say if log else None,
        )
        self.last_metrics: dict[str, Any] = {}
        self.fault: ShardError | None = None
        self.reason: str | None = None
        self.skipped: Skipped | None = None
        if loader.replacements:
            self.skipped = Skipped(loader.replacements, self.world, run.out, loader.position, run.data.max_skipped, log)

    def go(self) -> None:
        """Train, log, save."""
        run, saved = self.run, self.step
        batches = self.loader.batches(self.world.device)
        try:
            while self.step < run.last_step:
                log_now = (self.step + 1) % run.log_every == 0 or self.step + 1 == run.last_step
                log_now |= self.quality.due(self.step + 1)
                values = run.optim.values(self.step)
                losses, stopped = self._step(batches, values, measure=log_now)
                stop_now = stopped()
                if stop_now:
                    self._tell_fault()
                save_now = stop_now or self.step % run.checkpoint_every == 0 or self.step == run.last_step
                if self.skipped and (log_now or save_now):
                    self.skipped.report(self.step, self.position, run.data.batch_size)
                if log_now:
                    self.last_metrics = self.meter.figures(self.step, losses, values)
                    if self.skipped and self.skipped.total:
                        self.last_metrics["skipped_records"] = self.skipped.total
                    if not stop_now:  # then saving comes first
                        self.last_metrics |= self.quality.figures(self.step)
                        self.meter.pause()
                    look_at(self.world, self.last_metrics, self.watch, self.log)
                if self.log:
                    self.log.advance(self.step)
                if save_now:
                    self._save()
                    saved = self.step
                if stop_now:
                    break
            self.saver.finish()
        finally:
            batches.close()  # type: ignore[attr-defined]
            self.saver.close()
        assert saved == self.step
        if self.step < run.last_step:
            self.stop.status = EX_INTERRUPTED if self.world.any(self.stop.interrupted()) else EX_REQUEUE
            if self.log:
                by = self.reason or "another rank"
                self.log.say(f"stopped at step {self.step:,} by {by}; the same command goes on from there")

    def _step(self, batches: Any, values: dict[str, float], *, measure: bool) -> tuple[Losses, Answer]:
        """Do one optimizer step and add to the values; return the last micro-batch's losses, and whether to stop."""
        at = Progress(step=self.step, schedule_steps=self.run.optim.schedule_steps, measure=measure)
        set_values(self.engine.param_groups, values, at)
        micro_losses = []
        for micro in range(self.run.engine.accumulation):
            with self.meter.waiting():
                read = self._next(batches)
            if micro + 1 == self.run.engine.accumulation:
                # All is read, and until the step is done nobody has to wait for the answer.
                stopped = self._ask_to_stop()
            batch = self._views(read, micro)
            losses = self.engine.forward(batch, at)
            self.engine.backward(losses["loss"])
            micro_losses.append(losses["loss"].detach())
            complete = self.engine.step()
        assert complete, "the engine and the loop count micro-batches differently"
        self.step += 1
        loss_M = torch.stack(micro_losses)
        if self.engine.applied:
            values |= self.engine.after_step(at)
            self.watch.good_step()
        elif not self.engine.rescaled or self.world.any(not bool(torch.isfinite(loss_M).all())):
            skip_step(self.world, self.loader, self.position, self.step, loss_M, self.watch, self.log)
        if self.engine.loss_scale is not None:
            values["loss_scale"] = self.engine.loss_scale
        self.meter.step(loss_M, self.run.data.batch_size, good=self.engine.applied)
        self.position += self.run.data.batch_size
        return losses, stopped

    def _ask_to_stop(self) -> Answer:
        """Ask whether a rank has a reason to stop: a signal, or what it could not read or write. All ranks must."""
        self.reason = self.stop.reason()
        # A checkpoint that could not be written ends the run in what saves the next one.
        return self.world.begin_any(self.reason is not None or self.saver.failed() or self.fault is not None)

    def _next(self, batches: Any) -> Batch:
        """Return the next micro-batch. When it cannot be read, one of zeros: no other rank shall wait in this step."""
        if self.fault is None:
            try:
                batch: Batch = next(batches)
                return batch
            except ShardError as error:
                self.fault = error
        return self.loader.blank()

    def _tell_fault(self) -> None:
        """Raise on every rank, when one could not read its windows. All ranks must call it."""
        try:
            self.world.agree(self.fault)
        except CheckpointError as error:  # as the other ranks hear of it
            raise ShardError(str(error)) from error

    def _views(self, batch: Batch, micro: int) -> Batch:
        """Return what the objective sees of a micro-batch of the coming step."""
        # Drawn for the whole step, of which these are rows: another accumulation draws the same.
        before = micro * self.loader.micro_rows
        draws = Draws(
            seed=self.run.seed,
            step=self.step,
            rows=(before + self.loader.rows[0], before + self.loader.rows[1]),
            all_rows=self.run.data.batch_size,
            device=self.world.device,
        )
        return self.objective.views(self.prepare(batch.to(self.world.device)), draws)

    def _save(self) -> None:
        state = {"step": self.step, "records_seen": self.position, "last_metrics": self.last_metrics, **self.facts}
        state["alarms"] = self.watch.memory()
        self.saver.save(state)
        self.meter.pause()


def _window_cost(run: Run, contract: SignalContract, device: torch.device) -> WindowCost:
    """Return what a window takes, and what the device can do."""
    with torch.device("meta"):
        objective = run_objective(run, contract)
    peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    samples = contract.window_samples
    return WindowCost(
        tokens=run.encoder.tokens(samples),
        flops=window_flops(objective, num_leads=len(contract.leads), window_samples=samples, rate_hz=contract.rate_hz),
        peak_tflops=run.monitor.peak_tflops or peak,
    )
