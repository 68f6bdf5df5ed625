"""Plan what a run costs on GPUs: its speed, memory, links, and what the wall is.

    python tools/plan.py recipes/jepa_vit.py --preset s --gpu H200 --nodes 16
    python tools/plan.py recipes/jepa_vit.py --preset b --gpu A100 --gpus 8 --engine.checkpoint-activations --json
    python tools/plan.py recipes/jepa_vit.py --measured runs/s --gpu H200 --out plan.png

The recipe comes first. Options that are not listed here are the recipe's own, as its --help tells them. Nothing is
trained, and no shards or GPU are needed: a recipe's `--dry-run` is something else, and checks a run on this machine
with its shards. Everything is an expectation under assumptions, which are options (--assume.*) and are printed;
--measured shows it beside what a run has measured.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from ecgfm import config
from ecgfm.config import cli
from ecgfm.errors import ConfigError
from ecgfm.eval.plots import save
from ecgfm.run_folder import RUN, read_metrics, read_state
from ecgfm.train.cost import by_formula, kind_of
from ecgfm.train.cost_plan import (
    STAGES,
    Assumptions,
    Machine,
    Model,
    Step,
    activations,
    all_traffic,
    bounds,
    build_model,
    largest,
    split_batch,
    states,
    step,
)
from ecgfm.train.cost_tables import draw, show
from ecgfm.train.hardware import NETWORKS, gpu, network
from ecgfm.train.recipe_words import load_recipe, split
from ecgfm.train.run import Run

PAPER_RECORDS = 204_800_000
"""100,000 steps of 2,048 windows: Weimann and Conrad 2024."""
SCALES = (1, 8, 128, 1024)
"""GPUs for which the efficiency is told, besides those of the plan."""
DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """Plan what a run costs."""

    recipe: tyro.conf.Positional[Path]
    """File of the recipe."""
    gpu: str = "H200"
    """A name of ecgfm/train/hardware.py, such as A100, "A100 40GB", H100, H200, B200, L40S, "RTX 4090"."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    gpus: int | None = None
    """GPUs in all, in place of --nodes; the last machine may have fewer."""
    network: str = "infiniband-400"
    """What joins the machines: infiniband-800, -400 or -200 (a card for each GPU), ethernet-400, -100, -25 or -10 (one
    for all of a machine)."""
    records: int = PAPER_RECORDS
    """Windows to see, for the days that takes; the paper's by default. What the recipe's schedule sees is told too."""
    rate_hz: float = 500.0
    """Samples a second of the shards."""
    peak_tflops: float | None = None
    """Of a device that is in no table: its peak in 10^12 operations a second, in the precision of the run."""
    bandwidth_gb_s: float | None = None
    """Of a device that is in no table: the bandwidth of its memory in 10^9 bytes a second."""
    memory_gb: float | None = None
    """Of a device that is in no table: its memory in 10^9 bytes."""
    assume: Assumptions = field(default_factory=Assumptions)
    """What cannot be known without the machine."""
    measured: Path | None = None
    """Folder of a run of this recipe: its settings and number of GPUs are taken, and what it measured is shown beside
    what is expected."""
    json: bool = False
    """Print JSON instead of tables."""
    out: Path | None = None
    """Picture to write: efficiency over GPUs, and memory by ZeRO stage."""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "records"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("gpus", "rate_hz", "peak_tflops", "bandwidth_gb_s", "memory_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")

    @property
    def machine(self) -> Machine:
        """What is computed on."""
        known = gpu(self.gpu)
        own: dict[str, Any] = {}
        if self.peak_tflops:
            own |= {"bfloat16_tflops": self.peak_tflops, "float32_tflops": self.peak_tflops}
        own |= {name: value for name in ("bandwidth_gb_s", "memory_gb") if (value := getattr(self, name))}
        return Machine(
            gpu=replace(known, **own),
            network=network(self.network),
            gpus_per_node=self.gpus_per_node,
            assume=self.assume,
        )


