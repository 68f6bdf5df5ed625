"""How the work is spread over devices and in which precision, and what DeepSpeed is told of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ecgfm import config as settings
from ecgfm.errors import ConfigError

LONGEST = timedelta(days=1)
"""The longest --engine.timeout-min."""
FREE_ENGINE = ("timeout_min", "offload", "checkpoint_activations", "compile", "cuda_graphs", "deterministic", "kernels")
"""Settings that a run may change when it goes on: they change how, and nothing beyond the rounding."""
MASTERS = ("bfloat16-weights", "float16")
"""Precisions whose weights are of 16 bits, beside float32 masters."""
LARGEST_BUCKET = 500_000_000
"""Gradients that ZeRO sums over the ranks at once, DeepSpeed's own default; stages 1 and 2 need no more than all."""
OURS = (
    "train_batch_size",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "bfloat16",
    "amp",
    "elasticity",
    "checkpoint",
    "data_types",
)
"""Keys of DeepSpeed's configuration that --engine.extra may not have, besides those that are written here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is spread over devices, and in which precision."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 keeps all on every rank, 1 splits the optimizer's state, 2 the gradients too, 3 the weights
    too."""
    precision: Literal["bfloat16", "bfloat16-weights", "float16", "float32"] = "bfloat16"
    """bfloat16 is autocast over float32 weights. bfloat16-weights and float16 have weights of 16 bits, beside float32
    masters that ZeRO splits over the ranks: less memory where there are many. float16 scales the loss."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step."""
    loss_scale: float = 65536.0
    """Of float16: what the loss is multiplied by at first. It is halved by a gradient beyond float16's range, whose
    step is dropped, and doubled after --engine.loss-scale-window steps without one."""
    loss_scale_window: int = 1000
    """Of float16: steps before the loss scale is doubled."""
    offload: bool = False
    """Keep the optimizer's state in the host's memory, and step there: slower, and 8 bytes a weight less on the device,
    12 with bfloat16-weights and float16."""
    checkpoint_activations: bool = False
    """Forget what is within a block of the encoder or predictor, and compute it again for the backward pass: a third
    slower, and much less memory."""
    compile: bool = False
    """Compile forward and backward with torch.compile, which takes a minute or more at the start: one graph for any
    number of hidden tokens, and another for the steps that measure figures."""
    cuda_graphs: bool = False
    """Of --engine.compile on a GPU: record what the host asks of the device, and play it back. It helps where steps are
    short, of few windows on a fast GPU. Each number of hidden tokens is recorded by itself, up to 21 of them at 200
    tokens, in memory of their own; not with --engine.checkpoint-activations, nor with ZeRO beyond stage 1."""
    kernels: Literal["auto", "reference"] = "auto"
    """On a GPU, kernels of our own for what torch would do in several passes over memory (auto), or plain torch
    (reference), as on a CPU. The figures differ in their last digits."""
    deterministic: bool = False
    """Give the same bits at each repetition, also on a GPU, where some kernels add in any order: slower. An operation
    that cannot ends the run."""
    timeout_min: float = 5.0
    """Minutes after which a rank that hangs ends the run, which takes up to one more. It must be more than the slowest
    checkpoint or compilation takes: the other ranks wait for those too."""
    extra: Path | None = None
    """JSON file of further DeepSpeed settings, such as {"zero_optimization": {"overlap_comm": true}}."""

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"--engine.accumulation must be at least 1, got {self.accumulation}")
        if not 0 < self.timeout_min <= LONGEST / timedelta(minutes=1):
            raise ConfigError(f"--engine.timeout-min must be above 0 and at most a day, got {self.timeout_min}")
        power = math.log2(self.loss_scale) if 0 < self.loss_scale < math.inf else -1
        if power < 0 or power != int(power) or self.loss_scale_window < 1:
            raise ConfigError(
                f"--engine.loss-scale {self.loss_scale} must be a power of 2, at least 1, and "
                f"--engine.loss-scale-window {self.loss_scale_window} at least 1"
            )
        if self.offload and self.zero_stage == 0:
            raise ConfigError(
                "--engine.offload needs ZeRO, which moves the optimizer's state: use --engine.zero-stage 1"
            )
        if self.cuda_graphs and (not self.compile or self.checkpoint_activations or self.zero_stage > 1):
            raise ConfigError(
                "--engine.cuda-graphs goes neither with --engine.checkpoint-activations nor with ZeRO beyond stage 1 "
                f"(--engine.zero-stage {self.zero_stage}): leave one of the two out"
                if self.compile
                else "--engine.cuda-graphs records what --engine.compile makes: add that, or leave this out"
            )
        if self.compile and self.zero_stage == 3:
            raise ConfigError(
                "--engine.compile does not go with --engine.zero-stage 3, which gathers each weight in a hook that "
                "torch.compile runs as it is, after some minutes of trying; use stage 2, or leave --engine.compile out"
            )
        if self.zero_stage == 3 and self.precision == "bfloat16":
            raise ConfigError(
                "--engine.zero-stage 3 does not go on from a checkpoint to the same losses under bfloat16 autocast; "
                "use --engine.precision bfloat16-weights or float32, or stage 2"
            )
        if self.zero_stage == 0 and self.precision in MASTERS:
            raise ConfigError(
                f"--engine.precision {self.precision} needs float32 masters, which stage 0 keeps where no checkpoint "
                "finds them; use --engine.zero-stage 1, which on one rank takes the same memory"
            )


