"""What the ranks do together when a step was bad, or the figures of a run are not well."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ecgfm.data.loader import Loader
from ecgfm.train.alarms import Watch
from ecgfm.train.log import RunLog
from ecgfm.train.world import World


def skip_step(
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


def look_at(world: World, figures: dict[str, Any], watch: Watch, log: RunLog | None) -> None:
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
