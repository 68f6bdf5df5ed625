"""What a run takes of GPUs: memory by ZeRO stage, bytes between them, seconds of a step, and what the wall is.

Memory and bytes are what DeepSpeed 0.19 does, which is not always what its papers say (Rajbhandari et al. 2020,
https://arxiv.org/abs/1910.02054): stages 1 and 2 reduce gradients by a whole all-reduce, 2 (n - 1) / n of their bytes,
unless `use_multi_rank_bucket_allreduce` is false; float32 weights get float32 masters beside them all the same; each
type of gradient has a bucket of `reduce_bucket_size`, 5e8 numbers; stage 3 keeps up to 1e9 gathered weights.

A step's time is the roofline's (Williams et al. 2009, https://doi.org/10.1145/1498765.1498785): of each kind of
operation the longer of what its products and its bytes take, at assumed shares of the peaks; or what launching it
takes, whichever is longer. Collectives within and between nodes follow each other, and loading goes on beside it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from ecgfm.encoders.base import check_window
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS
from ecgfm.nn.recompute import Blocks
from ecgfm.objectives.base import Objective, build_objective
from ecgfm.train.cost import Operations, by_formula, counted
from ecgfm.train.cost_trace import PRODUCTS, Traces, traces
from ecgfm.train.engine import recompute_
from ecgfm.train.engine_config import LARGEST_BUCKET, MASTERS, EngineConfig, deepspeed_settings, read_extra
from ecgfm.train.flops import usual_views
from ecgfm.train.hardware import NODE_LATENCY_US, Gpu, Network
from ecgfm.train.run import Run

STAGES = (0, 1, 2, 3)
GATHERED = 1_000_000_000
"""Its stage3_max_live_parameters and stage3_max_reuse_distance."""
LARGEST = 1 << 16
"""Windows of a micro-batch beyond which nobody asks."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What cannot be known without the machine; see tools/bench_step.py, which measures it."""

    product_share: float = 0.6
    """Share of the peak that products, convolutions and attention reach while they run."""
    bandwidth_share: float = 0.8
    """Share of the memory's bandwidth that all other operations reach."""
    launch_us: float = 6.0
    """Microseconds of the host for each operation, Python and autograd included; what matters is the slower of host and
    GPU. A captured graph takes 0."""
    mfu: float | None = None
    """Share of the peak that forward and backward were measured to reach, counted in the model's operations: it takes
    the place of the three above."""
    overlap: float = 0.0
    """Share of the collectives that the backward pass hides; DeepSpeed hides none without overlap_comm."""
    link_share: float = 0.8
    """Share of a link's rate that a collective reaches."""
    loader_gb_s: float = 2.0
    """What the loader of one GPU gives, in 10^9 bytes a second; see tools/bench_loader.py."""
    memory_share: float = 0.9
    """Share of the memory that can be planned with: the driver, the libraries and gaps take the rest."""

    def __post_init__(self) -> None:
        for name in ("product_share", "bandwidth_share", "link_share", "memory_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--assume.{name.replace('_', '-')} must be above 0 and at most 1")
        if not 0 <= self.overlap <= 1 or not 0 <= self.launch_us < math.inf or not 0 < self.loader_gb_s < math.inf:
            raise ConfigError(
                f"--assume.overlap {self.overlap} must be 0 to 1, --assume.launch-us {self.launch_us} 0 or more and "
                f"--assume.loader-gb-s {self.loader_gb_s} above 0"
            )
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ConfigError(f"--assume.mfu must be above 0 and at most 1, got {self.mfu}")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How many numbers a model has."""

    total: int
    """Averages among them."""
    trained: int
    averaged: int
    """Those that follow others."""
    low: int
    """Of the trained ones, those whose gradients DeepSpeed sends in 16 bits under autocast."""


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes that one GPU has for a model, whatever the batch."""

    weights: float
    """In the precision of the forward pass, averages aside."""
    gradients: float
    optimizer: float
    """AdamW's two averages, and float32 masters."""
    averages: float
    """Weights that follow others, such as a target encoder's."""
    buckets: float
    """Where gradients are collected on their way to other GPUs."""

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(getattr(self, each.name) for each in fields(self)))


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Something that all GPUs do together in an optimizer step."""

    what: str
    reduces: bool
    """All-reduce, which goes around twice, or once: all-gather and reduce-scatter."""
    bytes: float
    """Of the whole."""
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one GPU in an optimizer step."""

    node_bytes: float
    """Sent to GPUs of its node."""
    network_bytes: float
    """Sent to other nodes."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is computed on."""

    gpu: Gpu
    network: Network
    gpus_per_node: int
    assume: Assumptions


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is computed."""

    weights: Weights
    traces: Traces
    recomputed: Traces | None
    """With recomputed activations, of an objective that has blocks which can be."""
    flops: float
    """Of the model, for one window."""
    signal_values: int
    """Samples of a window, over its leads."""
    engine: EngineConfig


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What one part of a step takes of a GPU, at the assumed shares of its peaks."""

    part: str
    flops: float
    bytes: float
    kernels: float
    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        """The longer of the two."""
        return max(self.compute_s, self.memory_s)


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step on some GPUs."""

    gpus: int
    micro: int
    """Windows of a micro-batch of one GPU."""
    accumulation: int
    device_s: float
    """What the GPU is busy for."""
    launch_s: float
    """What the host is busy for with launching that."""
    link_s: float
    """What the collectives take, the share that is hidden left out."""
    loader_s: float
    """What the loader takes for the windows, beside all else."""
    wall: str
    """What would have to get faster first: compute, memory bandwidth, launches, link or loader."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return max(max(self.device_s, self.launch_s) + self.link_s, self.loader_s)

    @property
    def records_per_s(self) -> float:
        """Over all GPUs."""
        return self.gpus * self.micro * self.accumulation / self.seconds