def check_device(config: EngineConfig, *, gpu: bool) -> None:
    """Refuse what this machine cannot do.

    Raises:
        ConfigError: Why.
    """
    if config.precision == "float16" and not gpu:
        raise ConfigError(
            "--engine.precision float16 needs a GPU, and DeepSpeed refuses it on a CPU; use bfloat16-weights or float32"
        )


def deepspeed_settings(config: EngineConfig, *, micro_batch_size: int, clip_norm: float | None) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an engine.

    Raises:
        ConfigError: `config.extra` cannot be read, or sets what is set here.
    """
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision == "bfloat16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # Its meter of throughput waits for the device before each forward and after each backward pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if config.precision == "bfloat16-weights":
        # Without the check a gradient that is not finite would be applied.
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if config.precision == "float16":
        ours["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": round(math.log2(config.loss_scale)),
            "loss_scale_window": config.loss_scale_window,
            "hysteresis": 1,
            "min_loss_scale": 1,
        }
    if config.offload:
        ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        # Its own AdamW for the host is compiled when it is first used; torch's fused one needs no compiler.
        ours["zero_force_ds_cpu_optimizer"] = False
    return _merge(ours, read_extra(config), config.extra)


def read_extra(config: EngineConfig) -> dict[str, Any]:
    """Return the content of --engine.extra, empty without one.

    Raises:
        ConfigError: It cannot be read, or has a key that is not for it.
    """
    if config.extra is None:
        return {}
    content = settings.read_json(config.extra)
    if not isinstance(content, dict):
        raise ConfigError(f"--engine.extra {config.extra} must hold a JSON object, as DeepSpeed's configuration is")
    for key in OURS:
        if key in content:
            raise ConfigError(f"--engine.extra {config.extra} sets {key!r}, which ecgfm decides; remove it")
    return content


def _merge(ours: dict[str, Any], extra: dict[str, Any], source: Path | None, where: str = "") -> dict[str, Any]:
    """Return both, one within the other."""
    merged = dict(ours)
    for key, value in extra.items():
        name = f"{where}{key}"
        if isinstance(ours.get(key), dict) and isinstance(value, dict):
            merged[key] = _merge(ours[key], value, source, f"{name}.")
        elif key in ours:
            raise ConfigError(f"--engine.extra {source} sets {name!r}, which ecgfm sets itself; remove it")
        else:
            merged[key] = value
    return merged
