"""Draw records of shards on ECG paper, 25 mm/s and 10 mm/mV.

    python tools/plot_record.py SHARDS --record NAME --out record.png --hidden
    python tools/plot_record.py shards/* --out page.pdf

One folder of shards makes one page, several make a page for each. --hidden shades blocks such as pretraining hides
from the encoder.
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
from ecgfm.eval.plots import plot_pages, record_title, save
from ecgfm.shards.reader import Shards

TOKEN_S = 0.05
MIN_BLOCK = 10


@dataclass(frozen=True, kw_only=True)
class PlotRecord:
    """Draw records on ECG paper."""

    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote; a record of each is drawn."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""
    record: str | None = None
    """Name of the record; the first one when left out."""
    start_s: float = 0.0
    """Second of a long recording whose segment is drawn."""
    hidden: bool = False
    """Shade blocks such as pretraining hides."""
    hidden_share: float = 0.8
    """Share of the time that is hidden."""
    seed: int = 0
    """Of the hidden blocks."""
    dpi: int | None = None
    """Dots per inch of a .png; 200, or 100 for several pages."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise ConfigError("give one or more folders of shards")
        if not 0.1 <= self.hidden_share <= 0.95:
            raise ConfigError(f"--hidden-share must be 0.1 to 0.95, got {self.hidden_share}")


def main() -> None:
    """Find the records and draw them."""
    settings = tyro.cli(PlotRecord, description=__doc__)
    samples = []
    for folder in settings.shards:
        shards = Shards([folder])
        samples.append(
            shards.sample(0 if settings.record is None else _find(shards, settings.record, settings.start_s))
        )
    seconds = min(sample.counts_LT.shape[1] / sample.rate_hz for sample in samples)
    blocks = _blocks(min(seconds, 10.0), settings) if settings.hidden else None
    figure = plot_pages([(record_title(sample), sample.signal_LT, sample.rate_hz) for sample in samples], blocks)
    save(figure, settings.out, dpi=settings.dpi or (200 if len(samples) == 1 else 100))
    print(settings.out)


def _find(shards: Shards, record: str, start_s: float) -> int:
    """Return the segment of a record that holds the second asked for."""
    members = [shard.members for manifest in shards.manifests for shard in manifest.shards]
    names = [name for member in members for name in member.record]
    if record not in names:
        near = difflib.get_close_matches(record, dict.fromkeys(names), n=3, cutoff=0.4) or names[:3]
        raise ConfigError(
            f"--record {record}: it is not among the {len(set(names))} records; there are {', '.join(near)}, ..."
        )
    found = [index for index, name in enumerate(names) if name == record]
    return max((index for index in found if shards.sample(index).start_s <= start_s), default=found[0])


def _blocks(seconds: float, settings: PlotRecord) -> list[tuple[float, float]]:
    """Return hidden blocks in seconds, drawn as in pretraining."""
    tokens = int(seconds / TOKEN_S)
    hidden = round(settings.hidden_share * tokens)
    draws = Draws(seed=settings.seed, step=0, rows=(0, 1), all_rows=1, device=torch.device("cpu"))
    mask = hide_blocks(draws, 1, tokens, hidden, min(MIN_BLOCK, hidden))[0].numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(float(first) * TOKEN_S, float(last) * TOKEN_S) for first, last in list(pairwise(edges))[::2]]


if __name__ == "__main__":
    config.run_command(main)
