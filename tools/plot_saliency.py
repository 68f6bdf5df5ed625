"""Draw what in a recording an answer rests on, behind its twelve leads.

    python tools/plot_saliency.py runs/finetuned/classifier shards/ludb --record 33 --label "Sinus rhythm" --out map.png
    python tools/plot_saliency.py out/encoder shards/ludb --method rollout --out map.pdf

Grad-CAM needs a classifier; attention and rollout need a vision transformer. ecgfm/eval/saliency.py says what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.errors import ConfigError, ContractError
from ecgfm.eval.ecg_paper import plot_ecg
from ecgfm.eval.plots import save
from ecgfm.eval.records import find_record, record_title
from ecgfm.eval.saliency import Method, saliency
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class PlotSaliency:
    """Draw a recording with the map of a model behind it."""

    model: tyro.conf.Positional[str]
    """Folder of a classifier or of an encoder, or owner/name on the Hub."""
    shards: tyro.conf.Positional[Path]
    """Folder that tools/convert.py wrote."""
    out: Path
    """Picture to write; the ending says which kind, such as .png or .pdf."""
    record: str | None = None
    """Name of the record; the first one when left out."""
    start_s: float = 0.0
    """Second of a long recording whose segment is drawn."""
    label: str | None = None
    """Whose logit grad-cam explains; the highest by default."""
    method: Method | None = None
    """grad-cam by default, and of an encoder alone rollout."""
    device: str = "cpu"
    """Where the model runs, such as cuda."""
    dpi: int = 200
    """Dots per inch of a .png."""


def main() -> None:
    """Load, explain and draw."""
    settings = tyro.cli(PlotSaliency, description=__doc__)
    shards = Shards([settings.shards])
    sample = shards.sample(0 if settings.record is None else find_record(shards, settings.record, settings.start_s))
    map_ = saliency(
        _load(settings),
        sample.signal_LT,
        rate_hz=sample.rate_hz,
        leads=LEADS,
        unit="mV",
        label=settings.label,
        method=settings.method,
    )
    figure = plot_ecg(
        sample.signal_LT,
        sample.rate_hz,
        title=record_title(sample),
        weight_LT=map_.on(LEADS, sample.rate_hz, sample.counts_LT.shape[1]),
        weight_name=f"{map_.title}, low to high",
    )
    save(figure, settings.out, dpi=settings.dpi)
    print(f"{settings.out}: {map_.title}, {map_.words}")


def _load(settings: PlotSaliency) -> ECGClassifier | ECGEncoder:
    """Return the classifier, or the encoder where there is no classifier to be had."""
    try:
        return ECGClassifier.from_pretrained(settings.model, unfreeze="none", map_location=settings.device)
    except ConfigError as error:
        if settings.label is not None or settings.method in (None, "grad-cam"):
            raise ContractError(
                f"{settings.model} is an encoder without labels: give a classifier, or --method rollout without --label"
            ) from error
    return ECGEncoder.from_pretrained(settings.model, map_location=settings.device)


if __name__ == "__main__":
    config.run_command(main)
