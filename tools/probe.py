"""Probe an encoder's frozen features with logistic regressions, against an untrained encoder.

    python tools/probe.py ENCODER SHARDS --list-labels
    python tools/probe.py ENCODER SHARDS --label "ludb:Rhythm: Sinus rhythm" --out probe

Folds and bootstrap are by patient. --out gets probe.json and probe.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.labels import Labelled, read_labels, target
from ecgfm.eval.plots import plot_probe, save
from ecgfm.eval.probe import Result, embed_shards, probe, untrained
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.progress import RecordBar
from ecgfm.shards.manifest import manifest_sha256, write_json
from ecgfm.shards.reader import Shards


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Probe an encoder's frozen features."""

    encoder: tyro.conf.Positional[str]
    """Folder of an export, or owner/name on the Hub."""
    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCHEME:CODE"), tyro.conf.UseAppendAction] = ()
    """A label to probe; may be given several times."""
    list_labels: bool = False
    """List the labels that there are, and stop."""
    folds: int = 5
    """Folds of patients."""
    untrained: int = 3
    """Encoders with random weights to compare with; their AUROCs are averaged."""
    seed: int = 0
    """Of the folds, the bootstrap and the random weights."""
    device: str = "cpu"
    """Where the encoder runs, such as cuda."""
    out: Path | None = None
    """Folder for probe.json and probe.png."""

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= 100 or not 1 <= self.untrained <= 100:
            raise ConfigError("--folds must be 2 to 100 and --untrained 1 to 100")


def main() -> None:
    """Embed, probe every label, print the table, and write what was asked for."""
    settings = tyro.cli(Probe, description=__doc__)
    console = Console()
    shards = Shards(settings.shards)
    labelled = read_labels(shards)
    if settings.list_labels or not settings.label:
        console.print(_labels(labelled))
        if not settings.list_labels:
            raise ConfigError("--label is missing: give one or more of the above")
        return
    targets = [target(labelled, label, settings.folds) for label in settings.label]
    encoder = ECGEncoder.from_pretrained(settings.encoder, map_location=settings.device)
    encoders = {settings.encoder: encoder}
    for number in range(settings.untrained):
        encoders[f"random weights {number}"] = untrained(encoder, settings.seed + number)
    features = []
    for name, one in encoders.items():
        with RecordBar(f"features of {name}", console, keep=False) as bar:
            features.append(embed_shards(one, shards, bar.update))
    results = [
        probe(features[0], features[1:], one, folds=settings.folds, seed=settings.seed)
        for one in track(targets, "probes", console=console, transient=True)
    ]
    console.print(_table(results, settings))
    if settings.out:
        _write(settings, results, encoder, shards)
        console.print(f"wrote {settings.out / 'probe.json'} and {settings.out / 'probe.png'}", highlight=False)


def _write(settings: Probe, results: list[Result], encoder: ECGEncoder, shards: Shards) -> None:
    assert settings.out is not None
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {settings.out} cannot be made: {error.strerror}") from error
    content = {
        "encoder": settings.encoder,
        "encoder_sha256": weights_sha256(encoder),
        "shards": {str(folder): manifest_sha256(folder) for folder in settings.shards},
        "databases": sorted({manifest.database for manifest in shards.manifests}),
        "folds": settings.folds,
        "seed": settings.seed,
        "untrained": settings.untrained,
        "results": config.to_dict(results),
    }
    write_json(settings.out / "probe.json", content)
    save(plot_probe(results), settings.out / "probe.png")


def _labels(labelled: Labelled) -> Table:
    table = Table("label", "records", "patients", title=f"labels of {len(labelled.labels):,} records")
    for label, (records, patients) in labelled.counts().items():
        table.add_row(label, f"{records:,}", f"{patients:,}")
    return table


def _table(results: list[Result], settings: Probe) -> Table:
    table = Table(
        title=f"Linear probe of {settings.encoder}: AUROC and 95 % interval by patient, {settings.folds} folds",
        caption=f"untrained: random weights, mean of {settings.untrained}",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("label", min_width=14)
    for name in ("positive", "pretrained", "untrained", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        unknown = f"; {result.unknown:,} records say nothing in this scheme" if result.unknown else ""
        table.add_row(
            f"{result.label}\n[dim]{result.patients:,} patients{unknown}[/dim]",
            f"{result.positive:,}\nof {result.records:,}",
            _text(result.pretrained),
            _text(result.untrained),
            f"{result.difference.value:+.3f}\n{result.difference.low:+.3f} to {result.difference.high:+.3f}",
        )
    return table


def _text(figure: Interval) -> str:
    return f"{figure.value:.3f}\n{figure.low:.3f}-{figure.high:.3f}"


if __name__ == "__main__":
    config.run_command(main)
