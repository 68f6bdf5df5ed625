"""Measure a training step against one written plainly, and say where the time goes.

    python tools/bench_step.py --size s                      # on this machine's CPU, 32 windows
    python tools/bench_step.py --size s --device cuda        # as in the paper, 2048 windows
    python tools/bench_step.py --plain                       # the baseline alone

The baseline is the JEPA step as one writes it first: the signal in float32, a convolution over all of it, the kept
tokens taken, timm-like blocks around scaled_dot_product_attention, mean absolute error, torch's AdamW as it comes, and
a loop over the weights for the moving average; all of it in this file, from the same weights. Ours is what a run does,
from int16 counts to the moving average, masks drawn too. All are measured in turn, and the best of some rounds counts:
on a CPU with one thread in seconds of the process, so that a busy machine changes little. What counts is the ratio.

Floors: the model's operations over the rate of a large matrix product in the same run and precision. An
objective's overhead is all that is not its networks' forward and backward pass, for which these run alone on tensors
that are there: masks or augmentations, the loss, moving averages and the queue, and a tenth of the measured figures
(--log-every 10). The optimizer is in neither.

What was measured on one thread of a Zen 4 with AVX-512 bfloat16 (ratios; on a GPU nothing was):

- Attention, forward and backward, batch 32, against SDPA in float32: bfloat16 SDPA takes 1.4 to 2.0 times as long, the
  three products written out 0.61 to 0.80, SDPA in float32 between two casts 1.0 to 1.1. In float32 SDPA is the fastest:
  by hand 1.2 to 1.3. Hence nn/blocks.py `attend`. The scale inside baddbmm gains nothing over a product before.
- The whole step, JEPA ViT-XS, 32 windows, against the plain float32 one: ours 1.06 in float32 (68 % of the rate of a
  matrix product), 1.78 in bfloat16 (52 %); the plain step under autocast 1.20 (35 %). ViT-S with 4 windows: 1.02,
  1.66 and 1.28.
- The same with two threads on an idle machine, 32 windows: ViT-XS 1.03 and 1.64, ViT-S 1.09 (69 % of the matrix rate)
  and 1.96 (61 %), where the plain step under autocast is at 1.64. Beside its networks JEPA costs 3.0 %, SimCLR 3.9 %,
  MoCo some 3 % (of 8 windows 19 %: its queue of 65,536 keys). DeepSpeed at ZeRO 0 and 1: -3 % and 1.4 % beyond a plain
  loop, which is noise and little; with loading 1.02 of the speed on data already there.
- DeepSpeed costs a fixed time a step, of copies in memory: for ViT-XS that of 0.1 windows at ZeRO 0 and of 0.7 at ZeRO
  1 (flattening, gloo, the masters' copy), a fifth less since its bucket is as large as the gradients and not 2 GB.
- autocast casts each trained weight once a forward pass already, in its cache, and the target's weights are used once.
- DeepSpeed's meter of throughput waits for a GPU before each forward and after each backward pass: switched off. What
  is left is one wait a step at ZeRO 1 to 3, for the gradient's norm, and one at stage 0, for whether the step was
  dropped, when AdamW is queued already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from bench_rows import Row, best, device_of, matrix_rate, show  # type: ignore[import-not-found]
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from ecgfm import config
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.loader import Loader
from ecgfm.data.prepare import Prepare
from ecgfm.encoders import resnet1d, ts_cnn, vit
from ecgfm.encoders.base import Encoder
from ecgfm.nn.positions import sincos_positions
from ecgfm.objectives.base import Objective, Progress, build_objective, move_averages_
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.moco import MoCo
from ecgfm.objectives.simclr import SimCLR
from ecgfm.shards.reader import Shards
from ecgfm.train.engine import Engine, any_length_
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.flops import window_flops
from ecgfm.train.optim import Optim, build_optimizer, set_values
from ecgfm.train.world import end_world, start_world

SIZES = {"xs": vit.XS, "s": vit.S, "b": vit.B}
SAMPLES, RATE_HZ, LEADS, CLIP = 5000, 500.0, 12, 5.0
MEAN_MV, STD_MV = 0.01, 0.2
OPTIM = Optim(lr=1e-4, lr_start=1e-4, lr_end=1e-4, weight_decay=(0.01, 0.01))
MOMENTUM = 0.998
LOG_EVERY = 10
OTHER_MASKS = 10_000
"""Step from which the masks of a second run are drawn."""
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a training step."""

    size: Literal["xs", "s", "b"] = "xs"
    """Of the vision transformer."""
    device: str = "cpu"
    """Where to compute: cpu or cuda."""
    batch_size: int | None = None
    """Windows of a step; 32 on a CPU, 2048 on a GPU (512 of ViT-B)."""
    repeats: int = 3
    """Rounds; the best counts."""
    steps: int = 10
    """Steps over which losses are compared."""
    plain: bool = False
    """Measure the baseline alone."""
    compile: bool = False
    """Also measure both under torch.compile."""
    parts: tuple[Literal["step", "objectives", "engine", "loading"], ...] = ("step", "objectives", "engine", "loading")
    """What to measure."""
    shards: tuple[Path, ...] = ()
    """Folders that tools/convert.py wrote, for what loading costs."""
    out: Path | None = None
    """Write the rows to this file too, as JSON."""

    @property
    def rows(self) -> int:
        """Windows of a step."""
        if self.batch_size is not None:
            return self.batch_size
        return 32 if self.device == "cpu" else 512 if self.size == "b" else 2048


