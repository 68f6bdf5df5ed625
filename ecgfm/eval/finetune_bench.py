"""What all runs of a command share: processes, records, their signals, the encoder before training.

Shapes: N records, C labels.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ecgfm.errors import ConfigError
from ecgfm.eval.finetune_config import Finetune
from ecgfm.eval.finetune_data import Crops, Signals
from ecgfm.eval.finetune_model import native_rate
from ecgfm.eval.splits import SPLITS, TRAIN
from ecgfm.eval.tasks.base import Examples, Task, task_of
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.export import export
from ecgfm.progress import RecordBar
from ecgfm.run_folder import RUN, checkpoints
from ecgfm.shards.manifest import manifest_sha256
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs of a command share."""

    accelerator: Any
    """Accelerate's, with one process or many."""
    console: Console
    """Of the first process; the others' are silent."""
    task: Task
    examples: Examples
    shards: Shards
    encoder: ECGEncoder
    """Before any training; each run copies it."""
    encoder_sha256: str
    signals: Signals
    places: dict[str, NDArray[np.int64]]
    """Places of each part among the examples, without those that the preprocessor refused."""
    content: tuple[str, ...]
    """Hashes of the shards' manifests."""

    @property
    def target_NC(self) -> NDArray[np.float64]:
        """Targets of all examples."""
        return self.examples.target_NC

    def crop_samples(self, settings: Finetune) -> int:
        """Return the samples of a crop.

        Raises:
            ConfigError: It is shorter than a patch.
        """
        make = self.encoder.preprocessor
        if settings.crop_s is not None and make.samples(settings.crop_s) < make.patch_samples:
            least = make.patch_samples / make.contract.rate_hz
            raise ConfigError(f"--crop-s {settings.crop_s:g} is shorter than the encoder's least window, {least:g} s")
        return make.window_samples(None if settings.crop_s is None else make.samples(settings.crop_s))

    def stride_samples(self, settings: Finetune) -> int | None:
        """Return the samples from one window to the next."""
        return None if settings.stride_s is None else self.encoder.preprocessor.samples(settings.stride_s)

    def crops(self, settings: Finetune) -> Crops:
        """Return what the training steps see."""
        place_N = self.places[TRAIN]
        return Crops(
            place_N,
            self.signals.samples_N[place_N],
            crop=self.crop_samples(settings),
            batch_size=settings.batch_size,
            seed=settings.seed,
        )

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes. All must call it."""
        total: Tensor = self.accelerator.reduce(values, reduction="sum")
        return total


def make_bench(settings: Finetune) -> Bench:
    """Read everything and prepare the signals. All processes must call it.

    Raises:
        ConfigError: The settings do not fit the shards, the task or the number of processes.
        ContractError: The encoder cannot be loaded.
        ShardError: The shards cannot be read.
    """
    precision = "bf16" if settings.precision == "bfloat16" else "no"
    # Without a GPU accelerate takes each process for the only one, unless it is told of the CPU.
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.accelerator.is_available())
    world = accelerator.num_processes
    if world != int(os.environ.get("WORLD_SIZE", "1")):
        raise ConfigError(
            f"the launcher started {os.environ['WORLD_SIZE']} processes, and accelerate sees {world}: is "
            "ACCELERATE_USE_CPU set, or LOCAL_RANK missing?"
        )
    if settings.batch_size % world:
        raise ConfigError(f"--batch-size {settings.batch_size} is no multiple of the {world} processes")
    console = Console(quiet=not accelerator.is_main_process)
    shards = Shards(settings.shards)
    task = task_of(settings.task)
    examples = task.examples(shards, settings.task)
    with accelerator.main_process_first():
        encoder = load_encoder(settings.encoder)
    if settings.input.native_rate:
        assert settings.input.rate_hz is not None
        encoder = native_rate(encoder, settings.input.rate_hz)
    signals = Signals(shards, examples.index_N, encoder.preprocessor, settings.input, settings.memory_gb)
    with RecordBar("prepare signals", console, keep=False) as bar:
        signals.prepare(bar.update)
    refused = np.isin(np.arange(len(examples.index_N)), list(signals.refused))
    places = {split: np.flatnonzero((examples.split_N == split) & ~refused) for split in SPLITS}
    for split, place in places.items():
        if not len(place):
            raise ConfigError(f"all records of the {split} part are refused; the first: {_first(signals)}")
    if signals.refused:
        console.print(f"left out {len(signals.refused)} records, the first: {_first(signals)}", highlight=False)
    return Bench(
        accelerator=accelerator,
        console=console,
        task=task,
        examples=examples,
        shards=shards,
        encoder=encoder,
        encoder_sha256=weights_sha256(encoder),
        signals=signals,
        places=places,
        content=tuple(manifest_sha256(folder) for folder in settings.shards),
    )


def load_encoder(where: str) -> ECGEncoder:
    """Return the encoder of an export, of the newest checkpoint of a run, or of the Hub.

    Raises:
        CheckpointError: It is a run without a whole checkpoint.
        ContractError: It is none of these, or damaged.
    """
    folder = Path(where)
    if (folder / RUN).is_file() and checkpoints(folder):
        with tempfile.TemporaryDirectory(prefix="ecgfm-") as temporary:
            return ECGEncoder.from_pretrained(export(folder, Path(temporary) / "encoder"))
    return ECGEncoder.from_pretrained(where)


def _first(signals: Signals) -> str:
    return next(iter(signals.refused.values()))