def build_model(run: Run, rate_hz: float) -> tuple[Model, tuple[Operations, ...]]:
    """Return what a run computes, and the operations of a window by part.

    Args:
        run: The settings.
        rate_hz: Samples a second of its shards.

    Raises:
        ConfigError: The encoder, the objective, the engine and the window do not fit.
    """
    samples = round(run.data.window_s * rate_hz)
    check_window(run.encoder, samples)
    deepspeed_settings(run.engine, micro_batch_size=1, clip_norm=run.optim.clip_norm)

    def fresh() -> Objective:
        with torch.device("meta"):
            return build_objective(run.objective, run.encoder, samples, rate_hz)

    found = by_formula(run.objective, run.encoder, samples)
    found = found or counted(fresh(), num_leads=len(LEADS), window_samples=samples, rate_hz=rate_hz)
    objective = fresh()
    views = usual_views(objective, num_leads=len(LEADS), window_samples=samples, rate_hz=rate_hz)
    again = fresh()
    recomputed = None
    if any(isinstance(module, Blocks) for module in again.modules()):
        recompute_(again, compiled=False)
        recomputed = traces(again, views, run.engine)
    elif run.engine.checkpoint_activations:
        recompute_(again, compiled=False)  # which refuses, with the reason
    model = Model(
        weights=count_weights(objective),
        traces=traces(objective, views, run.engine),
        recomputed=recomputed,
        flops=sum(part.total for part in found),
        signal_values=len(LEADS) * samples,
        engine=run.engine,
    )
    return model, found


def count_weights(objective: Objective) -> Weights:
    """Return how many numbers an objective has; it may be on the meta device."""
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    # DeepSpeed asks for exactly these classes (runtime/torch_autocast.py).
    classes = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    low = {id(w) for part in objective.modules() if type(part) in classes for w in part.parameters(recurse=False)}
    return Weights(
        total=_count(list(objective.parameters())),
        trained=_count(trained),
        averaged=_count([w for follower, _ in objective.averages() for w in follower.parameters()]),
        low=_count([weight for weight in trained if id(weight) in low]),
    )