def main() -> None:
    """Plan, print, draw."""
    words, rest = split(sys.argv[1:], {each.name for each in dataclasses.fields(PlanCost)})
    settings = tyro.cli(PlanCost, description=__doc__, args=words)
    run = read_run(settings, rest)
    found = plan(settings, run)
    if settings.json:
        print(json.dumps(found, indent=2))
    else:
        show(found, Console())
    if settings.out:
        save(draw(found), settings.out)
        if not settings.json:
            print(settings.out)


def read_run(settings: PlanCost, words: Sequence[str]) -> Run:
    """Return the settings of the recipe, or of the run that was measured, with what the command line changes."""
    default, presets = load_recipe(settings.recipe)
    if settings.measured:
        default, presets = config.from_dict(Run, config.read_json(settings.measured / RUN), "run"), {}
    return cli(default, presets=presets, args=words)


def plan(settings: PlanCost, run: Run) -> dict[str, Any]:
    """Return all that is printed, as JSON can hold it; seconds, bytes and operations."""
    machine = settings.machine
    model, operations = build_model(run, settings.rate_hz)
    gpus = settings.gpus or settings.nodes * settings.gpus_per_node
    if settings.measured:
        gpus = settings.gpus or int(read_state(settings.measured).get("world_size", 1))
    batch, stage = run.data.batch_size, run.engine.zero_stage
    recomputed = run.engine.checkpoint_activations
    memory = [_memory(model, machine, number, gpus, batch) for number in STAGES]
    steps = {
        count: _step(model, machine, count, batch, stage, recomputed=recomputed) for count in sorted({*SCALES, gpus})
    }
    here = steps[gpus]
    windows = here.micro if here else max(1, largest(model, machine, stage, gpus, recomputed=recomputed))
    evenly = {count: step(model, machine, gpus=count, micro=windows, accumulation=1, stage=stage) for count in steps}
    fits = next((row["stage"] for row in memory if row["splits"]), None)
    found: dict[str, Any] = {
        "run": kind_of(run.objective, run.encoder),
        "gpu": settings.gpu,
        "gpus": gpus,
        "gpus_per_node": settings.gpus_per_node,
        "network": settings.network,
        "precision": run.engine.precision,
        "zero_stage": stage,
        "batch_size": batch,
        "window_s": run.data.window_s,
        "checkpoint_activations": recomputed,
        "compile": run.engine.compile,
        "assumptions": dataclasses.asdict(settings.assume),
        "weights": dataclasses.asdict(model.weights),
        "flops_by": "formula" if by_formula(run.objective, run.encoder, _samples(run, settings)) else "counter",
        "flops": [{**dataclasses.asdict(part), "total": part.total} for part in operations],
        "flops_per_record": model.flops,
        "record_bytes": 2 * model.signal_values,
        "memory": memory,
        "stage_that_fits": fits,
        "links": [_links(model, settings, number, gpus, here) for number in STAGES],
        "roofline": [
            {**dataclasses.asdict(row), "seconds": row.seconds} for row in bounds(model, machine, windows, stage, gpus)
        ],
        "roofline_windows": windows,
        "fused": dataclasses.asdict(
            (model.recomputed if recomputed and model.recomputed else model.traces).at(windows)
        ),
        "scaling": [_scaling(count, one, steps[1], model) for count, one in steps.items()],
        "scaling_weak": [_scaling(count, one, evenly[1], model) for count, one in evenly.items()],
    }
    if here:
        found["here"] = _here(here, settings, run, model, machine)
    if settings.measured and here:
        found["measured"] = _measured(settings.measured, here, model, machine, stage, recomputed=recomputed)
    return found


def _samples(run: Run, settings: PlanCost) -> int:
    return round(run.data.window_s * settings.rate_hz)


def _step(model: Model, machine: Machine, gpus: int, batch: int, stage: int, *, recomputed: bool) -> Step | None:
    most = largest(model, machine, stage, gpus, recomputed=recomputed)
    shape = split_batch(batch, gpus, most)
    if shape is None:
        return None
    return step(model, machine, gpus=gpus, micro=shape[0], accumulation=shape[1], stage=stage)


