"""How many labels an encoder saves: fine-tune on shares of the labelled patients, pretrained and untrained.

    python tools/sweep_labels.py --encoder out/encoder --shards shards/ptb-xl --task ptb-xl --out runs/labels

All settings are those of recipes/finetune.py. Each share of --shares is drawn by patient, the smaller ones inside of
the larger; validation and test stay whole. The folder gets a run for each share and start, labels.json, labels.md and
labels.png. The same command goes on where it was stopped.

Phases that count epochs have fewer steps with fewer labels, those that count steps see each record more often: which
one is fair is the reader's to judge, so the table says the steps. Intervals are those of the bootstrap over patients;
with several seeds the value is their mean, and lowest and highest stand in the interval's place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.curve_plots import plot_label_efficiency
from ecgfm.eval.finetune import finetune
from ecgfm.eval.finetune_config import Finetune, command_line
from ecgfm.eval.finetune_result import SUMMARY
from ecgfm.eval.plots import save
from ecgfm.eval.predictions import RESULT
from ecgfm.shards.manifest import write_bytes, write_json

FIGURES = ("auc", "accuracy", "r2")
"""Of these the first that the task has is drawn."""


@dataclass(frozen=True, kw_only=True)
class Sweep(Finetune):
    """Fine-tuning on shares of the labels."""

    shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Shares of the training part's patients."""
    starts: tuple[str, ...] = field(default=("pretrained", "untrained"))
    """Weights to begin with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ConfigError(f"--shares must be above 0 up to 1, got {self.shares}")
        if not self.starts or not set(self.starts) <= {"pretrained", "untrained"}:
            raise ConfigError(f"--starts are pretrained and untrained, got {self.starts}")


def main() -> None:
    """Do all runs, and write what came of them."""
    settings = command_line(Sweep(), {}, sys.argv[1:])
    assert isinstance(settings, Sweep)
    if settings.lrs:
        raise ConfigError("--lrs: choose a rate with recipes/finetune.py, then sweep with it")
    rows = []
    for share in settings.shares:
        for start in settings.starts:
            one = plain(settings, share, start)
            finetune(one)
            rows.append({"share": share, "start": start, **read(one)})
    name = next((name for name in FIGURES if name in rows[0]["test"]), None)
    write_json(settings.out / "labels.json", {"figure": name, "rows": rows})
    text = table(rows)
    write_bytes(settings.out / "labels.md", text.encode())
    print(text)
    if name is not None:
        series: dict[str, list[tuple[int, Interval]]] = {}
        for row in rows:
            if name in row["test"]:
                series.setdefault(row["start"], []).append((row["records"], Interval(**row["test"][name])))
        save(plot_label_efficiency(series, figure_name=f"{name}, test part"), settings.out / "labels.png")


def plain(settings: Sweep, share: float, start: str) -> Finetune:
    """Return the settings of one share and start."""
    values = {name: getattr(settings, name) for name in Finetune.__dataclass_fields__}
    values["out"] = settings.out / f"share-{share:g}" / start
    values["task"] = replace(settings.task, label_share=share)
    values["init"] = start
    return Finetune(**values)


def read(settings: Finetune) -> dict[str, Any]:
    """Return records, patients, steps and test figures of a run."""
    if settings.seeds > 1:
        summary = config.read_json(settings.out / SUMMARY)
        result = config.read_json(settings.out / summary["runs"][0]["folder"] / RESULT)
        test = {}
        for name, each in summary["test"].items():
            low, high = min(each["values"]), max(each["values"])
            test[name] = {"value": each["mean"], "low": low, "high": high, "draws": settings.seeds}
    else:
        result = config.read_json(settings.out / RESULT)
        test = result["scores"]["test"]["macro"]
    train = result["examples"]["train"]
    return {
        "records": train["records"],
        "patients": train["patients"],
        "steps": result["selected"].get("steps", 0),
        "seeds": settings.seeds,
        "test": test,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    names = [name for name in ("auc", "average_precision", "f_max", "accuracy", "mae", "r2") if name in rows[0]["test"]]
    head = ["share", "start", "records", "patients", "steps", *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row['share']:g}", row["start"], *(f"{row[name]:,}" for name in ("records", "patients", "steps"))]
        for name in names:
            each = row["test"].get(name)
            cells.append(f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})" if each else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    config.run_command(main)
