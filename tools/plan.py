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
import itertools
import json
import runpy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.config import cli
from ecgfm.errors import ConfigError
from ecgfm.eval.plots import COLORS, save
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
from ecgfm.train.hardware import NETWORKS, gpu, network
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
    words, rest = split(sys.argv[1:])
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


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that are this tool's, and those that are the recipe's."""
    own_names = {each.name for each in dataclasses.fields(PlanCost)} | {"help", "no-json"}
    own = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    rest: list[str] = []
    goes_to = own
    for word in words[len(own) :]:
        if word == "-h" or word.startswith("--"):
            name = word.removeprefix("--").split("=")[0].split(".")[0]
            goes_to = own if word == "-h" or name.replace("-", "_") in own_names or name in own_names else rest
        goes_to.append(word)
    return own, rest


def read_run(settings: PlanCost, words: Sequence[str]) -> Run:
    """Return the settings of the recipe, or of the run that was measured, with what the command line changes."""
    if not settings.recipe.is_file():
        raise ConfigError(f"{settings.recipe} does not exist; give a recipe, such as recipes/jepa_vit.py, first")
    recipe = runpy.run_path(str(settings.recipe))
    default = recipe.get("RUN")
    if not isinstance(default, Run):
        raise ConfigError(f"{settings.recipe} is no recipe that pretrains: it has no RUN")
    presets: dict[str, Run] = recipe.get("PRESETS", {})
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
    rows = []
    for name, value in expected.items():
        # The first lines hold what is done once, such as choosing kernels.
        values = [line[name] for line in lines[len(lines) // 4 :] if name in line]
        found = statistics.median(values) if values else None
        if found is None and name == "mfu" and rows[1]["measured"]:  # of a device that is in no table
            found = rows[1]["measured"] / machine.gpu.bfloat16_tflops
        rows.append({"figure": name, "expected": value, "measured": found})
    return rows


def show(found: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    said = f"{found['run']}, {found['precision']}, {found['gpus']:,} x {found['gpu']}, {found['network']}"
    console.print(f"[b]{said}[/b]: batch {found['batch_size']:,} windows of {found['window_s']:g} s", highlight=False)
    assumed = ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in found["assumptions"].items() if value is not None
    )
    console.print(f"assumed (--assume.*): {assumed}", highlight=False)
    here = found.get("here")
    if here:
        console.print(_summary(found, here), highlight=False)
    else:
        console.print(
            f"the batch cannot be split over {found['gpus']:,} GPUs, or one window does not fit: see the memory",
            highlight=False,
        )
    for table in (_flops_table(found), _roofline_table(found), _memory_table(found), _links_table(found)):
        console.print(table)
    fits = found["stage_that_fits"]
    console.print(
        "no stage holds the GPU's share of the batch at once: accumulate, or recompute activations"
        if fits is None
        else f"the lowest stage that holds a GPU's share of the batch at once: {fits}",
        highlight=False,
    )
    for key, title in (("scaling", "The same batch over more GPUs"), ("scaling_weak", "As many windows a GPU")):
        console.print(_scaling_table(found[key], title))
    if "measured" in found:
        console.print(_measured_table(found["measured"]))


def _summary(found: dict[str, Any], here: dict[str, Any]) -> str:
    lines = [
        f"{here['records_per_s']:,.0f} records/s, {here['tflops']:,.0f} TFLOP/s a GPU ({here['mfu']:.0%} of the peak)",
        f"{_days(here['days'])} for {here['records']:,} records; {_days(here['schedule_days'])} for the schedule's "
        f"{here['schedule_records']:,}",
        f"loader: {_gb(here['loader_gpu'])}/s a GPU, {_gb(here['loader_node'])}/s a node, "
        f"{_gb(here['loader_cluster'])}/s in all",
    ]
    if here["streamed"]:
        lines.append(f"streamed shards: every rank reads all of them, {_gb(here['loader_cluster'])}/s each")
    return "\n".join(lines)


def _flops_table(found: dict[str, Any]) -> Table:
    table = _table(f"Operations of a record, by {found['flops_by']}", "part", "kind", "GFLOP", "share")
    for row in found["flops"]:
        share = row["total"] / found["flops_per_record"]
        table.add_row(row["part"], row["kind"], f"{row['total'] / 1e9:,.3f}", f"{share:.1%}")
    table.add_row("all", "", f"{found['flops_per_record'] / 1e9:,.3f}", "")
    return table


def _roofline_table(found: dict[str, Any]) -> Table:
    title = f"Where the time must go: a micro-batch of {found['roofline_windows']:,} windows"
    table = _table(title, "part", "GFLOP", "GB", "operations", "compute ms", "memory ms", "bound by")
    for row in found["roofline"]:
        by = "compute" if row["compute_s"] > row["memory_s"] else "memory"
        table.add_row(
            row["part"],
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['bytes'] / 1e9:,.2f}",
            f"{row['kernels']:,.0f}",
            f"{row['compute_s'] * 1e3:,.2f}",
            f"{row['memory_s'] * 1e3:,.2f}",
            by,
        )
    rows = found["roofline"]
    table.add_row(
        "all",
        f"{sum(row['flops'] for row in rows) / 1e9:,.1f}",
        f"{sum(row['bytes'] for row in rows) / 1e9:,.2f}",
        f"{sum(row['kernels'] for row in rows):,.0f}",
        f"{sum(row['compute_s'] for row in rows) * 1e3:,.2f}",
        f"{sum(row['memory_s'] for row in rows) * 1e3:,.2f}",
        f"{sum(row['seconds'] for row in rows) * 1e3:,.2f} ms",
    )
    if not found["compile"]:
        fused = found["fused"]
        table.caption = (
            f"norms, loss and the rest, perfectly fused: {fused['fused_bytes'] / 1e9:,.2f} GB in "
            f"{fused['fused_kernels']:,.0f} operations"
        )
    return table


def _memory_table(found: dict[str, Any]) -> Table:
    windows = found["memory"][0]["activation_windows"]
    table = _table(
        f"Memory of a GPU in GB; activations of {windows:,} windows",
        *("ZeRO", "weights", "gradients", "AdamW", "averages", "buckets", "activations", "recomputed"),
        *("largest", "largest recomputed"),
    )
    for row in found["memory"]:
        names = ("weights", "gradients", "optimizer", "averages", "buckets")
        table.add_row(
            str(row["stage"]),
            *(f"{row[name] / 1e9:,.2f}" for name in names),
            *(f"{row['activations'][kind] / 1e9:,.2f}" if kind in row["activations"] else "-" for kind in KEPT),
            *(f"{row['largest'][kind]:,}" if kind in row["largest"] else "-" for kind in KEPT),
        )
    table.caption = (
        "largest: windows of a micro-batch that fit; buckets: DeepSpeed's reduce_bucket_size of --engine.extra"
    )
    if found["precision"] == "bfloat16":
        table.caption += "; stage 3 needs bfloat16-weights or float32"
    return table


KEPT = ("kept", "recomputed")


def _links_table(found: dict[str, Any]) -> Table:
    names = [found["network"]] + [name for name in ("infiniband-200", "ethernet-100") if name != found["network"]]
    table = _table("Sent by a GPU in an optimizer step", "ZeRO", "in the node GB", "to others GB", *_ms(names))
    for row in found["links"]:
        times = (f"{row['seconds_by_network'][name] * 1e3:,.2f}" for name in names)
        table.add_row(
            str(row["stage"]), f"{row['node_bytes'] / 1e9:,.3f}", f"{row['network_bytes'] / 1e9:,.3f}", *times
        )
    return table


def _ms(names: list[str]) -> list[str]:
    return [f"{name} ms" for name in names]


def _scaling_table(rows: list[dict[str, Any]], title: str) -> Table:
    columns = ("GPUs", "windows a GPU", "step ms", "links ms", "records/s", "TFLOP/s a GPU", "efficiency", "wall")
    table = _table(title, *columns)
    for row in rows:
        if row["seconds"] is None:
            table.add_row(f"{row['gpus']:,}", "-", *[""] * 5, "cannot be split, or does not fit")
            continue
        efficiency = row["efficiency"]
        windows = f"{row['micro']:,}" + (f" x {row['accumulation']:,}" if row["accumulation"] > 1 else "")
        table.add_row(
            f"{row['gpus']:,}",
            windows,
            f"{row['seconds'] * 1e3:,.1f}",
            f"{row['link_s'] * 1e3:,.1f}",
            f"{row['records_per_s']:,.0f}",
            f"{row['tflops']:,.1f}",
            "-" if efficiency is None else f"{efficiency:.0%}",
            row["wall"],
        )
    return table


def _measured_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("Expected and measured (median)", "figure", "expected", "measured", "measured / expected")
    for row in rows:
        found = row["measured"]
        shown = ("-", "-") if found is None else (f"{found:,.4g}", f"{found / row['expected']:.2f}")
        table.add_row(row["figure"], f"{row['expected']:,.4g}", *shown)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for column in columns:
        words = column in ("part", "kind", "bound by", "wall", "figure")
        table.add_column(column, justify="left" if words else "right")
    return table


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:,.1f} h"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def draw(found: dict[str, Any]) -> Figure:
    """Return a picture: efficiency over GPUs, and memory by stage."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, color in (("scaling", "the same batch", COLORS[0]), ("scaling_weak", "as many a GPU", COLORS[1])):
        rows = [row for row in found[key] if row["seconds"] is not None and row["efficiency"] is not None]
        left.plot([row["gpus"] for row in rows], [row["efficiency"] for row in rows], "o-", color=color, label=label)
        last = rows[-1]
        left.annotate(
            last["wall"],
            (last["gpus"], last["efficiency"]),
            (0, 6),
            textcoords="offset points",
            ha="right",
            color=color,
        )
    left.set(xscale="log", xlabel="GPUs", ylabel="records/s a GPU, over those of one", ylim=(0, 1.1))
    left.set_xticks([row["gpus"] for row in found["scaling"]], [f"{row['gpus']:,}" for row in found["scaling"]])
    left.minorticks_off()
    left.legend(loc="lower left")
    bottom = [0.0] * len(found["memory"])
    names = [str(row["stage"]) for row in found["memory"]]
    kinds = ("weights", "gradients", "optimizer", "averages", "buckets", "activations")
    for kind, color in zip(kinds, COLORS, strict=False):
        values = [(row[kind]["kept"] if kind == "activations" else row[kind]) / 1e9 for row in found["memory"]]
        right.bar(names, values, bottom=bottom, color=color, label=kind)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    right.set(xlabel="ZeRO stage", ylabel="memory of a GPU, GB")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{found['run']}, {found['gpus']:,} x {found['gpu']}, batch {found['batch_size']:,}")
    return figure


if __name__ == "__main__":
    config.run_command(main)
