"""The model card: what an encoder is, what it saw, how to load it, and what it must not be used for.

The text is `card_template.md`, filled from the run's settings and the checkpoint's facts. What is not
known is said to be unknown, never left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import Any

from ecgfm import __version__
from ecgfm.signal.contract import SignalContract

TEMPLATE = "card_template.md"
LICENCE = "apache-2.0"
PRIVATE = {"data": ("shards", "cache", "s3_command", "held_out"), "engine": ("extra",)}
"""Folders, addresses and commands of whoever trained; a card is for everybody."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an encoder comes from."""

    run: Mapping[str, Any]
    """The run's settings, as `run.json` has them."""
    state: Mapping[str, Any]
    """The checkpoint's facts, as `state.json` has them."""


def model_card(
    name: str,
    encoder: Mapping[str, Any],
    signal: SignalContract,
    parameters: int,
    provenance: Provenance | None = None,
    *,
    address: str | None = None,
    licence: str = LICENCE,
) -> str:
    """Return the text of README.md.

    Args:
        name: The title.
        encoder: The encoder's settings with their kind.
        signal: The signal contract.
        parameters: Their number.
        provenance: None when the encoder was saved without its run.
        address: What the example loads, a folder or `owner/name` on the Hub; the title when left out.
        licence: Of the weights, as the Hub spells licences.
    """
    kind = str(encoder["kind"])
    method = _method(provenance)
    millions = f"{parameters / 1e6:.2f} million"
    seconds = signal.window_samples / signal.rate_hz
    by = f", pretrained with {method}" if method else ""
    template = resources.files("ecgfm.hub").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(
        front_matter=_front_matter(kind, method, licence),
        name=name,
        address=address or name,
        summary=f"An encoder of 12-lead electrocardiograms: {kind}, {millions} parameters{by} on windows of "
        f"{seconds:g} s at {signal.rate_hz:g} Hz with [ecgfm](https://github.com/ecgfm/ecgfm).",
        width=encoder["width"],
        contract=_contract(signal),
        architecture=_table(("setting", "value"), [*_flat(encoder), ("parameters", f"{parameters:,}")]),
        data=_data(provenance),
        training=_training(provenance),
        leakage=_leakage(provenance),
        reproduce=_reproduce(provenance),
    )


def renamed(text: str, name: str) -> str:
    """Return a card whose title and example name another place to load from."""
    text = re.sub(r'ECGEncoder\.from_pretrained\("[^"\n]*"\)', lambda _: f'ECGEncoder.from_pretrained("{name}")', text)
    return re.sub(r"^# .*$", lambda _: f"# {name}", text, count=1, flags=re.MULTILINE)


def _front_matter(kind: str, method: str | None, licence: str) -> str:
    tags = ["ecg", "electrocardiogram", "12-lead", "foundation-model", kind, *([method] if method else [])]
    return "\n".join(
        [
            f"license: {licence}",
            "library_name: ecgfm",
            "pipeline_tag: feature-extraction",
            "tags:",
            *(f"- {json.dumps(tag)}" for tag in tags),
        ]
    )


def _contract(signal: SignalContract) -> str:
    seconds = signal.window_samples / signal.rate_hz
    own = ", both of the window itself" if signal.scale == "record" else ""
    rows = [
        ("rate", f"{signal.rate_hz:g} Hz"),
        ("leads", " ".join(signal.leads)),
        ("unit", signal.unit),
        ("filter", f"high-pass {signal.highpass_hz:g} Hz, zero phase" if signal.highpass_hz else "none"),
        (
            "normalisation",
            f"(signal - mean) / standard deviation per lead{own}, clipped to +-{signal.clip:g}",
        ),
        ("window", f"{signal.window_samples:,} samples, {seconds:g} s"),
    ]
    table = _table(("what", "value"), rows)
    if signal.scale == "record":  # the databases' own say nothing of what it sees
        return table
    scale = [
        (lead, f"{mean:.5f}", f"{std:.5f}")
        for lead, mean, std in zip(signal.leads, signal.mean_mv, signal.std_mv, strict=True)
    ]
    return table + "\n\n" + _table(("lead", "mean in mV", "standard deviation in mV"), scale)


