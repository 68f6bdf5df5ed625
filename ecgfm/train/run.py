"""The settings of a run, and what of them must stay as it was when a run is continued."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ecgfm import config
from ecgfm.data.mixture import parse_weights
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, objective_class
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.manifest import manifest_sha256
from ecgfm.train.alarms import Alarms
from ecgfm.train.engine_config import EngineConfig, read_extra
from ecgfm.train.optim import Optim


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and how much at a time."""

    shards: tuple[Path, ...] = ()
    """Folders that tools/convert.py wrote."""
    weights: tuple[str, ...] = ()
    """How often each database is drawn, as `name=weight`: mimic-iv-ecg=0.7 code-15=0.1. Every database among the shards
    needs one; those that are not there do not count. By default records are drawn evenly."""
    window_s: float = 10.0
    """Length of a window in seconds, cut at random from longer records."""
    batch_size: int = 64
    """Windows of an optimizer step, over all ranks and accumulated micro-batches."""
    scale: Literal["pooled", "database"] = "pooled"
    """Whose mean and standard deviation normalise a signal: those of all databases together, which are the published
    encoder's, so that it sees in use what it saw in training; or those of its own database, as the paper does."""
    clip: float = 5.0
    """Normalised values are clipped to plus and minus this."""
    exclude_flags: tuple[str, ...] = ("dead-lead", "implausible-amplitude")
    """Quality flags of the shards; records that have one are not read."""
    held_out: tuple[Path, ...] = ()
    """Shards of other databases that the run must not have seen, such as PTB-XL's for a later evaluation: it does not
    start when one of their test or validation records is among its own."""
    verify: bool = False
    """Compare every hash of the shards before starting; sizes are always compared."""

    def __post_init__(self) -> None:
        parse_weights(self.weights)
        if self.batch_size < 1 or not 0 < self.window_s < math.inf or not 0 < self.clip < math.inf:
            raise ConfigError("--data.batch-size, --data.window-s and --data.clip must be above 0")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pretraining run: encoder, objective, data, optimizer, engine."""

    encoder: Encoder.Config
    """The encoder that is trained."""
    objective: Objective.Config
    """What it is trained to do."""
    data: Data = field(default_factory=Data)
    """The shards and the batches."""
    optim: Optim = field(default_factory=Optim)
    """AdamW and its schedules."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Precision and how the work is spread."""
    alarms: Alarms = field(default_factory=Alarms)
    """When the run is not well: bad steps, collapse, spikes."""
    out: Path = Path()
    """Folder of the run: settings, checkpoints, metrics."""
    steps: int | None = None
    """Optimizer steps after which to stop; the schedules' end by default. More later goes on exactly."""
    seed: int = 0
    """Of everything random: weights, order, windows, masks."""
    resume: bool = True
    """Go on with the run in the folder, where there is one."""
    accept_change: tuple[str, ...] = ()
    """Settings that may differ from the run in the folder, by dotted name: optim.lr"""
    log_every: int = 10
    """Steps between two lines of metrics."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; one is always written at the end and on SIGTERM or Ctrl-C."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept, the newest ones."""
    dry_run: bool = False
    """Check everything, print the plan of the run (sizes, steps, epochs, disk), and write and train nothing."""
    ranks: int | None = None
    """Of --dry-run: processes to plan for, 1 by default. Those of a run are the launcher's to say."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.ranks is not None and (self.ranks < 1 or not self.dry_run):
            raise ConfigError(
                f"--ranks {self.ranks} must be at least 1, and is for --dry-run; a launcher sets it for a run"
            )
        if self.steps is not None and not 1 <= self.steps <= self.optim.schedule_steps:
            raise ConfigError(
                f"--steps {self.steps} must be 1 to --optim.schedule-steps {self.optim.schedule_steps}; "
                "make the schedules longer to train longer"
            )

    @property
    def last_step(self) -> int:
        """The step after which the run stops."""
        return self.optim.schedule_steps if self.steps is None else self.steps


# These say where, when and how often, and change no weight.
FREE = (
    "out",
    "steps",
    "resume",
    "accept_change",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "alarms",
    "dry_run",
    "ranks",
)
FREE_DATA = ("shards", "held_out", "verify")  # the shards' content stands for their place


def check_run(run: Run, window_samples: int) -> None:
    """Refuse settings that cannot work together, before anything is built.

    Raises:
        ConfigError: Which, and why.
    """
    if run.out == Path():
        raise ConfigError("--out is missing: give the folder of the run, such as --out runs/first")
    owner = objective_class(run.objective)
    assert isinstance(run.objective, owner.Config)
    owner.check(run.objective, run.encoder, window_samples)


def identity(run: Run) -> dict[str, Any]:
    """Return what decides a run's weights: all settings but the free ones, and the shards' content."""
    settings: dict[str, Any] = config.to_dict(run)
    kept = {name: value for name, value in settings.items() if name not in FREE}
    kept["data"] = {name: value for name, value in settings["data"].items() if name not in FREE_DATA}
    kept["engine"] = {name: value for name, value in settings["engine"].items() if name != "timeout_min"}
    kept["engine"]["extra"] = read_extra(run.engine)
    kept["data"]["content"] = [manifest_sha256(folder) for folder in run.data.shards]
    kept["data"]["splits"] = list(PRETRAINING_SPLITS)
    return kept


def check_same(before: dict[str, Any], now: dict[str, Any], run: Run) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        ConfigError: What differs, and how to accept it; or a name in `accept_change` that is no setting.
    """
    free = {name for name in run.accept_change if name.split(".")[0] in {field.name for field in fields(Run)}}
    unknown = [name for name in run.accept_change if name not in free]
    if unknown:
        raise ConfigError(f"--accept-change {unknown[0]}: there is no such setting")
    changed = {name: pair for name, pair in config.differences(before, now).items() if name not in free}
    if changed:
        listed = "; ".join(f"{name} was {old!r}, is now {new!r}" for name, (old, new) in changed.items())
        raise ConfigError(
            f"{run.out} holds a run with other settings: {listed}. Give another --out for a new run, or accept the "
            f"change with --accept-change {' '.join(changed)}"
        )