def _count(weights: list[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def states(weights: Weights, engine: EngineConfig, stage: int, gpus: int) -> States:
    """Return what one of so many GPUs has for a model under a ZeRO stage."""
    masters = engine.precision in MASTERS
    size = 2 if masters else 4
    of = gpus if stage else 1
    own, trained = weights.total - weights.averaged, weights.trained
    at_once = 0.0
    if stage == 3:
        at_once = size * min(weights.total, GATHERED) * (gpus > 1)
    bucket = float(
        (read_extra(engine).get("zero_optimization") or {}).get(
            "reduce_bucket_size", LARGEST_BUCKET if stage == 3 else min(trained, LARGEST_BUCKET)
        )
    )
    # Of autocast there are two types of gradients.
    types = 2 if engine.precision == "bfloat16" and weights.low < trained else 1
    return States(
        weights=size * own / (gpus if stage == 3 else 1) + at_once,
        # From stage 1 on the share that is stepped is laid in one float32 row.
        gradients=size * trained / (gpus if stage >= 2 else 1) + (4 * trained / of if stage else 0),
        optimizer=0.0 if engine.offload else (8 + 4 * (stage > 0)) * trained / of,
        averages=size * weights.averaged / (gpus if stage == 3 else 1) + 4 * weights.averaged / of * masters,
        buckets=types * bucket * size if stage else 4.0 * trained * (gpus > 1),
    )


def collectives(weights: Weights, engine: EngineConfig, stage: int) -> tuple[Collective, ...]:
    """Return what goes between GPUs in an optimizer step under a ZeRO stage."""
    masters = engine.precision in MASTERS
    size, trained = (2 if masters else 4), weights.trained
    low = weights.low if engine.precision == "bfloat16" and stage else 0
    gradients = float(size * trained - 2 * low)
    if stage == 0:
        return (Collective(what="gradients", reduces=True, bytes=gradients),)
    micro = engine.accumulation
    if stage == 3:
        gathered = float(size * (2 * trained + weights.averaged))
        return (
            Collective(what="gradients", reduces=False, bytes=gradients, times=micro),
            Collective(what="weights", reduces=False, bytes=gathered, times=micro),
        )
    wholly = (read_extra(engine).get("zero_optimization") or {}).get("use_multi_rank_bucket_allreduce", True)
    found = [
        Collective(what="gradients", reduces=bool(wholly), bytes=gradients, times=micro if stage == 2 else 1),
        Collective(what="weights", reduces=False, bytes=float(size * trained)),
    ]
    if masters and weights.averaged:
        found.append(Collective(what="averages", reduces=False, bytes=2.0 * weights.averaged))
    return tuple(found)


def traffic(collective: Collective, machine: Machine, gpus: int) -> Traffic:
    """Return what a collective sends and takes: first within each node, then its share of each GPU between nodes."""
    local = min(gpus, machine.gpus_per_node)
    nodes = -(-gpus // machine.gpus_per_node)
    rounds = (2 if collective.reduces else 1) * collective.times
    within = rounds * (local - 1) / local * collective.bytes
    between = rounds * (nodes - 1) / nodes * collective.bytes / local
    rate = 1e9 * machine.assume.link_share
    # An all-reduce may go along a tree; the others pass from neighbour to neighbour.
    hops = (math.log2(local), math.log2(nodes)) if collective.reduces else (local - 1, nodes - 1)
    waits = rounds * (hops[0] * NODE_LATENCY_US + hops[1] * machine.network.latency_us) * 1e-6
    seconds = within / (machine.gpu.node_gb_s * rate)
    seconds += between / (machine.network.gpu_gb_s(machine.gpus_per_node) * rate)
    return Traffic(node_bytes=within, network_bytes=between, seconds=seconds + waits)


def all_traffic(model: Model, machine: Machine, stage: int, gpus: int, accumulation: int = 1) -> Traffic:
    """Return what an optimizer step sends and takes."""
    engine = replace(model.engine, accumulation=accumulation)
    each = [traffic(one, machine, gpus) for one in collectives(model.weights, engine, stage)]
    return Traffic(
        node_bytes=sum(one.node_bytes for one in each),
        network_bytes=sum(one.network_bytes for one in each),
        seconds=sum(one.seconds for one in each),
    )


def activations(model: Model, windows: int, *, recomputed: bool) -> float:
    """Return the bytes that a micro-batch has in use at most, its signal as read and as computed with among them."""
    found = model.recomputed if recomputed else model.traces
    assert found is not None
    return found.at(windows).peak_bytes + 6.0 * model.signal_values * windows


def largest(model: Model, machine: Machine, stage: int, gpus: int, *, recomputed: bool) -> int:
    """Return the windows of the largest micro-batch that fits a GPU; 0 when none does."""
    room = machine.gpu.memory_gb * 1e9 * machine.assume.memory_share
    room -= states(model.weights, model.engine, stage, gpus).total
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if activations(model, middle, recomputed=recomputed) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def bounds(model: Model, machine: Machine, windows: int, stage: int, gpus: int) -> tuple[Bound, ...]:
    """Return what the parts of a step take of a GPU: those of a micro-batch, and those of the optimizer."""
    engine = model.engine
    found = model.recomputed if engine.checkpoint_activations else model.traces
    assert found is not None
    trace = found.at(windows)
    samples = model.signal_values * windows
    rows = [_bound(machine, engine, "ingest", 0.0, 6.0 * samples, 1)]
    for kind, work in trace.kinds.items():
        if kind in PRODUCTS or not engine.compile:
            rows.append(_bound(machine, engine, kind, work.flops, work.bytes, work.kernels))
    if engine.compile:
        rows.append(_bound(machine, engine, "all other, fused", 0.0, trace.fused_bytes, trace.fused_kernels))
    mine = model.weights.trained / (gpus if stage else 1)
    # AdamW reads weight, gradient and two averages and writes three; the norm and the sum are once over the gradient.
    extra = 2.0 * model.weights.trained if engine.precision in MASTERS else 4.0 * model.weights.trained * (stage > 0)
    rows.append(_bound(machine, engine, "AdamW", 0.0, 36.0 * mine + extra, 20))
    if model.weights.averaged:
        share = gpus if engine.precision in MASTERS or stage == 3 else 1
        rows.append(_bound(machine, engine, "moving averages", 0.0, 12.0 * model.weights.averaged / share, 10))
    return tuple(rows)


def _bound(machine: Machine, engine: EngineConfig, part: str, flops: float, moved: float, kernels: float) -> Bound:
    assume, gpu = machine.assume, machine.gpu
    peak = gpu.float32_tflops if engine.precision == "float32" else gpu.bfloat16_tflops
    return Bound(
        part=part,
        flops=flops,
        bytes=moved,
        kernels=kernels,
        compute_s=flops / (peak * 1e12 * assume.product_share),
        memory_s=moved / (gpu.bandwidth_gb_s * 1e9 * assume.bandwidth_share),
    )


ONCE = ("AdamW", "moving averages")
"""Parts that are done once in a step, and not for each micro-batch."""


def step(model: Model, machine: Machine, *, gpus: int, micro: int, accumulation: int, stage: int) -> Step:
    """Return an optimizer step."""
    assume = machine.assume
    rows = bounds(model, machine, micro, stage, gpus)
    times = [1 if row.part in ONCE else accumulation for row in rows]
    compute = sum(row.seconds * count for row, count in zip(rows, times, strict=True) if row.compute_s > row.memory_s)
    memory = sum(row.seconds * count for row, count in zip(rows, times, strict=True) if row.compute_s <= row.memory_s)
    launch_s = sum(row.kernels * count for row, count in zip(rows, times, strict=True)) * assume.launch_us * 1e-6
    device_s = compute + memory
    windows = micro * accumulation
    if assume.mfu:
        peak = machine.gpu.bfloat16_tflops * 1e12
        device_s, launch_s = windows * model.flops / (peak * assume.mfu), 0.0
        device_s += sum(row.seconds for row in rows if row.part in ONCE)
    link_s = all_traffic(model, machine, stage, gpus, accumulation).seconds * (1 - assume.overlap)
    rate = min(assume.loader_gb_s, machine.gpu.host_gb_s) * 1e9
    loader_s = 2.0 * model.signal_values * windows / rate
    busy = max(device_s, launch_s)
    if loader_s > busy + link_s:
        wall = "loader"
    elif link_s > busy:
        wall = "link"
    elif launch_s > device_s:
        wall = "launches"
    else:
        wall = "compute" if compute > memory else "memory bandwidth"
    return Step(
        gpus=gpus,
        micro=micro,
        accumulation=accumulation,
        device_s=device_s,
        launch_s=launch_s,
        link_s=link_s,
        loader_s=loader_s,
        wall=wall,
    )


def split_batch(batch: int, gpus: int, most: int) -> tuple[int, int] | None:
    """Return windows of a micro-batch and micro-batches, the fewest that fit; None where a batch cannot be split."""
    if batch % gpus or not most:
        return None
    own = batch // gpus
    count = next(count for count in range(1, own + 1) if own % count == 0 and own // count <= most)
    return own // count, count
