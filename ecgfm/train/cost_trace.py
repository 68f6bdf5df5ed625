"""What a micro-batch does on a device, found by running it on tensors that have shapes and no memory.

Each operation of the forward and backward pass is noted as torch would launch it: its products, what it reads and
writes, and the memory in use after it. torch's fake tensors stand for those of a CPU, whose autocast and saved tensors
are like a GPU's, once attention is left to torch as there: the same activations are kept. Workspaces of a GPU's kernels
are not seen, nor is what the kernels of ecgfm/kernels spare: their plain references are run.

Bytes are given twice. *Eager*: each operation reads and writes memory. *Fused*: a chain of operations that are no
product, convolution or attention reads what it needs once and writes what others need once, which is what a perfect
compiler would make of it; what torch.compile makes of it lies between.

Everything but the losses that compare windows of a batch grows by the same amount with each window, so that two sizes
tell all.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from ecgfm.data.batch import Batch
from ecgfm.nn import blocks
from ecgfm.objectives.base import Objective, Progress
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.flops import batch_tensors

ROWS = (16, 32)
"""Windows of the two micro-batches between which the line is drawn."""
PRODUCTS = ("patches", "linear layers", "convolutions", "attention", "recurrence")
"""Kinds of operations that no compiler fuses with others."""
KINDS = (*PRODUCTS, "norms", "loss", "the rest")
"""What is done outside of all modules is called loss: the objective's own forward, its masks and gathers among it."""
FREE = ("aten::_unsafe_view", "aten::detach", "aten::empty", "aten::new_empty", "aten::empty_like", "prim::device")
"""Operations that launch nothing, though they are no views."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of operations of one kind, in a micro-batch."""

    flops: float = 0.0
    """Of products, as they run: fused attention computes its scores again for the backward pass."""
    bytes: float = 0.0
    """Read and written, eager."""
    kernels: float = 0.0
    """Operations, eager. A GPU's kernels are a few more."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Of the forward and backward pass of a micro-batch."""

    kinds: dict[str, Work] = field(default_factory=dict)
    """Of each kind in `KINDS` that there is."""
    fused_bytes: float = 0.0
    """Read and written by what is no product, fused."""
    fused_kernels: float = 0.0
    """Kernels of what is no product, fused."""
    saved_bytes: float = 0.0
    """Kept for the backward pass, weights aside."""
    peak_bytes: float = 0.0
    """The most that was in use, weights and their gradients aside."""

    def line(self, other: Trace, share: float) -> Trace:
        """Return what lies so far on the line to another."""

        def between(low: float, high: float) -> float:
            return max(low + (high - low) * share, 0.0)

        names = [name for name in KINDS if name in self.kinds or name in other.kinds]
        kinds = {}
        for name in names:
            low, high = self.kinds.get(name, Work()), other.kinds.get(name, Work())
            kinds[name] = Work(
                **{key: between(getattr(low, key), getattr(high, key)) for key in ("flops", "bytes", "kernels")}
            )
        rest = {
            key: between(getattr(self, key), getattr(other, key))
            for key in ("fused_bytes", "fused_kernels", "saved_bytes", "peak_bytes")
        }
        return Trace(kinds=kinds, **rest)


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Of any number of windows."""

    low: Trace
    high: Trace
    rows: tuple[int, int] = ROWS

    def at(self, windows: int) -> Trace:
        """Return the trace of a micro-batch."""
        first, last = self.rows
        return self.low.line(self.high, (windows - first) / (last - first))


def traces(objective: Objective, views: Batch, engine: EngineConfig) -> Traces:
    """Return the work of any number of windows.

    Args:
        objective: On the meta device, with recomputed blocks where the engine asks for that; it is changed.
        views: Of `flops.usual_views`.
        engine: Its precision.
    """
    # What a part holds beside its weights lies on the meta device, and is no fake.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights_: torch.dtype | None = {"bfloat16-weights": torch.bfloat16, "float16": torch.float16}.get(engine.precision)
    with mode, torch.no_grad():
        objective._apply(lambda weight: _fake(weight, weights_))  # type: ignore[no-untyped-call]
    with mode, torch.no_grad():  # what is made once, such as positions, belongs to no step
        objective(_rows(views, ROWS[0], mode), Progress(step=0, schedule_steps=1))
    low, high = (_trace(objective, _rows(views, rows, mode), engine, mode) for rows in ROWS)
    return Traces(low=low, high=high)


def _fake(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a fake tensor like a weight or buffer, of 16 bits where it is a float."""
    return torch.empty(weight.shape, dtype=dtype if dtype and weight.is_floating_point() else weight.dtype)


