"""The model card: what a model is, what it saw, how to load it, what it is worth, and what it must not be used for.

The text is `card_template.md`, filled from the run's settings and the checkpoint's facts; its metadata is
huggingface_hub's ModelCardData. What is not known is said to be unknown, never left out. Results come later, from files
that the evaluations wrote (`with_results`).

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993; the metadata,
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData

from ecgfm.hub import card_sections as sections
from ecgfm.hub.card_sections import UNRECORDED, flat, table
from ecgfm.hub.recipe_notes import RecipeNotes
from ecgfm.hub.results import CALIBRATION, METRICS, Result, database_id, eval_results
from ecgfm.signal.contract import SignalContract

TEMPLATE = "card_template.md"
LICENCE = "apache-2.0"
ADDRESS = re.compile(r'(ECG(?:Encoder|Classifier))\.from_pretrained\("[^"\n]*"\)')
SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
INHERITED = {
    "Pretraining data": "data",
    "Recipe": "recipe",
    "Pretraining": "training",
    "Compute": "compute",
    "Leakage": "leakage",
    "Biases": "biases",
    "Citation": "citation",
}
"""Sections that a classifier's card takes over from its encoder's, and their names in the template."""
SAYS_NO_LABEL = "It was not trained to name a diagnosis"
SAID_LABELS = "It was trained on labels, but what named them is not part of it"
FINE_TUNING = "Fine-tuning"
NO_RESULTS = (
    "None is recorded. `python tools/publish.py ... --results FOLDER` adds what tools/probe.py or recipes/finetune.py "
    "measured, beside the controls."
)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an encoder comes from."""

    run: Mapping[str, Any]
    """The run's settings, as `run.json` has them."""
    state: Mapping[str, Any]
    """The checkpoint's facts, as `state.json` has them."""
    metrics: Sequence[Mapping[str, Any]] = field(default=())
    """Lines of `metrics.jsonl` up to the checkpoint."""
    recipe: RecipeNotes | None = None
    """What the recipe says of its paper."""


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
    """Return the text of an encoder's README.md.

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
    method = str(provenance.run["objective"]["kind"]) if provenance else None
    databases = sorted({str(shard["database"]) for shard in provenance.state["shards"]}) if provenance else []
    data = ModelCardData(
        license=licence,
        library_name="ecgfm",
        pipeline_tag="feature-extraction",
        tags=tags("foundation-model", kind, method),
        datasets=[database_id([database]) for database in databases] or None,
    )
    by = f", pretrained with {method}" if method else ""
    return _fill(
        front_matter=data.to_yaml(),
        name=name,
        address=address or name,
        kind="ECGEncoder",
        summary=f"An encoder of 12-lead electrocardiograms: {_size(kind, parameters)}{by} {_windows(signal)}.",
        what=f"It turns a 12-lead electrocardiogram into features: one vector of {encoder['width']} numbers for a "
        f"recording. {SAYS_NO_LABEL if method != 'supervised' else SAID_LABELS}; put a small classifier on the "
        "features, or fine-tune it, for that.",
        call='features = model.embed(signal, rate_hz=500, leads=leads, unit="mV")\n'
        f"print(features.shape)  # torch.Size([1, {encoder['width']}])",
        contract=sections.contract(signal),
        architecture=table(("setting", "value"), [*flat(encoder), ("parameters", f"{parameters:,}")]),
        results=NO_RESULTS,
        calibration="Features are no probabilities. A classifier on them has to be calibrated on data of its own "
        "(platt, temperature or isotonic, in recipes/finetune.py).",
        recipe=_recipe(provenance),
        **sections.of_run(provenance.run, provenance.state, provenance.metrics)
        if provenance
        else sections.of_unknown_run(),
        citation=_citation(provenance),
    )


def classifier_card(
    name: str,
    classifier: Mapping[str, Any],
    encoder: Mapping[str, Any],
    signal: SignalContract,
    parameters: int,
    *,
    encoder_card: str | None = None,
    licence: str | None = None,
    address: str | None = None,
) -> str:
    """Return the text of a classifier's README.md.

    Args:
        name: The title.
        classifier: Its settings, as `config.json` has them.
        encoder: Those of its encoder, with their kind.
        signal: The signal contract.
        parameters: Their number, of encoder and head.
        encoder_card: README.md of the encoder it began from, which says what that was pretrained on.
        licence: Of the weights, as the Hub spells licences; the encoder's when left out.
        address: What the example loads; the title when left out.
    """
    labels = [str(label) for label in classifier["labels"]]
    known = dict(_sections(encoder_card)[1]) if encoder_card else {}
    of_encoder = ModelCard(encoder_card, ignore_metadata_errors=True).data if encoder_card else ModelCardData()
    data = ModelCardData(
        license=licence or of_encoder.get("license") or LICENCE,
        library_name="ecgfm",
        pipeline_tag="other",
        tags=tags(str(classifier["kind"]), str(encoder["kind"])),
        datasets=of_encoder.get("datasets"),
    )
    regression = classifier["kind"] == "regression"
    verb = "predict_logits" if regression else "predict_proba"
    gives = "the value of" if regression else "a probability for each of"
    shown = ", ".join(f"`{label}`" for label in labels[:30]) + (f" and {len(labels) - 30} more" if labels[30:] else "")
    rows = [(key, value) for key, value in flat(classifier) if key not in ("labels", "calibration", "thresholds")]
    unknown = {**sections.of_unknown_run(), "recipe": UNRECORDED, "citation": _citation(None)}
    inherited = {entry: known.get(heading, unknown[entry]) for heading, entry in INHERITED.items()}
    inherited["leakage"] += (
        "\n\nFine-tuning read signals and labels of its own training and validation records besides."
    )
    return _fill(
        front_matter=data.to_yaml(),
        name=name,
        address=address or name,
        kind="ECGClassifier",
        summary=f"A classifier of 12-lead electrocardiograms: {_size(str(encoder['kind']), parameters)}, with the head "
        f"{classifier['head']}, {_windows(signal)}.",
        what=f"It turns a 12-lead electrocardiogram into {gives} {len(labels)} labels ({classifier['kind']}): {shown}.",
        call=f'print(model.{verb}(signal, rate_hz=500, leads=leads, unit="mV"))  # (1, {len(labels)})',
        contract=sections.contract(signal),
        architecture=table(("setting", "value"), [*flat(encoder), *rows, ("parameters", f"{parameters:,}")]),
        results=NO_RESULTS,
        calibration=_calibrated(classifier),
        **{**unknown, **inherited},
    )


def renamed(text: str, name: str) -> str:
    """Return a card whose title and example name another place to load from."""
    text = ADDRESS.sub(lambda found: f'{found[1]}.from_pretrained("{name}")', text)
    return re.sub(r"^# .*$", lambda _: f"# {name}", text, count=1, flags=re.MULTILINE)


def with_results(text: str, name: str, results: Sequence[Result]) -> str:
    """Return a card with these results in its metadata and text, in the place of those that it had.

    Args:
        text: The card.
        name: Of the model, for the metadata's index.
        results: What was measured; see `results.read_results`.
    """
    card = ModelCard(text)
    shown = [result for result in results if result.metric not in CALIBRATION]
    card.data["metrics"] = sorted({METRICS[result.metric][0] for result in results})
    card.data["model_name"], card.data["eval_results"] = name, eval_results(results)
    head, bodies = _sections(str(card))
    replaced = dict(bodies)
    replaced["Results"] = _results(shown, card.data)
    calibration = [result for result in results if result.metric in CALIBRATION]
    if calibration:
        first = replaced.get("Calibration", "").split("\n\n| task ")[0]
        replaced["Calibration"] = f"{first}\n\n{_table_of(calibration)}".strip()
    return _joined(head, replaced.items())


def with_fine_tuning(text: str, result: Mapping[str, Any]) -> str:
    """Return a classifier's card with a section of what it was fine-tuned on, and those databases in its metadata.

    Args:
        text: The card.
        result: The content of `result.json`.
    """
    card = ModelCard(text)
    names = {database_id([str(shard["database"])]) for shard in result["shards"]}
    card.data["datasets"] = sorted(names.union(card.data.get("datasets") or ()))
    head, bodies = _sections(str(card))
    section = (FINE_TUNING, sections.fine_tuning(result))
    kept = [body for body in bodies if body[0] != FINE_TUNING]
    place = next((number for number, (heading, _) in enumerate(kept) if heading == "Compute"), len(kept))
    kept.insert(place, section)
    return _joined(head, kept)


def _joined(head: str, bodies: Iterable[tuple[str, str]]) -> str:
    return head.rstrip() + "".join(f"\n\n## {heading}\n\n{body}" for heading, body in bodies) + "\n"


def _sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return what is before the first section, and heading and body of each."""
    found = list(SECTION.finditer(text))
    ends = [*(one.start() for one in found[1:]), len(text)]
    bodies = [(one[1], text[one.end() : end].strip("\n")) for one, end in zip(found, ends)]
    return text[: found[0].start()] if found else text, bodies


