"""What a run writes down and says before its first step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ecgfm import config
from ecgfm.data.loader import Loader
from ecgfm.errors import CheckpointError, EcgfmError
from ecgfm.objectives.base import Objective
from ecgfm.run_folder import RUN
from ecgfm.shards.manifest import manifest_sha256, write_json
from ecgfm.train.engine import Engine
from ecgfm.train.log import RunLog
from ecgfm.train.plan import reading
from ecgfm.train.run import Run
from ecgfm.train.world import World


def write_settings(run: Run, engine: Engine) -> Exception | None:
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


def open_log(run: Run, start: int) -> tuple[RunLog | None, Exception | None]:
    """Open the run's log on rank 0; another board may keep it waiting, or not let it in."""
    try:
        return RunLog(run.out, start, run.last_step, run.monitor), None
    except EcgfmError as error:
        return None, error


def introduce(
    log: RunLog, run: Run, world: World, loader: Loader, objective: Objective, fingerprint: str, start: int
) -> None:
    """Say what is about to happen."""
    # ZeRO 3 leaves a piece of a weight, and remembers how large it was.
    weights = sum(getattr(weight, "ds_numel", weight.numel()) for weight in objective.published().parameters()) / 1e6
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
    for line in reading(run, loader):
        log.say(line)
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


def shard_facts(loader: Loader) -> list[dict[str, Any]]:
    """Return what a model card says about the data: the records that pretraining reads, and no others."""
    names = ("database", "title", "licence", "citation", "address", "version")
    used = np.bincount(loader.shards.folder_of[loader.records], minlength=len(loader.shards.folders)).tolist()
    return [
        {
            **{name: getattr(manifest, name) for name in names},
            "records": records,
            "patients": manifest.patients if records == manifest.segments else None,
            "manifest_sha256": manifest_sha256(folder),
            # Of all that was converted, whatever this run reads of it.
            **{name: getattr(manifest, name) for name in ("seen", "kept", "refused", "sex", "ages")},
        }
        for folder, manifest, records in zip(loader.shards.folders, loader.shards.manifests, used, strict=True)
    ]
