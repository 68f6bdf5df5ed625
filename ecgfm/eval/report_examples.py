"""Recordings that a report shows: what the model is surest of, rightly and wrongly, with what the answer rests on.

Shapes: N records, C labels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.transforms import Bbox

from ecgfm.errors import ConfigError, SignalError
from ecgfm.eval.ecg_paper import MM_PER_INCH, PAPER_MM, plot_ecg
from ecgfm.eval.predictions import Predictions
from ecgfm.eval.saliency import Method, Saliency, saliency
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.leads import LEADS
from ecgfm.shards.manifest import manifest_sha256
from ecgfm.shards.reader import Sample, Shards

What = Literal["right", "false positive", "false negative", "nearest", "farthest"]
DPI = 110


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A record and why it is shown."""

    row: int
    column: int
    what: What


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture with its words."""

    heading: str
    caption: str
    data: str
    """The picture, as a data: address."""


def choose(model: Predictions, rows_N: Sequence[int], number: int) -> list[Chosen]:
    """Return up to `number` records of the test part, no record twice.

    Half of them are the surest right answers, of the most frequent labels first; then the surest false positive, the
    surest false negative, and so on in turn. Of a regression, the nearest and the farthest in turn.
    """
    rows = np.asarray(rows_N, dtype=np.int64)
    target, probability = model.target_NC[rows], model.probability_NC[rows]
    if model.kind == "regression":
        far = np.abs(probability - target)
        order = [(int(place) // far.shape[1], int(place) % far.shape[1]) for place in np.argsort(far, axis=None)]
        order = [place for place in order if not np.isnan(far[place])]
        lists: dict[What, list[tuple[int, int]]] = {"nearest": order, "farthest": order[::-1]}
        turns: list[What] = ["farthest", "nearest"]
        return _take(rows, lists, [turns[place % 2] for place in range(number)])
    given = probability >= (0.5 if model.thresholds_C is None else model.thresholds_C)
    if model.kind == "multiclass":
        given = np.eye(target.shape[1], dtype=bool)[probability.argmax(axis=1)]
    frequent = np.argsort(-(target == 1).sum(axis=0), kind="stable")
    best = {
        c: sorted(np.flatnonzero(given[:, c] & (target[:, c] == 1)), key=lambda r: -probability[r, c]) for c in frequent
    }
    deepest = max((len(found) for found in best.values()), default=0)
    right = [(int(best[c][at]), int(c)) for at in range(deepest) for c in frequent if at < len(best[c])]
    wrong = {
        name: sorted(
            ((int(r), int(c)) for r, c in np.argwhere(mask)), key=lambda place: sign * float(probability[place])
        )
        for name, mask, sign in (
            ("false positive", given & (target == 0), -1),
            ("false negative", ~given & (target == 1), 1),
        )
    }
    lists = {"right": right, "false positive": wrong["false positive"], "false negative": wrong["false negative"]}
    faults: list[What] = ["false positive", "false negative"]
    half = -(-number // 2)
    wanted: list[What] = ["right"] * half
    return _take(rows, lists, wanted + [faults[place % 2] for place in range(number - half)])


def _take(
    rows: Sequence[int] | np.ndarray, lists: dict[What, list[tuple[int, int]]], wanted: list[What]
) -> list[Chosen]:
    taken: list[Chosen] = []
    for what in wanted:
        seen = {chosen.row for chosen in taken}
        found = next((place for place in lists[what] if int(rows[place[0]]) not in seen), None)
        if found is not None:
            taken.append(Chosen(row=int(rows[found[0]]), column=found[1], what=what))
    return taken


def draw_examples(
    model: Predictions, shards: Shards, number: int, method: Method | None = None
) -> tuple[list[Example], list[str]]:
    """Return pictures of the chosen records, and notes on those that could not be drawn.

    Args:
        model: Its folder holds the `classifier`.
        shards: What `record_N` counts through.
        number: Records to show.
        method: Of the map; by default Grad-CAM of the label in question.

    Raises:
        ContractError: The classifier cannot be loaded.
        ConfigError: The encoder cannot have the method.
    """
    classifier = ECGClassifier.from_pretrained(model.folder / "classifier", unfreeze="none")
    examples, notes = [], []
    for chosen in choose(model, model.rows("test").tolist(), number):
        sample = shards.sample(int(model.record_N[chosen.row]))
        label = model.labels[chosen.column] if method in (None, "grad-cam") else None
        try:
            map_ = saliency(
                classifier,
                sample.signal_LT,
                rate_hz=sample.rate_hz,
                leads=LEADS,
                unit="mV",
                label=label,
                method=method,
            )
        except SignalError as error:
            notes.append(f"{sample.database} {sample.record} is not shown: {error}.")
            continue
        weight_LT = map_.on(LEADS, sample.rate_hz, sample.counts_LT.shape[1])
        figure = plot_ecg(
            sample.signal_LT,
            sample.rate_hz,
            title=f"{sample.database} {sample.record}",
            weight_LT=weight_LT,
            weight_name=f"{map_.title.replace('$', chr(92) + '$')}, low to high",
        )
        buffer = io.BytesIO()
        # Few colours on paper: lossless WebP is a quarter of the PNG.
        figure.savefig(buffer, format="webp", dpi=DPI, bbox_inches=_paper(), pil_kwargs={"lossless": True, "method": 4})
        heading, caption = _words(model, chosen, sample, map_)
        data = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        examples.append(Example(heading=heading, caption=caption, data=data))
    return examples, notes


def _paper() -> Bbox:
    """Return the part of the page, in inches, that has something on it."""
    left, bottom, right, top = PAPER_MM
    corners = np.asarray([[left - 3, bottom - 9], [right + 3, top + 11]]) / MM_PER_INCH
    return Bbox(corners)


def _words(model: Predictions, chosen: Chosen, sample: Sample, map_: Saliency) -> tuple[str, str]:
    label = model.labels[chosen.column]
    value = model.probability_NC[chosen.row, chosen.column]
    truth = model.target_NC[chosen.row]
    if model.kind == "regression":
        heading = f"{label}: predicted {value:.4g}, true {truth[chosen.column]:.4g}"
        said = {"nearest": "one of the nearest", "farthest": "one of the farthest"}[chosen.what]
    else:
        what = {"right": "rightly found", "false positive": "wrongly found", "false negative": "missed"}[chosen.what]
        heading = f"{label}: {what}, probability {value:.3f}"
        if model.thresholds_C is not None:
            heading += f", threshold {model.thresholds_C[chosen.column]:.3f}"
        names = [name for name, there in zip(model.labels, truth, strict=True) if there == 1]
        said = f"true: {', '.join(names) or 'none of the labels'}"
    person = ", ".join(filter(None, [f"{sample.age:g} years" if sample.age is not None else "", sample.sex or ""]))
    flags = f"flags: {', '.join(sample.flags)}" if sample.flags else ""
    parts = [f"{sample.database} {sample.record}", person, said, flags, f"map: {map_.words}"]
    return heading, "; ".join(filter(None, parts)) + "."


def shards_of(model: Predictions, given: Sequence[Path]) -> tuple[list[Path], str]:
    """Return the folders of shards that were evaluated, and, where there are none, why.

    Args:
        model: Its settings name them.
        given: Folders that go before those.

    Raises:
        ConfigError: The given folders are not those that were evaluated.
    """
    named = model.settings.get("shards", ())
    folders = list(given) or [Path(folder) for folder in named if isinstance(folder, str)]
    if not folders:
        return [], "run.json names no shards; --shards takes their folders."
    missing = [str(folder) for folder in folders if not (folder / "manifest.json").is_file()]
    if missing:
        return [], f"there are no shards at {', '.join(missing)}; --shards takes their folders."
    said = model.result.get("shards")
    wanted = [each.get("manifest_sha256") for each in said] if isinstance(said, list) else []
    # Records are numbers: in other shards they would name other recordings.
    if wanted and wanted != [manifest_sha256(folder) for folder in folders]:
        listed = ", ".join(map(str, folders))
        if given:
            raise ConfigError(f"--shards {listed} are not those that were evaluated, in their order: give those")
        return [], f"the shards at {listed} have changed since the evaluation; --shards takes those of then."
    return folders, ""