def _memory(model: Model, machine: Machine, stage: int, gpus: int, batch: int) -> dict[str, Any]:
    """Return what a GPU has under a stage, and the largest micro-batch that fits beside it."""
    own = states(model.weights, model.engine, stage, gpus)
    kinds = {"kept": False} | ({"recomputed": True} if model.recomputed else {})
    most = {name: largest(model, machine, stage, gpus, recomputed=again) for name, again in kinds.items()}
    share = max(1, batch // gpus)
    return {
        "stage": stage,
        **dataclasses.asdict(own),
        "states": own.total,
        "activations": {name: activations(model, share, recomputed=again) for name, again in kinds.items()},
        "activation_windows": share,
        "largest": most,
        "splits": most["kept"] >= share,
    }


def _links(model: Model, settings: PlanCost, stage: int, gpus: int, here: Step | None) -> dict[str, Any]:
    machine, count = settings.machine, here.accumulation if here else 1
    own = all_traffic(model, machine, stage, gpus, count)
    times = {
        name: all_traffic(model, replace(machine, network=one), stage, gpus, count).seconds
        for name, one in NETWORKS.items()
    }
    return {"stage": stage, **dataclasses.asdict(own), "seconds_by_network": times}


def _scaling(gpus: int, one: Step | None, single: Step | None, model: Model) -> dict[str, Any]:
    if one is None:
        return {"gpus": gpus, "seconds": None}
    efficiency = one.records_per_s / gpus / single.records_per_s if single else None
    return {
        **dataclasses.asdict(one),
        "seconds": one.seconds,
        "records_per_s": one.records_per_s,
        "tflops": one.records_per_s / gpus * model.flops / 1e12,
        "efficiency": efficiency,
    }


def _here(here: Step, settings: PlanCost, run: Run, model: Model, machine: Machine) -> dict[str, Any]:
    rate, each = here.records_per_s, 2.0 * model.signal_values
    tflops = rate / here.gpus * model.flops / 1e12
    return {
        "records_per_s": rate,
        "tflops": tflops,
        "mfu": tflops / machine.gpu.bfloat16_tflops,
        "days": settings.records / rate / DAY_S,
        "records": settings.records,
        "schedule_records": run.last_step * run.data.batch_size,
        "schedule_days": run.last_step * run.data.batch_size / rate / DAY_S,
        "loader_gpu": rate / here.gpus * each,
        "loader_node": rate / here.gpus * min(here.gpus, settings.gpus_per_node) * each,
        "loader_cluster": rate * each,
        "streamed": run.data.streamed,
    }


def _measured(
    folder: Path, here: Step, model: Model, machine: Machine, stage: int, *, recomputed: bool
) -> list[dict[str, Any]]:
    """Return what is expected beside the medians that a run measured; of a CPU, memory is that of the whole process.

    Raises:
        ConfigError: It has measured nothing yet.
    """
    lines = [line for line in read_metrics(folder) if "records_per_s" in line]
    if not lines:
        raise ConfigError(f"--measured {folder} has no line with records_per_s yet; let the run log a step")
    tflops = here.records_per_s / here.gpus * model.flops / 1e12
    memory = states(model.weights, model.engine, stage, here.gpus).total
    memory += activations(model, here.micro, recomputed=recomputed)
    expected = {
        "records_per_s": here.records_per_s,
        "tflops": tflops,
        "mfu": tflops / machine.gpu.bfloat16_tflops,
        "memory_gb": memory / 1e9,
    }
    rows: list[dict[str, Any]] = []
    for name, value in expected.items():
        # The first lines hold what is done once, such as choosing kernels.
        values = [line[name] for line in lines[len(lines) // 4 :] if name in line]
        found = statistics.median(values) if values else None
        if found is None and name == "mfu" and rows[1]["measured"]:  # of a device that is in no table
            found = rows[1]["measured"] / machine.gpu.bfloat16_tflops
        rows.append({"figure": name, "expected": value, "measured": found})
    return rows


if __name__ == "__main__":
    config.run_command(main)
