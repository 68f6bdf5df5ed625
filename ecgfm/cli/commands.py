"""Use published models of the 12-lead electrocardiogram on files.

ecgfm embed ward3 "ward4/**/*.edf" --encoder ID --out features.parquet

ecgfm predict e0001.npy --rate-hz 500 --leads I,II,V1,V2,V3,V4,V5,V6 --unit mV --classifier ID --out p.csv

ecgfm info ID
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ecgfm.errors import ConfigError
from ecgfm.files.base import Axes, Told


@dataclass(frozen=True, kw_only=True)
class OverFiles:
    """Which files, what is told of them, where to write."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES")]
    """Files, folders (all that is in them, at any depth) and patterns: WFDB by its header, .npy, .npz, .mat, .h5,
    .hdf5, .edf, .bdf, DICOM."""
    out: Path
    """Table to write: .parquet, .csv or .npz. What is refused is listed beside it, in OUT.refused.jsonl."""
    rate_hz: float | None = None
    """Samples per second; this, leads and unit only of arrays (.npy, .npz, .mat, .h5), whose files do not say it."""
    leads: str | None = None
    """Lead names in the order of the array, such as I,II,V1,V2,V3,V4,V5,V6."""
    unit: str | None = None
    """mV, uV, V, or counts."""
    microvolt_per_count: float | None = None
    """How much one count is, of the unit counts."""
    axes: Axes = "leads,samples"
    """Of an array; those of several recordings have these last."""
    variable: str | None = None
    """Name of the array in an .npz, .mat or .h5; not needed where only one fits the leads."""
    max_gap_s: float = 0.1
    """Missing samples are filled by a straight line up to so many seconds; longer gaps are refused."""
    batch_size: int = 64
    """Windows that the model takes at a time."""
    device: str = "cpu"
    """Where it computes, such as cuda."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    strict: bool = False
    """End with status 1 if any file was refused, not only if all were."""
    overwrite: bool = False
    """Replace what --out names."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("FILES is missing: give files, folders or patterns")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be 1 or more, got {self.batch_size}")
        if not self.max_gap_s >= 0:
            raise ConfigError(f"--max-gap-s must be 0 or more, got {self.max_gap_s}")

    def told(self) -> Told:
        """Return what is told of the files."""
        return Told(
            rate_hz=self.rate_hz,
            leads=None if self.leads is None else tuple(self.leads.replace(",", " ").split()),
            unit=self.unit,
            microvolt_per_count=self.microvolt_per_count,
            axes=self.axes,
            variable=self.variable,
        )


@dataclass(frozen=True, kw_only=True)
class Embed(OverFiles):
    """Features of recordings: a row for each, with its file and record."""

    encoder: str
    """Folder, or owner/name on the Hub."""


@dataclass(frozen=True, kw_only=True)
class Predict(OverFiles):
    """Probabilities of recordings, a column for each label; of a regression its values."""

    classifier: str
    """Folder, or owner/name on the Hub."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a published model is: signal contract, data, results, licence. No weights are downloaded."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ID")]
    """Folder, or owner/name on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    json: bool = False
    """Print it for programs."""


def run() -> None:
    """Read the command line and do what it says."""
    settings = tyro.extras.subcommand_cli_from_dict(
        {"embed": Embed, "predict": Predict, "info": Info}, prog="ecgfm", description=__doc__
    )
    # torch takes seconds to import, and --help needs none.
    if isinstance(settings, Info):
        from ecgfm.cli.info import show

        show(settings.model, revision=settings.revision, as_json=settings.json)
        return
    from ecgfm.cli.models import embed, predict

    if isinstance(settings, Embed):
        embed(settings)
    elif isinstance(settings, Predict):
        predict(settings)
