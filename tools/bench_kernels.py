"""The kernels of ecgfm/kernels against their references, and against those under torch.compile: time, GB/s, verdict.

    python tools/bench_kernels.py                     # on a GPU: the table, and which kernels to delete
    python tools/bench_kernels.py --rows 16           # on a CPU: the references alone, against what was there before

The floor of a pass over memory is its bytes over the bandwidth, which is that of a plain copy measured in the same run;
the bytes of each kernel are counted in its file, and here by what it must read and write once. A kernel is to be
deleted when torch.compile of its reference comes within 1.1 of its time: then the reference stays alone.

Times are the best of several, taken in turn. On a GPU they are of the replay of a CUDA graph, so that the device is
measured and not Python; the launches that a kernel saves come on top of that.

What did not help, or is small, and why:

- On a CPU nothing is gained by a kernel, and the references run. What is gained there is that the context encoder's
  patches are taken before they are multiplied: with a fifth of the patches kept, forward and backward of the embedding
  take 0.13 to 0.2 of the time of a convolution of all of them and a gather, in float32 and under bfloat16 autocast (one
  core, ViT-S, 16 windows). In a whole step it was not resolved. The full view stays a convolution: the product was 0.8
  to 1.5 of its time, from run to run.
- All of ingest, assemble and masked_error together move some 6 MB a window less of a ViT-S step, by the counts in their
  files: at 4.8 TB/s 1.2 us of the 42 that a window takes on an H200 at 45 % of its matrix rate, and their launches.
- The moving average alone, without the 16-bit copy, moves the same 12 bytes a weight as torch._foreach_lerp_ does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from bench_rows import Row, show  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from ecgfm import config
from ecgfm.kernels import assemble, dispatch, ema, ingest, masked_error
from ecgfm.kernels.ingest import Counts
from ecgfm.nn.tokens import take

LEADS, SAMPLES, PATCH = 12, 5000, 25
TOKENS, KEPT = 200, 40
WIDTH, NARROW = 384, 192
WEIGHTS = [(WIDTH, LEADS * PATCH), *[(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * 8]
WORTH = 1.1
"""A kernel that is not faster by this than the compiled reference is to be deleted."""
REPEATS, TRIES = 20, 7

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A kernel at the shapes of a JEPA step of ViT-S."""

    name: str
    kernel: Run
    """What the dispatch chooses."""
    reference: Run
    compiled: Run | None
    """None where torch.compile would do nothing else."""
    bytes_moved: float
    """What must be read and written once."""


def best_s(runs: dict[str, Run], device: torch.device) -> dict[str, float]:
    """Return the best time of each, taken in turn."""
    best = dict.fromkeys(runs, float("inf"))
    repeats = REPEATS if device.type == "cuda" else 1
    for attempt in range(TRIES + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            _wait(device)
            if attempt:  # the first warms up, and compiles
                best[name] = min(best[name], (time.perf_counter() - start) / repeats)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def captured(run: Run, device: torch.device) -> Run:
    """Return the replay of a CUDA graph of a run, so that Python's time is not in it; on a CPU the run."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> list[Case]:
    """Return the kernels at the shapes of a step."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    counts = Counts(
        counts_BLT=(normal(rows, LEADS, SAMPLES) * 500).to(torch.int16),
        offset_BL=None,
        factor_BL=normal(rows, LEADS).abs() * 2e-3,
        shift_BL=normal(rows, LEADS),
        clip=5.0,
    )
    shuffled = torch.rand(rows, TOKENS, generator=generator, device=device).argsort(dim=1)
    keep, hide = (part.sort(dim=1).values for part in (shuffled[:, :KEPT], shuffled[:, KEPT:]))
    size = torch.finfo(dtype).bits // 8
    samples = rows * LEADS * SAMPLES
    both = 2 + size, KEPT / TOKENS

    def full_view(cut: Callable[..., Tensor]) -> Run:
        return lambda: cut(counts, PATCH, None, leads_apart=False, dtype=dtype)

    def kept_view(cut: Callable[..., Tensor]) -> Run:
        return lambda: cut(counts, PATCH, keep, leads_apart=False, dtype=dtype)

    compiled = torch.compile(ingest.reference, dynamic=False)
    out = [
        Case(
            "ingest, all",
            full_view(ingest.patches),
            full_view(ingest.reference),
            full_view(compiled),
            samples * both[0],
        ),
        Case(
            "ingest, kept",
            kept_view(ingest.patches),
            kept_view(ingest.reference),
            kept_view(torch.compile(ingest.reference, dynamic=False)),
            samples * both[0] * both[1],
        ),
        _assembled(normal, keep, hide, dtype),
    ]
    for norm in (False, True):
        out.append(_error(normal, hide, dtype, norm=norm))
    out += [_average(normal, None), _average(normal, dtype)]
    return out