def _fill(**entries: str) -> str:
    template = resources.files("ecgfm.hub").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(entries)


def tags(*more: str | None) -> list[str]:
    """Return the tags of a card: those of all, and these."""
    return ["ecg", "electrocardiogram", "12-lead", *(tag for tag in more if tag)]


def _size(kind: str, parameters: int) -> str:
    return f"{kind}, {parameters / 1e6:.2f} million parameters"


def _windows(signal: SignalContract) -> str:
    seconds = signal.window_samples / signal.rate_hz
    return f"on windows of {seconds:g} s at {signal.rate_hz:g} Hz with [ecgfm](https://github.com/ecgfm/ecgfm)"


def _recipe(provenance: Provenance | None) -> str:
    if provenance is None or provenance.recipe is None:
        return UNRECORDED
    return recipe_text(provenance.recipe)


def recipe_text(notes: RecipeNotes) -> str:
    """Return a recipe's source, and what paper, code and ours say."""
    source = re.sub(r"https?://[^\s,;)]+", lambda found: f"<{found[0]}>", notes.source)
    items = [f"- **{'Here' if who == 'Ours' else who}:** {said}" for who, said in notes.items]
    return f"{notes.title} ({source}), `recipes/{notes.name}.py`.\n\n" + "\n".join(items)


