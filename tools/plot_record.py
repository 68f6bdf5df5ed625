"""Draw a record of shards on ECG paper, 25 mm/s and 10 mm/mV.

    python tools/plot_ecg.py SHARDS --record NAME --out record.png --hidden

--hidden shades blocks such as pretraining hides from the encoder.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import tyro

from ecgfm import config
from ecgfm.data.batch import Draws
from ecgfm.data.masks import hide_blocks
from ecgfm.errors import ConfigError
from ecgfm.eval.plots import plot_ecg, save
from ecgfm.shards.reader import Sample, Shards

TOKEN_S = 0.05
MIN_BLOCK = 10


@dataclass(frozen=True, kw_only=True)
class PlotECG:
    """Draw a record on ECG paper."""

    shards: tyro.conf.Positional[Path]
    """Folder that tools/convert.py wrote."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""
    record: str | None = None
    """Name of the record; the first one when left out."""
    hidden: bool = False
    """Shade blocks such as pretraining hides."""
    hidden_share: float = 0.8
    """Share of the time that is hidden."""
    seed: int = 0
    """Of the hidden blocks."""
    dpi: int = 200
    """Dots per inch of a .png."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.hidden_share <= 0.95:
            raise ConfigError(f"--hidden-share must be 0.1 to 0.95, got {self.hidden_share}")


def main() -> None:
    """Find the record and draw it."""
    settings = tyro.cli(PlotECG, description=__doc__)
    shards = Shards([settings.shards])
    sample = shards.sample(0 if settings.record is None else _find(shards, settings.record))
    seconds = sample.counts_LT.shape[1] / sample.rate_hz
    blocks = _blocks(min(seconds, 10.0), settings) if settings.hidden else None
    figure = plot_ecg(sample.signal_LT, sample.rate_hz, title=_title(sample), hidden=blocks)
    save(figure, settings.out, dpi=settings.dpi)
    print(settings.out)


def _find(shards: Shards, record: str) -> int:
    names = [str(shards.about(index)["record"]) for index in range(len(shards))]
    if record not in names:
        near = difflib.get_close_matches(record, names, n=3, cutoff=0.4) or names[:3]
        raise ConfigError(
            f"--record {record}: it is not among the {len(names)} records; there are {', '.join(near)}, ..."
        )
    return names.index(record)


def _title(sample: Sample) -> str:
    person = [f"{sample.age:g} years" if sample.age is not None else "", sample.sex or ""]
    codes = [code for codes in sample.labels.values() for code in codes]
    parts = [f"{sample.database} {sample.record}", ", ".join(filter(None, person)), "; ".join(codes)]
    text = "   ".join(filter(None, parts))
    return text if len(text) <= 130 else text[:127] + "..."


def _blocks(seconds: float, settings: PlotECG) -> list[tuple[float, float]]:
    """Return hidden blocks in seconds, drawn as in pretraining."""
    tokens = int(seconds / TOKEN_S)
    hidden = round(settings.hidden_share * tokens)
    draws = Draws(seed=settings.seed, step=0, micro=0, rows=(0, 1), all_rows=1, device=torch.device("cpu"))
    mask = hide_blocks(draws, 1, tokens, hidden, min(MIN_BLOCK, hidden))[0].numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(float(first) * TOKEN_S, float(last) * TOKEN_S) for first, last in list(pairwise(edges))[::2]]


if __name__ == "__main__":
    config.run_command(main)