class Plain:
    """The step as it is written first: no part of it is ours but the start weights and the masks."""

    def __init__(self, objective: JEPA, precision: Precision, device: torch.device) -> None:
        settings = objective.encoder.config
        assert isinstance(settings, vit.ViT.Config)
        self.settings, self.precision, self.device = settings, precision, device
        state = {name: value.detach().clone() for name, value in objective.named_parameters()}
        self.target = {name[7:]: value for name, value in state.items() if name.startswith("target.")}
        self.weights = {name: value.requires_grad_() for name, value in state.items() if not name.startswith("target.")}
        decays = [weight for name, weight in self.weights.items() if weight.ndim > 1 and _is_matrix(name)]
        others = [weight for name, weight in self.weights.items() if not (weight.ndim > 1 and _is_matrix(name))]
        groups = [{"params": decays, "weight_decay": OPTIM.weight_decay[0]}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps)
        tokens = SAMPLES // settings.patch_samples
        self.positions = {
            width: sincos_positions(tokens, width).to(device) for width in (settings.width, settings.width // 2)
        }
        self.loss: Callable[..., Tensor] = self._loss

    def blocks(self, weights: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
        """Pre-norm blocks and the norm after them."""
        heads, width = self.settings.num_heads, x.shape[2]
        for number in range(self.settings.depth):
            own = f"{prefix}blocks.{number}."
            y = functional.layer_norm(x, (width,), weights[own + "norm1.weight"], None, 1e-6)
            qkv = functional.linear(y, weights[own + "attn.qkv.weight"])
            q, k, v = qkv.reshape(len(x), -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
            y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + functional.linear(y, weights[own + "attn.proj.weight"])
            y = functional.layer_norm(x, (width,), weights[own + "norm2.weight"], None, 1e-6)
            y = functional.gelu(functional.linear(y, weights[own + "mlp.fc1.weight"]))
            x = x + functional.linear(y, weights[own + "mlp.fc2.weight"])
        return functional.layer_norm(x, (width,), weights[prefix + "norm.weight"], None, 1e-6)

    def encode(self, weights: dict[str, Tensor], prefix: str, signal: Tensor, keep: Tensor | None) -> Tensor:
        """Tokens of a signal, or of its kept patches."""
        width, size = self.settings.width, self.settings.patch_samples
        kernel = weights[prefix + "patch.weight"].reshape(width, LEADS, size)
        x = functional.conv1d(signal, kernel, stride=size).transpose(1, 2) + self.positions[width]
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, width))
        x = torch.cat([weights[prefix + "register"].expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        return self.blocks(weights, prefix, x)[:, 1:]

    def _loss(self, signal: Tensor, keep: Tensor, hide: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.encode(self.target, "", signal, None)
            wanted = wanted.gather(1, hide[:, :, None].expand(-1, -1, wanted.shape[2])).float()
        seen = functional.linear(
            self.encode(self.weights, "encoder.", signal, keep), self.weights["predictor.embed.weight"]
        )
        position = self.positions[seen.shape[2]].expand(len(seen), -1, -1)
        places = [position.gather(1, each[:, :, None].expand(-1, -1, seen.shape[2])) for each in (keep, hide)]
        x = torch.cat([seen + places[0], self.weights["predictor.mask_token"] + places[1]], dim=1)
        x = self.blocks(self.weights, "predictor.", x)[:, keep.shape[1] :]
        guess = functional.linear(x, self.weights["predictor.project.weight"])
        return (guess.float() - wanted).abs().mean()

    def step(self, batch: Batch, keep: Tensor, hide: Tensor) -> Tensor:
        """Do one step; return its loss."""
        millivolt = batch.signal_BLT.float() * (batch.microvolt_per_count_B[:, None, None] * 1e-3)
        signal = ((millivolt - MEAN_MV) / STD_MV).clamp(-CLIP, CLIP)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.loss(signal, keep, hide)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        with torch.no_grad():
            for name, average in self.target.items():
                average.mul_(MOMENTUM).add_(self.weights[f"encoder.{name}"], alpha=1 - MOMENTUM)
        return loss.detach()


def _is_matrix(name: str) -> bool:
    return not any(part in name for part in ("register", "mask_token", "norm"))


class Ours:
    """What a run does, with DeepSpeed's engine or in a loop without it."""

    def __init__(
        self,
        objective: Objective,
        precision: Precision,
        device: torch.device,
        engine: Engine | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.objective, self.precision, self.device, self.engine = objective, precision, device, engine
        self.optimizer = None if engine else build_optimizer(OPTIM, objective)
        counts = objective.takes_counts and objective.encoder.takes_counts
        mean, std = (torch.full((1, LEADS), value) for value in (MEAN_MV, STD_MV))
        self.prepare = Prepare(mean, std, CLIP, rate_hz=RATE_HZ, keep_counts=counts).to(device)
        self.compiled = compiled
        self.run: Callable[..., Any] = torch.compile(objective) if compiled else objective
        self.number = 0

    def views(self, batch: Batch, number: int) -> Batch:
        """Return what the objective sees."""
        rows = len(batch.signal_BLT)
        draws = Draws(seed=0, step=number, rows=(0, rows), all_rows=rows, device=self.device)
        return self.objective.views(self.prepare(batch), draws)

    def step(self, batch: Batch, views: Batch | None = None) -> Tensor:
        """Do one step; return its loss."""
        at = Progress(step=0, schedule_steps=100)
        views = self.views(batch, self.number) if views is None else views
        self.number += 1
        if self.engine is not None:
            set_values(self.engine.param_groups, OPTIM.values(0), at)
            loss = self.engine.forward(views, at)["loss"]
            self.engine.backward(loss)
            self.engine.step()
            self.engine.after_step(at)
            return loss.detach()
        assert self.optimizer is not None
        set_values(self.optimizer.param_groups, OPTIM.values(0), at)
        if self.compiled:
            any_length_(views)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.run(views, at)["loss"]
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        move_averages_(self.objective, at)
        self.objective.after_step(at)
        found: Tensor = loss.detach()
        return found


def counts(rows: int, device: torch.device) -> Batch:
    """Return windows of noise as a loader gives them."""
    drawn = torch.Generator().manual_seed(0)
    return Batch(
        signal_BLT=torch.randint(-1000, 1000, (rows, LEADS, SAMPLES), generator=drawn, dtype=torch.int16),
        microvolt_per_count_B=torch.ones(rows),
        database_B=torch.zeros(rows, dtype=torch.int64),
    ).to(device)


def jepa(size: str, device: torch.device) -> JEPA:
    """Return the objective, with the same weights each time."""
    torch.manual_seed(0)
    built = build_objective(JEPA.Config(momentum=(MOMENTUM, MOMENTUM)), SIZES[size], SAMPLES, RATE_HZ).to(device)
    assert isinstance(built, JEPA)
    return built


def bench_step(settings: Bench, device: torch.device) -> list[Row]:
    """Ours against the plain step, and both against the floor."""
    with torch.device("meta"):
        whole = build_objective(JEPA.Config(), SIZES[settings.size], SAMPLES, RATE_HZ)
    flops = settings.rows * window_flops(whole, num_leads=LEADS, window_samples=SAMPLES, rate_hz=RATE_HZ)
    batch = counts(settings.rows, device)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if device.type == "cpu" else ("bfloat16",)
    plain = {precision: Plain(jepa(settings.size, device), precision, device) for precision in precisions}
    ours = {precision: Ours(jepa(settings.size, device), precision, device) for precision in precisions}
    masks = [ours[precisions[0]].views(batch, number) for number in range(settings.steps)]
    rows = [] if settings.plain else same_losses(settings, device, batch)
    ways: dict[str, Callable[[], object]] = {}
    keep_BK, hide_BM = masks[0].keep_BK, masks[0].hide_BM
    assert keep_BK is not None and hide_BM is not None
    for precision in precisions:
        ways[f"plain {precision}"] = partial(plain[precision].step, batch, keep_BK, hide_BM)
        if not settings.plain:
            ways[f"ours {precision}"] = partial(ours[precision].step, batch)
        if settings.compile:
            other = Plain(jepa(settings.size, device), precision, device)
            other.loss = torch.compile(other._loss)
            fast = Ours(jepa(settings.size, device), precision, device, compiled=True)
            ways[f"plain {precision}, compiled"] = partial(other.step, batch, keep_BK, hide_BM)
            ways[f"ours {precision}, compiled"] = partial(fast.step, batch)
    seconds = best(ways, device, settings.repeats)
    name = f"JEPA ViT-{settings.size.upper()}, {settings.rows} windows"
    against = seconds[f"plain {precisions[0]}"]
    aims = {"ours float32": 1.0, "ours bfloat16": 1.7} if device.type == "cpu" else {"ours bfloat16": 2.0}
    for way, took in seconds.items():
        dtype = torch.float32 if "float32" in way else torch.bfloat16
        share = flops / took / matrix_rate(device, dtype)
        note = f"{share:.0%} of the matrix rate in {str(dtype)[6:]}"
        if way != f"plain {precisions[0]}":
            base, aim = f"plain {precisions[0]}", aims.get(way)
            rows.append(Row(what=f"{name}: {way}", baseline=base, ratio=against / took, aim=aim, note=note))
        else:
            Console().print(f"{name}: {way}: {note}")
        if device.type == "cuda" and way.startswith("ours"):
            what = f"{name}: {way}: model operations"
            rows.append(Row(what=what, baseline="measured matrix rate", ratio=share, aim=0.45))
    if device.type == "cuda" and not settings.plain:
        look_at_gpu(lambda: ours["bfloat16"].step(batch), device)
    return rows


def same_losses(settings: Bench, device: torch.device, batch: Batch) -> list[Row]:
    """Losses over some steps against the plain ones: how far they are from each other.

    In bfloat16 what counts is the band of two plain runs that differ in their masks alone.
    """
    few = replace(
        batch,
        signal_BLT=batch.signal_BLT[:4],
        microvolt_per_count_B=batch.microvolt_per_count_B[:4],
        database_B=batch.database_B[:4],
    )

    def losses(build: type[Plain | Ours], precision: Precision, first: int = 0) -> Tensor:
        masks = Ours(jepa(settings.size, device), precision, device)
        run = build(jepa(settings.size, device), precision, device)
        found = []
        for number in range(first, first + settings.steps):
            views = masks.views(few, number)
            assert views.keep_BK is not None and views.hide_BM is not None
            if isinstance(run, Plain):
                found.append(run.step(few, views.keep_BK, views.hide_BM))
            else:
                found.append(run.step(few, views))
        return torch.stack(found).double().cpu()

    rows = []
    if device.type == "cpu":
        far = float((losses(Ours, "float32") / losses(Plain, "float32") - 1).abs().max())
        what = f"losses of {settings.steps} steps in float32, most relative difference"
        rows.append(Row(what=what, baseline="plain", ratio=far, aim=1e-6, at_most=True))
    plain = losses(Plain, "bfloat16")
    band = float((losses(Plain, "bfloat16", OTHER_MASKS) - plain).abs().max())
    away = float((losses(Ours, "bfloat16") - plain).abs().max())
    what = f"losses of {settings.steps} steps in bfloat16, most difference from plain bfloat16"
    note = f"{away:.1e} of {band:.1e}"
    rows.append(
        Row(what=what, baseline="two plain runs' with other masks", ratio=away / band, aim=1, at_most=True, note=note)
    )
    return rows


def bench_objectives(settings: Bench, device: torch.device) -> list[Row]:
    """What an objective costs beside its networks."""
    cases: dict[str, tuple[Objective.Config, Encoder.Config]] = {
        f"jepa, ViT-{settings.size.upper()}": (JEPA.Config(), SIZES[settings.size]),
        "moco, ts_cnn": (MoCo.Config(), ts_cnn.TSCNN.Config()),
        "simclr, resnet1d": (SimCLR.Config(), resnet1d.ResNet1d.Config()),
    }
    rows, at = [], Progress(step=0, schedule_steps=100)
    num_rows = settings.rows
    for name, (objective_config, encoder_config) in cases.items():
        torch.manual_seed(0)
        window = SAMPLES // encoder_config.patch_samples * encoder_config.patch_samples
        built = build_objective(objective_config, encoder_config, window, RATE_HZ).to(device)
        ours = Ours(built, "bfloat16", device)
        batch = counts(num_rows, device)
        batch = replace(batch, signal_BLT=batch.signal_BLT[:, :, :window].contiguous())
        views = ours.views(batch, 0)

        def whole(measure: bool = False, built: Objective = built, views: Batch = views) -> None:
            built.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = built(views, replace(at, measure=measure))["loss"]
            torch.autograd.backward(loss)

        def after(built: Objective = built) -> None:
            move_averages_(built, at)
            if not isinstance(built, MoCo):
                built.after_step(at)
            else:
                built._collect(torch.zeros(num_rows, built.queue_KE.shape[1], device=device), at.step)
                built.after_step(at)

        ways: dict[str, Callable[[], object]] = {
            "networks": networks(built, views, device),
            "whole": whole,
            "measured": partial(whole, True),
            "views": partial(ours.views, batch, 0),
            "after": after,
        }
        took = best(ways, device, settings.repeats)
        logged = max(took["measured"] - took["whole"], 0.0) / LOG_EVERY
        parts = {"loss": took["whole"] - took["networks"], "views": took["views"], "after": took["after"]}
        parts["figures"] = logged
        share = {part: seconds / took["networks"] for part, seconds in parts.items()}
        note = ", ".join(f"{part} {value:.1%}" for part, value in share.items())
        rows.append(
            Row(
                what=f"objective overhead: {name}",
                baseline="its networks, forward and backward",
                ratio=sum(share.values()),
                aim=0.05,
                at_most=True,
                note=note,
            )
        )
    return rows


def networks(objective: Objective, views: Batch, device: torch.device) -> Callable[[], None]:
    """Return what runs the networks alone, forward and backward, from tensors that are there."""

    def run() -> None:
        objective.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            if isinstance(objective, JEPA):
                assert views.keep_BK is not None and views.hide_BM is not None
                with torch.no_grad():
                    objective.target(views.signal)
                seen = objective.encoder(views.signal, views.keep_BK)
                out = objective.predictor(seen, views.keep_BK, views.hide_BM)
            elif isinstance(objective, MoCo):
                assert views.views_BVLT is not None
                with torch.no_grad():
                    objective.key_projector(objective.key_encoder.encode(views.views_BVLT[:, 1])[1])
                out = objective.projector(objective.encoder.encode(views.views_BVLT[:, 0])[1])
            else:
                assert isinstance(objective, SimCLR) and views.views_BVLT is not None
                out = objective.projector(objective.encoder.encode(views.views_BVLT.flatten(0, 1))[1])
        torch.autograd.backward(out, torch.ones_like(out))

    return run


def bench_engine(settings: Bench, device: torch.device) -> list[Row]:
    """DeepSpeed's engine against a loop without it, on one rank."""
    batch, rows = counts(settings.rows, device), []
    world = start_world(5.0)
    try:
        ways = {}
        plain = Ours(jepa(settings.size, device), "bfloat16", device)
        ways["loop"] = partial(plain.step, batch)
        for stage in (0, 1):
            objective = jepa(settings.size, device)
            engine = Engine(
                EngineConfig(zero_stage=stage),
                world,
                objective,
                build_optimizer(OPTIM, objective),
                micro_batch_size=settings.rows,
                clip_norm=None,
            )
            ours = Ours(objective, "bfloat16", device, engine)
            ways[f"stage {stage}"] = partial(ours.step, batch)
        took = best(ways, device, settings.repeats)
        for stage in (0, 1):
            what = f"DeepSpeed engine, ZeRO {stage}, one rank: time beyond the loop's"
            share = took[f"stage {stage}"] / took["loop"] - 1
            rows.append(Row(what=what, baseline="plain loop", ratio=share, aim=0.03, at_most=True))
        if device.type == "cuda":
            count_waits(ways["stage 1"], "engine, ZeRO 1")
            count_waits(ways["stage 0"], "engine, ZeRO 0")
    finally:
        end_world()
    return rows


def bench_loading(settings: Bench, device: torch.device) -> list[Row]:
    """Steps on windows from shards against steps on windows that are there."""
    what, base = "end to end, loading included", "the same step on data already there"
    if not settings.shards:
        return [Row(what=what, baseline=base, aim=0.95, note="needs --shards")]
    shards = Shards(settings.shards)
    loader = Loader(
        shards,
        window_samples=SAMPLES,
        batch_size=settings.rows,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=0,
        pin_memory=device.type == "cuda",
    )
    ours = Ours(jepa(settings.size, device), "bfloat16", device)
    batches = loader.batches(device)

    def read() -> Batch:
        # All folders share one scale here.
        batch = next(batches).to(device)
        return replace(batch, database_B=torch.zeros_like(batch.database_B))

    there, steps = read(), 10 if device.type == "cuda" else 1
    ways: dict[str, Callable[[], object]] = {
        "there": lambda: [ours.step(there) for _ in range(steps)],
        "read": lambda: [ours.step(read()) for _ in range(steps)],
    }
    took = best(ways, device, settings.repeats)
    batches.close()  # type: ignore[attr-defined]
    return [Row(what=what, baseline=base, ratio=took["there"] / took["read"], aim=0.95)]


def look_at_gpu(step: Callable[[], object], device: torch.device) -> None:
    """Print the ten kernels that take most, the peak of memory, and where the host waits."""
    console = Console()
    with torch.profiler.profile() as profile:
        step()
        torch.cuda.synchronize(device)
    console.print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=10), markup=False)
    console.print(f"peak memory {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")
    count_waits(step, "the step in a loop")
    for dtype in (torch.bfloat16,):
        for size in (24, 32, 48, 64):
            query = torch.randn(2, 4, 200, size, device=device, dtype=dtype, requires_grad=True)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                try:
                    torch.autograd.backward(functional.scaled_dot_product_attention(query, query, query).sum())
                    console.print(f"SDPA, heads of {size}: flash")
                except RuntimeError as error:
                    console.print(f"SDPA, heads of {size}: NOT flash: {error}")


def count_waits(step: Callable[[], object], what: str) -> None:
    """Print how often the host waits for the device in a step, and in which lines."""
    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    Console().print(f"{what}: the host waits {len(waits)} times", *sorted(set(waits)), sep="\n  ")


def main() -> None:
    """Print ratios, aims, and what a floor would allow."""
    settings = cli_settings()
    device = device_of(settings.device)
    rows = []
    parts: dict[str, Callable[[Bench, torch.device], list[Row]]] = {
        "step": bench_step,
        "objectives": bench_objectives,
        "engine": bench_engine,
        "loading": bench_loading,
    }
    for part in ("step",) if settings.plain else settings.parts:
        rows += parts[part](settings, device)
    show(rows, f"step on {device}, {torch.get_num_threads()} threads, torch {torch.__version__}", settings.out)


def cli_settings() -> Bench:
    """Return what the command line says."""
    return tyro.cli(Bench, description=__doc__)


if __name__ == "__main__":
    config.run_command(main)
