"""Draw the features of shards in the plane, coloured by label: two principal components, or UMAP.

    python tools/plot_features.py ENCODER SHARDS --label "ludb:Rhythm" --out features.png
    python tools/plot_features.py ... --layout umap            # needs umap-learn

--label is a scheme, or a scheme and how its codes begin; a record with several such codes is shown under
all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.curve_plots import Layout, layout, require_layout
from ecgfm.eval.labels import Labelled, read_labels
from ecgfm.eval.plots import plot_features, save
from ecgfm.eval.probe import embed_shards
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.progress import RecordBar
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class PlotFeatures:
    """Draw the features of shards."""

    encoder: tyro.conf.Positional[str]
    """Folder of an export, or owner/name on the Hub."""
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    label: str
    """SCHEME, or SCHEME:BEGINNING of its codes."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""
    layout: Layout = "pca"
    """Principal components, or umap, whose axes and distances between groups mean nothing."""
    seed: int = 0
    """Of UMAP."""
    device: str = "cpu"
    """Where the encoder runs, such as cuda."""


def main() -> None:
    """Embed every record and draw it."""
    settings = tyro.cli(PlotFeatures, description=__doc__)
    require_layout(settings.layout)
    shards = Shards(settings.shards)
    colors = _labels(read_labels(shards), settings.label)
    encoder = ECGEncoder.from_pretrained(settings.encoder, map_location=settings.device)
    with RecordBar("features", Console(), keep=False) as bar:
        features = embed_shards(encoder, shards, bar.update)
    place_N2, axis_names = layout(features, settings.layout, seed=settings.seed)
    save(plot_features(place_N2, colors, axis_names), settings.out)
    print(settings.out)


def _labels(labelled: Labelled, label: str) -> list[str]:
    """Return what each record is coloured by."""
    scheme, _, start = label.partition(":")
    schemes = sorted({name for labels in labelled.labels for name in labels})
    if scheme not in schemes:
        raise ConfigError(
            f"--label {label}: no record has labels of {scheme!r}; there are {', '.join(schemes) or 'none'}"
        )
    found = [
        " + ".join(
            sorted(
                code.removeprefix(start).lstrip(": ") or code
                for code in labels.get(scheme, ())
                if code.startswith(start)
            )
        )
        for labels in labelled.labels
    ]
    if not any(found):
        raise ConfigError(f"--label {label}: no code of {scheme!r} begins with {start!r}")
    return [text or "none" for text in found]


if __name__ == "__main__":
    config.run_command(main)
