"""Settings of fine-tuning and of probes, and the published schedules.

A run is one or more phases, each with an optimizer of its own: `frozen` trains the head alone; `gradual` unfreezes one
more group of layers each time it is repeated; `full` trains everything. Which of them there are is the method:

| method | phases |
|---|---|
| probe | frozen |
| direct | full |
| after-probe | frozen, full |
| gradual | frozen, gradual once for each group of layers but the last, full |

A phase begins with the weights that have validated best so far, and the run ends with them (`keep="last"`: with the
last ones). The test part is looked at once, by what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Task, load_task
from ecgfm.leads import LEADS, canonical_name
from ecgfm.schedules import cosine, linear, warmup_cosine

Method = Literal["probe", "direct", "after-probe", "gradual"]
LEAD_SETS: dict[int, tuple[str, ...]] = {
    12: LEADS,
    6: ("I", "II", "III", "aVR", "aVL", "aVF"),
    3: ("I", "II", "V2"),
    2: ("I", "II"),
    1: ("I",),
}
"""Leads by their number; down to two they are those of the PhysioNet/CinC Challenge 2021."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps with one set of trained weights, one optimizer and one schedule."""

    steps: int | None = None
    """Optimizer steps; either these or epochs."""
    epochs: float | None = None
    """Passes through the training part."""
    lr: float = 1e-3
    """Highest learning rate of the head."""
    final_lr: float = 0.0
    """Where a cosine ends."""
    warmup_steps: int = 0
    """Steps of a linear rise to lr, of constant and cosine."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """What the rate does after the rise. one-cycle (Smith 2018, as in fastai 1): up by a cosine from lr / 25 within the
    first 30 %, down to lr / 250,000, while AdamW's first beta goes from 0.95 to 0.85 and back."""
    weight_decay: float = 0.0
    """AdamW's, of matrices and convolutions alone; with 0 it is Adam."""
    second_beta: float = 0.999
    """AdamW's; the first is 0.9 but for one-cycle."""
    dropout: float = 0.0
    """In the head."""
    first_layer_share: float = 1.0
    """Learning rate of the encoder's first layers over the head's; those between fall geometrically."""
    patience: int | None = None
    """Steps without a better validation after which the phase ends."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(
                f"a phase has either steps or epochs, got steps {self.steps} and epochs {self.epochs}; set the other "
                "to None, such as --full.steps None --full.epochs 10"
            )
        if (self.steps is not None and self.steps < 1) or (self.epochs is not None and not 0 < self.epochs < math.inf):
            raise ConfigError(f"a phase needs at least one step, got steps {self.steps}, epochs {self.epochs}")
        if not 0 < self.lr < math.inf or not 0 <= self.final_lr <= self.lr or not 0 < self.first_layer_share <= 1:
            raise ConfigError(
                f"lr {self.lr:g} must be above 0, final_lr {self.final_lr:g} 0 to lr, first_layer_share "
                f"{self.first_layer_share:g} above 0 up to 1"
            )
        if self.warmup_steps < 0 or self.weight_decay < 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps} and weight_decay {self.weight_decay:g} must be 0 or more, dropout "
                f"{self.dropout:g} 0 to below 1"
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least one step, got {self.patience}")

    def num_steps(self, records: int, batch_size: int) -> int:
        """Return the phase's steps over a training part of so many records."""
        return self.steps if self.steps is not None else max(1, math.ceil((self.epochs or 0) * records / batch_size))

    def rate(self, step: int, steps: int) -> float:
        """Return the head's learning rate at `step`, of `steps`."""
        if self.schedule == "one-cycle":
            up = int(steps * ONE_CYCLE_UP)
            if step < up:
                return cosine(step, up, self.lr / 25, self.lr)
            return cosine(step - up, steps - up, self.lr, self.lr / 250_000)
        if self.schedule == "cosine":
            return warmup_cosine(step, steps, self.warmup_steps, 0.0, self.lr, self.final_lr)
        return linear(step, self.warmup_steps, 0.0, self.lr) if step < self.warmup_steps else self.lr

    def first_beta(self, step: int, steps: int) -> float:
        """Return AdamW's first beta at `step`, of `steps`."""
        if self.schedule != "one-cycle":
            return 0.9
        up = int(steps * ONE_CYCLE_UP)
        return cosine(step, up, 0.95, 0.85) if step < up else cosine(step - up, steps - up, 0.85, 0.95)