def _citation(provenance: Provenance | None) -> str:
    lines = ["- this software: ecgfm, https://github.com/ecgfm/ecgfm"]
    if provenance and provenance.recipe:
        lines.insert(0, f"- the method: {provenance.recipe.source}")
    return "Please cite\n\n" + "\n".join(lines) + "\n- the databases, see Pretraining data"


def _calibrated(classifier: Mapping[str, Any]) -> str:
    if classifier["kind"] == "regression":
        return "It gives values and no probabilities."
    fitted = classifier.get("calibration")
    if not fitted:
        return (
            "Its probabilities are not calibrated: fit a calibration on data of your own before you read them as such."
        )
    return (
        f"Its probabilities went through a calibration ({fitted['method']}) that was fitted on the validation part. On "
        "other patients and recorders they have to be checked again."
    )


def _results(results: Sequence[Result], metadata: CardData) -> str:
    if not results:
        return NO_RESULTS
    text = "Each figure with the 95 % interval of a bootstrap over patients.\n\n" + _table_of(results)
    pretraining = metadata.get("datasets") or []
    seen = sorted({name for result in results for name in result.databases if database_id([name]) in pretraining})
    if seen:
        text += (
            f"\n\n**Pretraining read {', '.join(seen)} too** (Leakage says which part): figures of records that it "
            "read are not those of unseen ones."
        )
    if any(not result.controls for result in results):
        text += "\n\nWhere no control was measured, a figure does not say what pretraining is worth."
    return text


def _table_of(results: Sequence[Result]) -> str:
    controls = sorted({name for result in results for name in result.controls}, reverse=True)
    head = ("task", "data", "records, patients", "method", "figure", "this model", *controls)
    rows = [
        (
            result.task,
            f"{', '.join(result.databases) or 'not stated'}, {result.split}",
            f"{result.records:,}, {result.patients:,}",
            result.method,
            METRICS[result.metric][1],
            str(result.figure),
            *(str(result.controls.get(name, "not measured")) for name in controls),
        )
        for result in results
    ]
    return table(head, rows)
