"""The sections of a card that a run fills: signal contract, data, training, compute, leakage, biases, how to repeat it.

Each takes what `run.json`, `state.json` and `metrics.jsonl` hold. Facts that an older version did not write down are
said not to be stated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ecgfm import __version__
from ecgfm.signal.contract import SignalContract

PRIVATE = {"data": ("shards", "cache", "s3_command", "held_out"), "engine": ("extra",)}
"""Folders, addresses and commands of whoever trained; a card is for everybody."""
UNRECORDED = "Not recorded: the model was saved without its run."
NOT_STATED = "not stated"


def of_unknown_run() -> dict[str, str]:
    """Return the sections of a model that was saved without its run."""
    return {
        "data": UNRECORDED,
        "training": UNRECORDED,
        "compute": UNRECORDED,
        "leakage": "What it saw in pretraining is not recorded. Do not report a result on any public database as "
        "unseen.",
        "biases": f"{UNRECORDED} It inherits those of whatever it was trained on.",
        "reproduce": UNRECORDED,
    }


def of_run(run: Mapping[str, Any], state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the sections of a run, by their names in the template."""
    return {
        "data": _data(state["shards"]),
        "training": _training(run, state),
        "compute": _compute(run, state, metrics),
        "leakage": _leakage(run, state),
        "biases": _biases(state["shards"]),
        "reproduce": _reproduce(run, state),
    }


def contract(signal: SignalContract) -> str:
    """Return what the encoder makes of a signal."""
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
    text = table(("what", "value"), rows)
    if signal.scale == "record":  # the databases' own say nothing of what it sees
        return text
    scale = [
        (lead, f"{mean:.5f}", f"{std:.5f}")
        for lead, mean, std in zip(signal.leads, signal.mean_mv, signal.std_mv, strict=True)
    ]
    return text + "\n\n" + table(("lead", "mean in mV", "standard deviation in mV"), scale)


def _data(shards: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    notes = []
    for shard in shards:
        known = {name: str(shard.get(name) or NOT_STATED) for name in ("database", "title", "licence", "address")}
        version = f" {shard['version']}" if shard.get("version") else ""
        linked = known["address"].startswith("http")
        address = f"[{known['title']}]({known['address']})" if linked else known["title"]
        counts = (_count(shard.get(name)) for name in ("records", "patients"))
        rows.append((f"{known['database']}{version}", address, *counts, _refused(shard), known["licence"]))
        digest = f" Shards: manifest SHA-256 `{shard['manifest_sha256']}`." if shard.get("manifest_sha256") else ""
        notes.append(f"- {known['database']}: {shard.get('citation') or 'citation not stated'}.{digest}")
    head = ("database", "title", "records read", "patients", "refused by the conversion", "licence")
    return table(head, rows) + "\n\nPlease cite the databases too:\n\n" + "\n".join(notes)


def _refused(shard: Mapping[str, Any]) -> str:
    """Return how many records of how many the conversion left out, and why."""
    refused, seen = shard.get("refused"), shard.get("seen")
    if refused is None or seen is None:
        return NOT_STATED
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(refused.items(), key=lambda item: -item[1]))
    return f"{sum(refused.values()):,} of {seen:,}" + (f" ({why})" if why else "")


