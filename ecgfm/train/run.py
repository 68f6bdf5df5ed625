"""The settings of a run, and what of them must stay as it was when a run is continued."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ecgfm import config
from ecgfm.data.mixture import parse_weights
from ecgfm.data.places import Place, is_remote, settle
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, objective_class
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.manifest import manifest_sha256
from ecgfm.train.alarms import Alarms
from ecgfm.train.engine_config import FREE_ENGINE, EngineConfig, read_extra
from ecgfm.train.monitor import MonitorConfig, check_monitor
from ecgfm.train.optim import Optim
from ecgfm.train.probe_hook import ProbeConfig


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is read, and how much at a time."""

    shards: tuple[str, ...] = ()
    """Folders that tools/convert.py wrote, or where such folders are: https://host/path/, s3://bucket/prefix/,
    gs://bucket/prefix/, or a shell command that writes one file, `pipe:cat /path/{name}`. Settings are written down: a
    secret goes into an environment variable, https://host/path/?$TOKEN."""
    cache: Path | None = None
    """Fetch shards of elsewhere into this folder before the run, once a machine, and read them like local ones. Without
    it they are streamed, in another order, and each rank reads all of them."""
    stream: bool = False
    """Stream the shards of folders too: for file systems that are slow to read single records from."""
    stream_block: int = 8
    """Of streamed shards: how many are shuffled together. Two such blocks of each database are in memory, over all
    ranks of a machine together."""
    stream_readers: int = 4
    """Of streamed shards: how many a rank reads at once; each is in memory as a whole."""
    s3_command: str = "aws s3 cp --only-show-errors {url} -"
    """What writes an object of s3 to its standard output, such as `s5cmd cat {url}`."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """What to do about a record that turns out to be damaged or gone during the run: stop, or read another one instead
    and write it to skipped_records.jsonl."""
    max_skipped: float = 0.01
    """Of --data.on-corrupt skip: the share of windows above which the run stops all the same; 100 are always let
    pass."""
    check_records: bool = False
    """Compare the SHA-256 of every record that is read: about 70 microseconds for ten seconds, eight times the copy.
    Without it, a record of a folder is known to be damaged by its file's size and its header alone. Streamed records
    are always compared."""
    weights: tuple[str, ...] = ()
    """How often each database is drawn, as `name=weight`: mimic-iv-ecg=0.7 code-15=0.1. Every database among the shards
    needs one; those that are not there do not count. By default records are drawn evenly."""
    window_s: float = 10.0
    """Length of a window in seconds, cut at random from longer records."""
    batch_size: int = 64
    """Windows of an optimizer step, over all ranks and accumulated micro-batches."""
    scale: Literal["pooled", "database", "record"] = "pooled"
    """Whose mean and standard deviation normalise a signal, lead by lead: those of all databases together, which are
    the published encoder's, so that it sees in use what it saw in training; those of its own database, as the paper
    does; or its own, of the window alone (record), which the published encoder does too: amplitudes are lost."""
    clip: float = 5.0
    """Normalised values are clipped to plus and minus this."""
    exclude_flags: tuple[str, ...] = ("dead-lead", "implausible-amplitude")
    """Quality flags of the shards; records that have one are not read."""
    held_out: tuple[Path, ...] = ()
    """Shards of other databases that the run must not have seen, such as PTB-XL's for a later evaluation: it does not
    start when one of their test or validation records is among its own."""
    validation_share: float = 0.0
    """Share of the patients (of the records, where a database names no patients) that is not trained on, the same ones
    in every run, for val_loss. By default none is, so that a run trains on all that it is given. Records of a
    database's own `val` split are never trained on, and are validated on in any case."""
    validation_windows: int = 512
    """Windows of the records held out so that val_loss is the mean over; they stay in memory. 0 validates on none."""
    verify: bool = False
    """Compare every hash of the shards before starting; sizes are always compared."""

    def __post_init__(self) -> None:
        parse_weights(self.weights)
        if self.stream_block < 1 or self.stream_readers < 1 or not 0 <= self.max_skipped <= 1:
            raise ConfigError(
                "--data.stream-block and --data.stream-readers must be at least 1, --data.max-skipped 0 to 1"
            )
        if "{url}" not in self.s3_command:
            raise ConfigError(f"--data.s3-command {self.s3_command!r} must say {{url}} where the object's address goes")
        if self.streamed and self.verify:
            raise ConfigError(
                "--data.verify reads all shards before the run, and streamed ones are not here: leave it out (every "
                "record's hash is compared as it comes), or give --data.cache"
            )
        if self.batch_size < 1 or not 0 < self.window_s < math.inf or not 0 < self.clip < math.inf:
            raise ConfigError("--data.batch-size, --data.window-s and --data.clip must be above 0")
        if not 0 <= self.validation_share < 1 or self.validation_windows < 0:
            raise ConfigError(
                f"--data.validation-share must be 0 to below 1 and --data.validation-windows at least 0, got "
                f"{self.validation_share:g} and {self.validation_windows}"
            )

    @property
    def streamed(self) -> bool:
        """Whether shards are read as a whole."""
        return self.stream or (self.cache is None and any(is_remote(str(place)) for place in self.shards))


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
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Other boards that get the figures, such as Weights & Biases."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """A look at the features' quality during the run."""
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
    validate_every: int | None = None
    """Steps between two computations of val_loss; --checkpoint-every by default."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept, the newest ones."""
    keep_every: int | None = None
    """Checkpoints at multiples of this step are kept for ever as well; a multiple of --checkpoint-every."""
    dry_run: bool = False
    """Check everything, print the plan of the run (sizes, steps, epochs, disk), and write and train nothing."""
    ranks: int | None = None
    """Of --dry-run: processes to plan for, 1 by default. Those of a run are the launcher's to say."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.validate_every is not None and self.validate_every < 1:
            raise ConfigError(f"--validate-every must be at least 1, got {self.validate_every}")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.checkpoint_every):
            raise ConfigError(
                f"--keep-every {self.keep_every} must be a multiple of --checkpoint-every {self.checkpoint_every}: "
                "no other step has a checkpoint to keep"
            )
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
    "keep_every",
    "validate_every",
    "alarms",
    "monitor",
    "probe",
    "dry_run",
    "ranks",
)
# The shards' content stands for their place, and their order for how it comes about.
FREE_DATA = (
    "shards",
    "held_out",
    "validation_windows",
    "verify",
    "cache",
    "stream",
    "stream_block",
    "stream_readers",
    "s3_command",
    "on_corrupt",
    "max_skipped",
    "check_records",
)


def places(run: Run) -> tuple[Place, ...]:
    """Return where the run's shards are, with their manifests on this machine; a dry run leaves the cache alone.

    Raises:
        ConfigError: An address that cannot be read from.
        ShardError: A manifest cannot be had, or is damaged.
    """
    return settle(run.data.shards, None if run.dry_run else run.data.cache, run.data.s3_command)


def check_run(run: Run, window_samples: int, rate_hz: float) -> None:
    """Refuse settings that cannot work together, before anything is built.

    Raises:
        ConfigError: Which, and why.
    """
    if run.out == Path():
        raise ConfigError("--out is missing: give the folder of the run, such as --out runs/first")
    check_monitor(run.monitor)
    owner = objective_class(run.objective)
    assert isinstance(run.objective, owner.Config)
    check_window(run.encoder, window_samples)
    owner.check(run.objective, run.encoder, window_samples, rate_hz)


def identity(run: Run) -> dict[str, Any]:
    """Return what decides a run's weights: all settings but the free ones, and the shards' content."""
    settings: dict[str, Any] = config.to_dict(run)
    kept = {name: value for name, value in settings.items() if name not in FREE}
    kept["data"] = {name: value for name, value in settings["data"].items() if name not in FREE_DATA}
    kept["engine"] = {name: value for name, value in settings["engine"].items() if name not in FREE_ENGINE}
    kept["engine"]["extra"] = read_extra(run.engine)
    kept["data"]["content"] = [manifest_sha256(place.folder) for place in places(run)]
    if run.data.streamed:
        kept["data"]["streamed_in_blocks_of"] = run.data.stream_block
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
