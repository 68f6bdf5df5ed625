"""The training loop: it knows no method, only batches, losses, steps and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ecgfm import config
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.loader import Loader
from ecgfm.data.prepare import Prepare
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Losses, Progress
from ecgfm.shards.reader import Shards
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint
from ecgfm.train.alarms import Watch
from ecgfm.train.engine import Engine
from ecgfm.train.figures import Meter
from ecgfm.train.health import look_at, skip_step
from ecgfm.train.log import RunLog
from ecgfm.train.opening import introduce, shard_facts, write_settings
from ecgfm.train.optim import build_optimizer, set_values
from ecgfm.train.plan import check_data, dry_run, run_loader, run_objective, signal_contract
from ecgfm.train.run import Run, check_run, check_same, identity
from ecgfm.train.stop import EX_INTERRUPTED, EX_REQUEUE, Stop, stopping
from ecgfm.train.world import World, end_world, start_world


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
    world.agree(write_settings(run, engine) if world.rank == 0 else None)
    log = RunLog(run.out, start, run.last_step) if world.rank == 0 else None
    if log:
        for note in leaks.notes if leaks else ():
            log.say(note)
        introduce(log, run, world, loader, objective, config.fingerprint(settings), start)
    facts = {
        "world_size": world.size,
        "fingerprint": config.fingerprint(settings),
        "identity": settings,
        "shards": shard_facts(loader),
        "versions": checkpoint.versions(),
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
        manifests = loader.shards.manifests
        scales = manifests if run.data.scale == "database" else [contract] * len(manifests)
        self.prepare = Prepare(
            torch.tensor([scale.mean_mv for scale in scales]),
            torch.tensor([scale.std_mv for scale in scales]),
            contract.clip,
        ).to(self.world.device)
        self.meter = Meter(engine)
        self.last_metrics: dict[str, Any] = {}

    def go(self) -> None:
        """Train, log, save."""
        run, saved = self.run, self.step
        reason: str | None = None
        batches = iter(self.loader)
        try:
            while self.step < run.last_step:
                log_now = (self.step + 1) % run.log_every == 0 or self.step + 1 == run.last_step
                values = run.optim.values(self.step)
                losses = self._step(batches, values, measure=log_now)
                if log_now:
                    self.last_metrics = self.meter.figures(self.step, losses, values)
                    look_at(self.world, self.last_metrics, self.watch, self.log)
                if self.log:
                    self.log.advance(self.step)
                reason = self.stop.reason()
                stop_now = self.world.any(reason is not None)
                if stop_now or self.step % run.checkpoint_every == 0 or self.step == run.last_step:
                    self._save()
                    saved = self.step
                if stop_now:
                    break
        finally:
            batches.close()  # type: ignore[attr-defined]
        assert saved == self.step
        if self.step < run.last_step:
            self.stop.status = EX_INTERRUPTED if self.world.any(self.stop.interrupted()) else EX_REQUEUE
            if self.log:
                by = reason or "another rank"
                self.log.say(f"stopped at step {self.step:,} by {by}; the same command goes on from there")

    def _step(self, batches: Any, values: dict[str, float], *, measure: bool) -> Losses:
        """Do one optimizer step; return the losses of its last micro-batch, and add to the values."""
        at = Progress(step=self.step, schedule_steps=self.run.optim.schedule_steps, measure=measure)
        set_values(self.engine.param_groups, values)
        micro_losses = []
        for micro in range(self.run.engine.accumulation):
            batch = self._views(next(batches), micro)
            losses = self.engine.forward(batch, at)
            self.engine.backward(losses["loss"])
            micro_losses.append(losses["loss"].detach())
            complete = self.engine.step()
        assert complete, "the engine and the loop count micro-batches differently"
        self.step += 1
        loss_M = torch.stack(micro_losses)
        if self.engine.applied:
            values |= self.objective.after_step(at)
            self.watch.good_step()
        else:
            skip_step(self.world, self.loader, self.position, self.step, loss_M, self.watch, self.log)
        self.meter.step(loss_M, self.run.data.batch_size, good=self.engine.applied)
        self.position += self.run.data.batch_size
        return losses

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
        folder = checkpoint.save(self.engine, self.run.out, state, self.contract, self.run.keep_checkpoints)
        self.meter.pause()
        if self.log:
            self.log.say(f"step {self.step:,}: wrote {folder}")
