"""Export a run's newest checkpoint as a folder that loads with ECGEncoder.from_pretrained.

python tools/export.py RUN OUT
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.hub.card import LICENCE
from ecgfm.hub.export import export

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a run's newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, as given to the recipe with --out."""
    out: tyro.conf.Positional[Path]
    """Folder to write; an earlier export there is replaced."""
    licence: str = LICENCE
    """Licence of the weights, for the model card, as the Hub spells it."""


def main() -> None:
    """Export, and say what there is."""
    settings = tyro.cli(Export, description=__doc__)
    out = export(settings.run, settings.out, licence=settings.licence, recipes=RECIPES)
    for path in sorted(out.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")
    print(f'load it with: ECGEncoder.from_pretrained("{out}")')


if __name__ == "__main__":
    config.run_command(main)
