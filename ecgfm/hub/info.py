"""The facts of a published model, from its config.json and its card; no weights are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from huggingface_hub import CardData, ModelCard, ModelCardData
from yaml import YAMLError  # type: ignore[import-untyped]

from ecgfm import config
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub.card import SECTION
from ecgfm.hub.encoder import CLASSIFIER, ENTRIES
from ecgfm.hub.fetch import CONFIG, README, FromHub, fetch, read_entries
from ecgfm.signal.contract import SignalContract


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One result of a card."""

    task: str
    data: str
    metric: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a published model says of itself."""

    name: str
    """As it was asked for."""
    revision: str | None
    """Commit on the Hub."""
    kind: str
    """encoder or classifier."""
    written_by: str
    """Version of ecgfm."""
    contract: SignalContract
    encoder: dict[str, Any]
    """Settings with their kind."""
    classifier: dict[str, Any] | None
    """Labels, head, calibration; of a classifier."""
    licence: str | None
    datasets: tuple[str, ...]
    results: tuple[Measured, ...]
    sections: dict[str, str]
    """Bodies of the card's sections by their headings, in Markdown; empty where there is no card."""


def read_facts(name_or_folder: str | Path, **how: Unpack[FromHub]) -> Facts:
    """Return the facts of an encoder or classifier.

    Args:
        name_or_folder: A folder, or `owner/name` on the Hub.
        how: revision, cache_dir, force_download, local_files_only, token, as for `ECGEncoder.from_pretrained`.

    Raises:
        ContractError: There is none, or this version cannot read it.
    """
    found = fetch(name_or_folder, (CONFIG,), (README,), **how)
    entries = read_entries(found.paths[CONFIG], ENTRIES, (CLASSIFIER,))
    try:
        contract = config.from_dict(SignalContract, entries["signal"], "signal")
    except ConfigError as error:
        raise ContractError(f"{found.paths[CONFIG]}: {error}; upgrade ecgfm") from error
    text = found.paths[README].read_text(encoding="utf-8", errors="replace") if README in found.paths else ""
    data = _metadata(text)
    results = data.get("eval_results") or []
    return Facts(
        name=str(name_or_folder),
        revision=found.revision,
        kind="classifier" if CLASSIFIER in entries else "encoder",
        written_by=str(entries["ecgfm"].get("version", "unknown")),
        contract=contract,
        encoder=entries["encoder"],
        classifier=entries.get(CLASSIFIER),
        licence=None if data.get("license") is None else str(data.get("license")),
        datasets=tuple(map(str, _list(data.get("datasets")))),
        results=tuple(
            Measured(
                task=str(one.task_name or one.task_type),
                data=str(one.dataset_name) + (f", {one.dataset_split}" if one.dataset_split else ""),
                metric=str(one.metric_name or one.metric_type),
                value=f"{one.metric_value:.3f}" if isinstance(one.metric_value, float) else str(one.metric_value),
            )
            for one in results
        ),
        sections=_sections(text),
    )


def _metadata(text: str) -> CardData:
    """Return a card's metadata; a card is anybody's text, and what is broken in it hides no contract."""
    if not text:
        return ModelCardData()
    try:
        return ModelCard(text, ignore_metadata_errors=True).data
    except (YAMLError, ValueError):
        return ModelCardData()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _sections(text: str) -> dict[str, str]:
    found = list(SECTION.finditer(text))
    ends = [*(one.start() for one in found[1:]), len(text)]
    return {one[1].strip(): text[one.end() : end].strip() for one, end in zip(found, ends, strict=False)}
