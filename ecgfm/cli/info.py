"""What `info` prints: contract, data, results, licence and limits of a published model."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.rule import Rule
from rich.table import Table

from ecgfm import config
from ecgfm.hub.info import Facts, read_facts

SECTIONS = ("Results", "Calibration", "Pretraining data", "Leakage", "Biases", "Intended use and limits", "Citation")
"""Of the card; the rest is in its README.md."""


def show(model: str, *, revision: str | None, as_json: bool) -> None:
    """Print the facts of a model.

    Raises:
        ContractError: There is none.
    """
    facts = read_facts(model, revision=revision)
    if as_json:
        print(json.dumps(config.to_dict(facts), indent=1))
        return
    console = Console()
    console.print(_table(facts))
    if not facts.sections:
        console.print("It has no card (README.md): data, results and licence are not stated.")
    for name in SECTIONS:
        if name in facts.sections:
            console.print(Rule(name, align="left"))
            console.print(Markdown(facts.sections[name]))


def _table(facts: Facts) -> Table:
    contract = facts.contract
    table = Table(title=f"{facts.kind} {facts.name}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    rows: list[tuple[str, Any]] = [
        ("revision", facts.revision),
        ("licence", facts.licence or "not stated"),
        ("architecture", facts.encoder.get("kind")),
        ("features", facts.encoder.get("width")),
        ("rate", f"{contract.rate_hz:g} Hz; recordings of other rates are resampled"),
        ("leads", f"{' '.join(contract.leads)}; in any order, III aVR aVL aVF may be left out"),
        ("unit", f"{contract.unit}; uV and V are converted"),
        ("window", f"{contract.window_samples / contract.rate_hz:g} s; longer recordings are several windows"),
        ("filter", f"high-pass {contract.highpass_hz:g} Hz" if contract.highpass_hz else "none"),
        ("scale", f"by {contract.scale}, clipped to +-{contract.clip:g}"),
        ("data", ", ".join(facts.datasets) or "not stated"),
    ]
    if facts.classifier:
        labels = list(facts.classifier.get("labels") or ())
        fitted = facts.classifier.get("calibration")
        rows += [
            ("kind", facts.classifier.get("kind")),
            (f"{len(labels)} labels", ", ".join(map(str, labels))),
            ("head", facts.classifier.get("head")),
            ("calibration", fitted.get("method") if isinstance(fitted, dict) else "none"),
        ]
    rows += [(f"{one.metric}, {one.task}", f"{one.value} on {one.data}") for one in facts.results]
    rows.append(("written by", f"ecgfm {facts.written_by}"))
    for name, value in rows:
        if value is not None:
            table.add_row(name, str(value))
    return table