def _data(provenance: Provenance | None) -> str:
    if provenance is None:
        return "Not recorded: this encoder was saved without its run."
    rows = []
    notes = []
    for shard in provenance.state["shards"]:
        known = {name: str(shard.get(name) or "not stated") for name in ("database", "title", "licence", "address")}
        version = f" {shard['version']}" if shard.get("version") else ""
        address = f"[{known['title']}]({known['address']})" if shard.get("address") else known["title"]
        counts = (
            f"{shard[name]:,}" if shard.get(name) is not None else "not stated" for name in ("records", "patients")
        )
        rows.append((f"{known['database']}{version}", address, *counts, known["licence"]))
        digest = f" Shards: manifest SHA-256 `{shard['manifest_sha256']}`." if shard.get("manifest_sha256") else ""
        notes.append(f"- {known['database']}: {shard.get('citation') or 'citation not stated'}.{digest}")
    head = ("database", "title", "records", "patients", "licence")
    return _table(head, rows) + "\n\nPlease cite the databases too:\n\n" + "\n".join(notes)


def _training(provenance: Provenance | None) -> str:
    if provenance is None:
        return "Not recorded."
    run, state = provenance.run, provenance.state
    read = sum(shard.get("records") or 0 for shard in state["shards"])
    seen = int(state.get("records_seen", 0))
    rounds = f", {seen / read:.1f} times each record" if read else ""
    rows = [("steps", f"{state['step']:,}"), ("windows seen", f"{seen:,}{rounds}")]
    for part in ("objective", "data", "optim", "engine"):
        shown = {name: value for name, value in run.get(part, {}).items() if name not in PRIVATE.get(part, ())}
        rows += [(f"{part}.{name}", value) for name, value in _flat(shown)]
    rows += [("seed", f"{run.get('seed', 'not stated')}")]
    rows += [(f"{name} version", version) for name, version in sorted(state.get("versions", {}).items())]
    metrics = [(name, _number(value)) for name, value in state.get("last_metrics", {}).items()]
    text = _table(("setting", "value"), rows)
    return text + "\n\nLast figures of the run:\n\n" + _table(("figure", "value"), metrics) if metrics else text


def _leakage(provenance: Provenance | None) -> str:
    if provenance is None:
        return "What it saw in pretraining is not recorded. Do not report a result on any public database as unseen."
    names = sorted({str(shard["database"]) for shard in provenance.state["shards"]})
    splits = provenance.state.get("identity", {}).get("data", {}).get("splits")
    which = (
        f"of their records those in the splits {' and '.join(map(str, splits))} (where a database publishes `val` and "
        "`test`, those were not read)"
        if splits
        else "all of their records"
    )
    return (
        f"Pretraining read the signals of {', '.join(names)}, {which}. A result on recordings or patients among "
        "them is not a result on unseen data. Copies of a database inside another one count as seen."
    )


def _reproduce(provenance: Provenance | None) -> str:
    if provenance is None:
        return "The run is not recorded."
    # Boards and probes move no weight, and name accounts and folders.
    run = {name: value for name, value in provenance.run.items() if name not in ("monitor", "probe")}
    run["out"] = PurePath(str(run.get("out", ""))).name
    for part, names in PRIVATE.items():
        run[part] = {name: value for name, value in run.get(part, {}).items() if name not in names}
    # The databases' names tell what the folders held.
    shards = [str(shard["database"]) for shard in provenance.state["shards"]]
    run["data"]["shards"] = shards
    recipe, which = provenance.state.get("recipe"), ""
    if not recipe:
        recipe = "RECIPE.py"
        which = f" with the recipe of `{run['objective']['kind']}` and `{run['encoder']['kind']}`"
    extra = ""
    if provenance.run.get("engine", {}).get("extra"):
        extra = " (DeepSpeed was given more settings, which are not here)"
    return "\n".join(
        [
            f"Convert the databases with `tools/convert.py`, save these settings{extra} as `run.json`, and run{which}",
            "",
            "```bash",
            f"deepspeed recipes/{recipe} --from run.json --data.shards {' '.join(shards)} --out runs/again",
            "```",
            "",
            f"The weights were written by ecgfm {__version__} from step {provenance.state['step']:,}.",
            "",
            "<details><summary>run.json</summary>",
            "",
            "```json",
            json.dumps(run, indent=1, sort_keys=True),
            "```",
            "",
            "</details>",
        ]
    )


def _method(provenance: Provenance | None) -> str | None:
    return str(provenance.run["objective"]["kind"]) if provenance else None


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _number(value)) for name, value in settings.items()]


def _number(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_number(item) for item in value)
    if value is None:
        return "default"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
