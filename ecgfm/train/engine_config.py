"""How the work is spread over devices and in which precision, and what DeepSpeed is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ecgfm import config as settings
from ecgfm.errors import ConfigError

LONGEST = timedelta(days=1)
"""The longest --engine.timeout-min."""
OURS = ("train_batch_size", "optimizer", "scheduler", "fp16", "bf16", "bfloat16", "amp", "elasticity", "checkpoint")
"""Keys of DeepSpeed's configuration that --engine.extra may not have, besides those that are written here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is spread over devices, and in which precision."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 keeps all on every rank, 1 splits the optimizer's state, 2 the gradients too."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """bfloat16 is autocast over float32 weights."""
    accumulation: int = 1
    """Micro-batches whose gradients make one optimizer step."""
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
        if self.zero_stage == 3:
            why = "a target encoder's moving average needs whole weights on every rank, and stage 3 leaves none there"
            if self.precision == "bfloat16":
                why = f"under bfloat16 autocast it does not go on from a checkpoint to the same losses, and {why}"
            raise ConfigError(f"--engine.zero-stage 3 is not offered: {why}; use 2")


def deepspeed_settings(config: EngineConfig, *, micro_batch_size: int, clip_norm: float | None) -> dict[str, Any]:
    """Return the DeepSpeed configuration of an engine.

    Raises:
        ConfigError: `config.extra` cannot be read, or sets what is set here.
    """
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision == "bfloat16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
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