def _training(run: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    read = sum(shard.get("records") or 0 for shard in state["shards"])
    seen = int(state.get("records_seen", 0))
    rounds = f", {seen / read:.1f} times each record" if read else ""
    rows = [("steps", f"{state['step']:,}"), ("windows seen", f"{seen:,}{rounds}")]
    for part in ("objective", "data", "optim", "engine"):
        shown = {name: value for name, value in run.get(part, {}).items() if name not in PRIVATE.get(part, ())}
        rows += [(f"{part}.{name}", value) for name, value in flat(shown)]
    rows += [("seed", f"{run.get('seed', NOT_STATED)}")]
    rows += [(f"{name} version", version) for name, version in sorted(state.get("versions", {}).items())]
    metrics = [(name, number(value)) for name, value in state.get("last_metrics", {}).items()]
    text = table(("setting", "value"), rows)
    return text + "\n\nLast figures of the run:\n\n" + table(("figure", "value"), metrics) if metrics else text


def _compute(run: Mapping[str, Any], state: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return what training cost, from the speeds that were logged; a figure is that of the steps since the last one."""
    batch = run.get("data", {}).get("batch_size")
    seconds = flop = memory = 0.0
    before = 0
    for line in metrics:
        if not batch or not line.get("records_per_s"):
            continue
        took = (line["step"] - before) * batch / line["records_per_s"]
        before = line["step"]
        seconds += took
        flop += took * line.get("tflops", 0.0) * 1e12
        memory = max(memory, line.get("memory_gb", 0.0))
    engine = run.get("engine", {})
    rows = [
        ("time in training steps", _duration(seconds) if seconds else NOT_STATED),
        ("operations", f"{flop:.2e} floating-point, of the model's own" if flop else NOT_STATED),
        ("memory of a process, at most", f"{memory:.2f} GB" if memory else NOT_STATED),
        ("processes", str(state.get("world_size") or run.get("ranks") or NOT_STATED)),
        ("device", str(state.get("device") or NOT_STATED)),
        ("precision", str(engine.get("precision", NOT_STATED))),
    ]
    return table(("what", "value"), rows)


def _leakage(run: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    names = sorted({str(shard["database"]) for shard in state["shards"]})
    splits = state.get("identity", {}).get("data", {}).get("splits")
    which = (
        f"of their records those in the splits {' and '.join(map(str, splits))} (where a database publishes `val` and "
        "`test`, those were not read)"
        if splits
        else "all of their records"
    )
    what = "signals and labels" if run["objective"]["kind"] == "supervised" else "signals and no label"
    return (
        f"Pretraining read {what} of {', '.join(names)}, {which}. A result on recordings or patients among "
        "them is not a result on unseen data. Copies of a database inside another one count as seen."
    )


def _biases(shards: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for shard in shards:
        sex, ages = shard.get("sex"), shard.get("ages")
        rows.append((str(shard["database"]), _sex(sex, shard.get("kept")), _ages(ages), NOT_STATED))
    text = table(("database", "sex, of all converted records", "age in years", "recorders"), rows)
    return (
        f"{text}\n\nThe model inherits the ages, sexes, countries, recorders and diseases of these recordings, and may "
        "do worse for people who are rare among them. What the databases do not say of a person (origin, weight, "
        "medication) was not looked at. Results by sex and age are not stated unless they are above."
    )


def _sex(sex: Mapping[str, int] | None, kept: int | None) -> str:
    known = sum(sex.values()) if sex else 0
    if not sex or not known:
        return NOT_STATED
    parts = [f"{count / known:.0%} {name}" for name, count in sorted(sex.items())]
    if kept and kept > known:
        parts.append(f"{kept - known:,} unknown")
    return ", ".join(parts)


def _ages(ages: Mapping[str, int] | None) -> str:
    """Return median and the 5th and 95th percentile of counts by whole years."""
    total = sum(ages.values()) if ages else 0
    if not ages or not total:
        return NOT_STATED
    ordered = sorted((int(float(year)), count) for year, count in ages.items())

    def at(share: float) -> int:
        reached = 0
        for year, count in ordered:
            reached += count
            if reached >= share * total:
                return year
        return ordered[-1][0]

    return f"median {at(0.5)}, 90 % from {at(0.05)} to {at(0.95)}"


def _reproduce(run: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    # Boards and probes move no weight, and name accounts and folders.
    shown: dict[str, Any] = {name: value for name, value in run.items() if name not in ("monitor", "probe")}
    shown["out"] = PurePath(str(run.get("out", ""))).name
    for part, names in PRIVATE.items():
        shown[part] = {name: value for name, value in run.get(part, {}).items() if name not in names}
    # The databases' names tell what the folders held.
    shards = [str(shard["database"]) for shard in state["shards"]]
    shown["data"]["shards"] = shards
    recipe, which = state.get("recipe"), ""
    if not recipe:
        recipe = "RECIPE.py"
        which = f" with the recipe of `{run['objective']['kind']}` and `{run['encoder']['kind']}`"
    extra = ""
    if run.get("engine", {}).get("extra"):
        extra = " (DeepSpeed was given more settings, which are not here)"
    return "\n".join(
        [
            f"Convert the databases with `tools/convert.py`, save these settings{extra} as `run.json`, and run{which}",
            "",
            "```bash",
            f"deepspeed recipes/{recipe} --from run.json --data.shards {' '.join(shards)} --out runs/again",
            "```",
            "",
            f"The weights were written by ecgfm {__version__} from step {state['step']:,}.",
            "",
            "<details><summary>run.json</summary>",
            "",
            "```json",
            json.dumps(shown, indent=1, sort_keys=True),
            "```",
            "",
            "</details>",
        ]
    )


def fine_tuning(result: Mapping[str, Any]) -> str:
    """Return what a classifier learned from, and how, as `result.json` has it."""
    task, examples = result["task"], result.get("examples", {})
    settings = [
        ("task", f"{task['title']} ({task.get('source', NOT_STATED)})"),
        ("method", f"{result['method']}, head {result['head']}, from {result['init']} weights, seed {result['seed']}"),
        ("encoder's weights before", f"SHA-256 `{result['encoder'].get('sha256') or NOT_STATED}`"),
        ("left out", _counted(result.get("left_out", {}))),
        ("refused signals", f"{result['refused']['records']:,}" if "refused" in result else NOT_STATED),
        ("patients of two parts", "none" if result.get("splits_share_no_patient") else "may be, or are not known"),
        ("time", _duration(result["seconds"]) if result.get("seconds") else NOT_STATED),
        ("processes, device", f"{result.get('processes', NOT_STATED)}, {result.get('device', NOT_STATED)}"),
    ]
    data = [
        (str(shard["database"]), str(shard.get("licence") or NOT_STATED), str(shard.get("manifest_sha256", NOT_STATED)))
        for shard in result["shards"]
    ]
    parts = [
        (part, *(f"{counts.get(name, 0):,}" for name in ("records", "patients")), _counted(_without(counts)))
        for part, counts in examples.items()
    ]
    texts = [table(("what", "value"), settings), table(("database", "licence", "manifest SHA-256"), data)]
    if parts:
        texts.append(table(("part", "records", "patients", "of them with"), parts))
    return "\n\n".join(texts)


def _without(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: count for name, count in counts.items() if name not in ("records", "patients")}


def _counted(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{number(count)} {name}" for name, count in counts.items()) or "none"


def flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return settings as rows of words."""
    return [(name, number(value)) for name, value in settings.items()]


def number(value: Any) -> str:
    """Return a value as a word."""
    if isinstance(value, list | tuple):
        return " ".join(number(item) for item in value) or "none"
    if value is None:
        return "default"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _count(value: int | None) -> str:
    return NOT_STATED if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