def _rows(views: Batch, rows: int, mode: FakeTensorMode) -> Batch:
    """Return views of so many windows."""
    with mode:
        fakes: dict[str, Any] = {
            # Of several masks a window there are more rows than windows.
            name: torch.empty((rows * len(value) // len(views.signal_BLT), *value.shape[1:]), dtype=value.dtype)
            for name, value in batch_tensors(views).items()
        }
    return replace(views, **fakes)


def _trace(objective: Objective, views: Batch, engine: EngineConfig, mode: FakeTensorMode) -> Trace:
    for weight in objective.parameters():
        weight.grad = None
    note = _Note(objective)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=engine.precision == "bfloat16")
    with mode, note.tracker, note, note.saving(), attention_of_torch():
        with autocast:
            loss = objective(views, Progress(step=0, schedule_steps=1))["loss"]
        torch.autograd.backward(loss)
    return note.trace()


@contextmanager
def attention_of_torch() -> Iterator[None]:
    """Leave attention to torch, as on a GPU; on a CPU the blocks write it out where torch's is slow."""

    def attend(query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, sees_B1NN: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(query_BHNE, key_BHNE, value_BHNE, attn_mask=sees_B1NN)

    written = blocks.attend
    blocks.attend = attend
    try:
        yield
    finally:
        blocks.attend = written


class _Note(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation.

    Args:
        objective: Whose weights are no activations.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = ModuleTracker()
        self.work = {kind: [0.0, 0.0, 0.0] for kind in KINDS}
        self.fused_bytes = self.fused_kernels = self.saved = self.live = self.peak = 0.0
        self._weights = {_storage(weight) for weight in (*objective.parameters(), *objective.buffers())}
        self._saved: dict[int, Any] = {}
        self._live: set[int] = set()
        self._made: set[int] = set()
        """Storages that the chain in work has made, and that nobody has had to write yet."""
        self._read: set[int] = set()
        """Storages that it has read."""
        self._chained = False

    def trace(self) -> Trace:
        """Return what was noted."""
        return Trace(
            kinds={
                kind: Work(flops=flops, bytes=moved, kernels=kernels)
                for kind, (flops, moved, kernels) in self.work.items()
                if kernels
            },
            fused_bytes=self.fused_bytes,
            fused_kernels=self.fused_kernels,
            saved_bytes=self.saved,
            peak_bytes=self.peak,
        )

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Note what is kept for the backward pass, each storage once."""

        def keep(tensor: Tensor) -> Tensor:
            key = _storage(tensor)
            if key not in self._weights and key not in self._saved:
                self._saved[key] = weakref.ref(tensor.untyped_storage())
                self.saved += tensor.untyped_storage().nbytes()
            self._write(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func.is_view or name in FREE:
            return out
        reads, writes = list(_tensors((args, kwargs or {}))), list(_tensors(out))
        self._keep_count(writes)
        kind = self._kind(name)
        flops = _flops(func, args, kwargs or {}, out, name)
        work = self.work[kind]
        work[0] += flops
        work[1] += sum(map(_bytes, reads)) + sum(map(_bytes, writes))
        work[2] += 1
        self._fuse(kind, reads, writes)
        return out

    def _kind(self, name: str) -> str:
        if "scaled_dot_product" in name:
            return "attention"
        if "rnn" in name or "lstm" in name:
            return "recurrence"
        within = {parent.split(".")[-1] for parent in self.tracker.parents}
        if name.removeprefix("aten::") in ("mm", "addmm", "bmm", "baddbmm") or "convolution" in name:
            if "bmm" in name and "attn" in within:  # where torch has no fused attention
                return "attention"
            if "patch" in within:
                return "patches"
            return "convolutions" if "convolution" in name else "linear layers"
        if "_norm" in name:
            return "norms"
        return "the rest" if any("." in parent for parent in self.tracker.parents) else "loss"

    def _keep_count(self, writes: list[Tensor]) -> None:
        """Note the memory in use: a storage is, until nobody holds it."""
        for tensor in writes:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live or key in self._weights:
                continue
            self._live.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._saved.pop(key, None)
        self._made.discard(key)
        self._read.discard(key)
        self.live -= size

    def _fuse(self, kind: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        """Note what a fused chain reads and writes: a product ends it."""
        if kind in PRODUCTS:
            for tensor in reads:
                self._write(tensor)
            self._chained = False
            self._read.clear()
            return
        self.fused_kernels += not self._chained
        self._chained = True
        for tensor in reads:
            key = _storage(tensor)
            if key not in self._made and key not in self._read:
                self._read.add(key)
                self.fused_bytes += _bytes(tensor)
        self._made |= {_storage(tensor) for tensor in writes}

    def _write(self, tensor: Tensor) -> None:
        """Note that others want what a chain has made."""
        key = _storage(tensor)
        if key in self._made:
            self._made.discard(key)
            self._read.add(key)
            self.fused_bytes += _bytes(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors within."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """Return what a tensor has in memory: one that is expanded is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _flops(func: Any, args: Any, kwargs: Any, out: Any, name: str) -> float:
    if "scaled_dot_product" in name:
        backward = "backward" in name
        query, key = args[1:3] if backward else args[:2]
        # Two products forward; the scores again and four more backward.
        return float((10 if backward else 4) * query.numel() * key.shape[-2])
    if "rnn_layer" in name:
        steps_rows, weights = args[0].shape[:2], args[1].numel() + args[2].numel()
        return float((4 if "backward" in name else 2) * steps_rows.numel() * weights)
    count = flop_registry.get(func._overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0