ONE_CYCLE_UP = 0.3
"""Share of a one-cycle phase in which the rate rises."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the encoder is given in place of the signal; of studies only, a published classifier has none of it."""

    rate_hz: float | None = None
    """Lower the sampling rate to this, such as 250, 100 or 50. The encoder is given the signal at its own rate again,
    without what the lower rate lost."""
    native_rate: bool = False
    """Give the encoder the lower rate itself, with windows of as many seconds: of --init untrained only."""
    spectrum: Literal["none", "absolute", "real", "imaginary"] = "none"
    """Discrete Fourier transform of each lead of a normalised window, divided by the root of its length; all T values,
    of which the second half mirrors the first."""
    leads: tuple[str, ...] = ()
    """Leads to keep, by name, or one number: 12, 6 (limb leads), 3 (I II V2), 2 (I II), 1 (I). The others are set to
    zero after normalisation, which is their mean in pretraining. All by default."""

    def __post_init__(self) -> None:
        if self.rate_hz is not None and not 0 < self.rate_hz < math.inf:
            raise ConfigError(f"--input.rate-hz must be above 0, got {self.rate_hz}")
        if self.native_rate and self.rate_hz is None:
            raise ConfigError("--input.native-rate needs --input.rate-hz, the rate that the encoder is to be given")
        self.kept()

    def kept(self) -> tuple[str, ...]:
        """Return the leads that are kept, in the usual order.

        Raises:
            ConfigError: A name or number that there is not.
        """
        if not self.leads:
            return LEADS
        if len(self.leads) == 1 and self.leads[0].isdigit():
            if int(self.leads[0]) not in LEAD_SETS:
                raise ConfigError(
                    f"--input.leads {self.leads[0]}: sets of leads are {', '.join(map(str, LEAD_SETS))}; or give names"
                )
            return LEAD_SETS[int(self.leads[0])]
        names = {canonical_name(lead) for lead in self.leads}
        if None in names:
            unknown = next(lead for lead in self.leads if canonical_name(lead) is None)
            raise ConfigError(f"--input.leads {unknown}: the leads are {' '.join(LEADS)}, or a number of them")
        return tuple(lead for lead in LEADS if lead in names)

    def plain(self) -> bool:
        """Tell whether the encoder is given what a published classifier would give it."""
        return (self.rate_hz is None or self.native_rate) and self.spectrum == "none" and self.kept() == LEADS


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """An encoder, a head and a task: how they are trained and what is written."""

    encoder: str = ""
    """Folder of an export or of a pretraining run, or owner/name on the Hub."""
    shards: tuple[Path, ...] = ()
    """Folders that tools/convert.py wrote."""
    task: Task.Config = field(default_factory=Task.Config)
    """What is asked: --task NAME chooses, --task.SETTING changes it."""
    method: Method = "after-probe"
    """Which phases there are: probe (frozen), direct (full), after-probe (frozen, full), gradual (frozen, gradual for
    each group of layers, full)."""
    head: Literal["linear", "attentive", "mlp2", "concat", "knn"] = "linear"
    """What stands on the encoder; knn, of --method probe only, asks the nearest training records and trains nothing."""
    hidden: int | None = None
    """Width of the hidden layer of mlp2 (256 by default) and concat (128)."""
    frozen: Phase = field(default_factory=lambda: Phase(steps=500, weight_decay=0.1))
    """The head alone."""
    gradual: Phase = field(default_factory=lambda: Phase(steps=200, lr=1e-4, first_layer_share=0.1))
    """Of --method gradual: once for each group of layers."""
    full: Phase = field(
        default_factory=lambda: Phase(steps=1000, lr=1e-4, final_lr=1e-6, warmup_steps=100, schedule="cosine")
    )
    """Everything."""
    groups: int | None = None
    """Join the encoder's layers to so many groups at the most; by default each block is one."""
    init: Literal["pretrained", "untrained"] = "pretrained"
    """untrained: the same encoder with random weights. With --method probe it is the control of the features, with
    --method direct the supervised training from scratch."""
    input: Input = field(default_factory=Input)
    """What the encoder is given; for studies."""
    crop_s: float | None = None
    """Seconds of the random crop of a record in training, and of the windows at prediction; the signal contract's
    window by default."""
    stride_s: float | None = None
    """Seconds from one window to the next at prediction; by default as few windows as cover the record."""
    aggregate: Literal["mean", "max"] = "mean"
    """What of the logits of a record's windows is the record's, label by label. Of independent labels the largest logit
    has the largest probability."""
    batch_size: int = 64
    """Crops of an optimizer step, over all processes."""
    clip_norm: float | None = 1.0
    """Longest gradient; longer ones are scaled to it."""
    select: Literal["auc", "average_precision", "accuracy", "f_max", "loss", "mae", "rmse", "r2"] | None = None
    """Figure of the validation part that decides which weights are best: macro AUC, of a regression mae, by default."""
    keep: Literal["best", "last"] = "best"
    """Which weights a phase hands on, and the run ends with."""
    validate_every: int = 50
    """Steps between two validations; a phase's last step always has one."""
    calibration: Literal["none", "platt", "temperature", "isotonic"] = "none"
    """Fitted on the validation part, saved with the classifier."""
    knn_neighbours: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Of --head knn: numbers of neighbours, of which the validation part chooses."""
    knn_temperature: float = 0.07
    """Of --head knn: a neighbour counts exp(cosine / temperature)."""
    lrs: tuple[float, ...] = ()
    """Learning rates of the last phase, each of which is tried; validation chooses. Its own one by default."""
    seed: int = 0
    """Of everything random: head, order, crops, dropout, untrained weights. Not of the task's parts: --task.seed."""
    seeds: int = 1
    """Runs with consecutive seeds, each in a folder of its own, and a summary."""
    predict_training: bool = True
    """Predict the training part too, for predictions.npz; no figure is of it."""
    draws: int = 1000
    """Of the bootstrap of the intervals."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast; weights stay float32."""
    memory_gb: float = 8.0
    """Memory of a process for prepared signals, and as much for what a frozen encoder gave; what does not fit is
    computed again."""
    out: Path = Path()
    """Folder of the run: settings, metrics, checkpoints, classifier, predictions, result."""
    resume: bool = True
    """Go on with the run in the folder, where there is one."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; one is always written at the end of a phase and when the run is told to stop."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "validate_every", "seeds", "draws", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("crop_s", "stride_s", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")
        if self.head == "knn" and self.method != "probe":
            raise ConfigError("--head knn trains nothing: it goes with --method probe only")
        if not self.knn_neighbours or min(self.knn_neighbours) < 1 or not self.knn_temperature > 0:
            raise ConfigError("--knn-neighbours must be 1 or more each, and --knn-temperature above 0")
        if self.input.native_rate and self.init != "untrained":
            raise ConfigError(
                "--input.native-rate gives the encoder another rate than it was pretrained at: give --init untrained, "
                "or leave it out, and the signal comes back to the encoder's rate"
            )
        if not all(0 < lr < math.inf for lr in self.lrs) or len(set(self.lrs)) != len(self.lrs):
            raise ConfigError(f"--lrs must be different rates above 0, got {self.lrs}")
        if self.memory_gb < 0:
            raise ConfigError(f"--memory-gb must be 0 or more, got {self.memory_gb}")


# These say where, when and how often, and change no weight and no figure.
FREE = (
    "encoder",
    "shards",
    "out",
    "resume",
    "seeds",
    "lrs",
    "log_every",
    "checkpoint_every",
    "memory_gb",
    "draws",
    "predict_training",
)


def require_told(settings: Finetune) -> None:
    """Refuse settings in which something is missing that has no default.

    Raises:
        ConfigError: Which.
    """
    for flag, given, example in (
        ("--encoder", settings.encoder, "--encoder out/encoder"),
        ("--shards", settings.shards, "--shards shards/ptb-xl"),
        ("--task", type(settings.task) is not Task.Config, "--task ptb-xl"),
        ("--out", settings.out != Path(), "--out runs/finetuned"),
    ):
        if not given:
            raise ConfigError(f"{flag} is missing: give it, such as {example}")


def command_line(default: Finetune, presets: Mapping[str, Finetune], args: Sequence[str]) -> Finetune:
    """Return settings from the words of a command line; `--task NAME` decides which --task.SETTINGs there are."""
    words, task = list(args), None
    for place, word in enumerate(words):
        if word == "--task" and place + 1 < len(words):
            task, words = words[place + 1], words[:place] + words[place + 2 :]
            break
        if word.startswith("--task="):
            task, words = word[len("--task=") :], words[:place] + words[place + 1 :]
            break
    if task is not None:
        chosen = type(load_task(task)).Config()
        default = replace(default, task=chosen)
        presets = {name: replace(preset, task=chosen) for name, preset in presets.items()}
    return config.cli(default, presets=presets, args=words)