def _assembled(normal: Callable[..., Tensor], keep: Tensor, hide: Tensor, dtype: torch.dtype) -> Case:
    rows = len(keep)
    tokens = normal(rows, KEPT, NARROW).to(dtype).requires_grad_()
    position, mask = normal(TOKENS, NARROW), normal(NARROW).requires_grad_()
    pull = normal(rows, TOKENS, NARROW)

    def both(function: Callable[..., Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            made = function(tokens, position, keep, None, mask, hide, torch.float32)
            return torch.autograd.grad(made, (tokens, mask), pull)

        return run

    def dispatched(*words: Tensor) -> Tensor:
        return assemble.assemble(
            words[0], words[1], words[2], before_ED=None, mask_D=words[4], hide_BM=words[5], dtype=torch.float32
        )

    size = tokens.element_size()
    # Forward the tokens in and all out; backward all in, and the tokens' out.
    moved = rows * NARROW * (KEPT * size + TOKENS * 4 + TOKENS * 4 + KEPT * size)
    compiled = torch.compile(assemble.reference, dynamic=False)
    return Case("assemble, both ways", both(dispatched), both(assemble.reference), both(compiled), moved)


def _error(normal: Callable[..., Tensor], hide: Tensor, dtype: torch.dtype, *, norm: bool) -> Case:
    rows, hidden = hide.shape
    guess, target = normal(rows, hidden, WIDTH).to(dtype).requires_grad_(), normal(rows, TOKENS, WIDTH)

    def both(function: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(guess, target, hide, smooth=norm, norm=norm), guess)

    size = guess.element_size()
    moved = rows * hidden * WIDTH * (2 * (size + 4) + size)
    compiled = torch.compile(masked_error.reference, dynamic=False)
    name = "masked_error, both ways" + (", normed" if norm else "")
    return Case(name, both(masked_error.masked_error), both(masked_error.reference), both(compiled), moved)


def _average(normal: Callable[..., Tensor], dtype: torch.dtype | None) -> Case:
    targets, sources = ([normal(*shape) for shape in WEIGHTS] for _ in range(2))
    copies = None if dtype is None else [target.to(dtype) for target in targets]
    size = 12 + (0 if dtype is None else torch.finfo(dtype).bits // 8)
    return Case(
        "ema" + (", copied" if copies else ""),
        lambda: ema.move_(targets, sources, 0.002, copies),
        lambda: ema.reference(targets, sources, 0.002, copies),
        None,
        size * sum(target.numel() for target in targets),
    )


def copy_gb_s(device: torch.device) -> float:
    """Return the bandwidth of a plain copy, bytes read and written."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    seconds = best_s({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * source.numel() * 4 / seconds / 1e9


def embedding(rows: int, device: torch.device) -> dict[str, Run]:
    """Return the context encoder's embedding as it was, and of the kept patches alone; forward and backward."""
    generator = torch.Generator(device).manual_seed(0)
    signal = torch.randn(rows, LEADS, SAMPLES, generator=generator, device=device)
    weight = torch.randn(WIDTH, LEADS, PATCH, generator=generator, device=device).requires_grad_()
    keep = torch.rand(rows, TOKENS, generator=generator, device=device).argsort(dim=1)[:, :KEPT].sort(dim=1).values

    def before() -> object:
        tokens = take(functional.conv1d(signal, weight, stride=PATCH).transpose(1, 2), keep)
        return torch.autograd.grad(tokens.sum(), weight)

    def now() -> object:
        kept = ingest.patches(signal, PATCH, keep, leads_apart=False, dtype=signal.dtype)
        return torch.autograd.grad(functional.linear(kept, weight.flatten(1)).sum(), weight)

    return {"all patches, then a gather": before, "kept patches alone": now}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the kernels."""

    rows: int | None = None
    """Windows; 512 on a GPU, 8 on a CPU."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of what is written."""
    out: Path | None = None
    """Write the ratios to this file too, as JSON."""


def main() -> None:
    """Measure, print, and say which kernel to delete."""
    settings = tyro.cli(Bench, description=__doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = dispatch.triton_runs(torch.empty(0, device=device))
    windows = settings.rows or (512 if device.type == "cuda" else 8)
    dtype: torch.dtype = getattr(torch, settings.precision)
    console, bandwidth = Console(), copy_gb_s(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    console.print(f"{name}, {windows} windows, {dtype}: a copy moves {bandwidth:,.0f} GB/s", highlight=False)
    if not on_gpu:
        console.print("Triton needs a GPU: references only, of what they need not move too", highlight=False)
    table = Table("what", "us", "floor", "GB/s", "of copy", "reference", "compiled", title="kernels")
    rows: list[Row] = []
    for case in cases(windows, device, dtype):
        runs = {"reference": case.reference}
        if on_gpu:
            runs |= {"kernel": case.kernel} | ({"compiled": case.compiled} if case.compiled else {})
        seconds = best_s({key: captured(run, device) for key, run in runs.items()}, device)
        taken = seconds.get("kernel", seconds["reference"])
        rivals = {key: seconds[key] / taken for key in ("reference", "compiled") if key in seconds}
        rate = case.bytes_moved / taken / 1e9
        table.add_row(
            case.name,
            f"{taken * 1e6:,.0f}",
            f"{case.bytes_moved / bandwidth / 1e3:,.0f}",
            f"{rate:,.0f}",
            f"{rate / bandwidth:.0%}",
            *(f"x {rivals[key]:.2f}" if on_gpu and key in rivals else "-" for key in ("reference", "compiled")),
        )
        if on_gpu:
            rival, ratio = min(rivals.items(), key=lambda item: item[1])
            worth = "" if ratio >= WORTH else "delete it"
            rows.append(Row(what=f"kernel {case.name}", baseline=rival, ratio=ratio, aim=WORTH, note=worth))
    console.print(table)
    if not on_gpu:
        rows.append(Row(what="kernels", baseline="reference, also compiled", aim=WORTH, note="needs a GPU"))
    before, now = best_s(embedding(windows, device), device).values()
    rows.append(
        Row(what="context embedding, kept patches alone", baseline="all patches, then a gather", ratio=before / now)
    )
    show(rows, "kernels", settings.out)


if __name__ == "__main__":
    config.run_command(main)
