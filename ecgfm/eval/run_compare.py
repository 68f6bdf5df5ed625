"""What tells runs from each other: settings, versions, data, and where they got to."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ecgfm.errors import ConfigError
from ecgfm.run_folder import BAD_STEPS, last_step, read_metrics, read_settings, read_state, run_names

NONE = "-"
OWN = ("out", "resume", "accept_change", "dry_run", "ranks")
"""Settings that say nothing of what a run is."""
UNSHOWN = ("step", "time", "lr", "weight_decay", "momentum")


class Section(NamedTuple):
    """Rows of a table under a title: a name, and a value for each run."""

    title: str
    rows: list[tuple[str, ...]]


def compare_runs(folders: tuple[Path, ...]) -> tuple[list[str], list[Section]]:
    """Return the runs' short names, and what differs between them.

    Versions and shards are those of the newest checkpoint. The figures are the last that each run logged.

    Raises:
        ConfigError: A folder that holds no run, or fewer than two.
    """
    if len(folders) < 2:
        raise ConfigError(f"give the folders of two or more runs to compare, got {len(folders)}")
    settings = [read_settings(folder) for folder in folders]
    states = [read_state(folder) for folder in folders]
    metrics = [read_metrics(folder) for folder in folders]
    own = [{name: value for name, value in each.items() if name not in OWN} for each in settings]
    sections = [
        Section("settings that differ", _differing([_flat(each) for each in own])),
        Section("versions that differ", _differing([_flat(state.get("versions", {})) for state in states])),
        Section("shards that differ", _differing([_shards(state) for state in states])),
    ]
    reached: list[dict[str, Any]] = []
    for folder, lines, each in zip(folders, metrics, settings, strict=True):
        end = last_step(each)
        step = lines[-1]["step"] if lines else 0
        reached.append(
            {
                "step": f"{step:,} of {end:,}" if end else f"{step:,}",
                **_last(lines),
                "skipped steps": len(read_metrics(folder, BAD_STEPS)),
                "steps in alarm": sum("alarm" in line for line in lines),
            }
        )
    sections.append(Section("last figures", _rows(reached)))
    return run_names(folders), [section for section in sections if section.rows]


def _last(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last value of each figure; a validation is not in every line."""
    found: dict[str, Any] = {}
    for line in lines:
        found |= {name: value for name, value in line.items() if isinstance(value, int | float)}
    first = ("loss", "val_loss")
    names = [name for name in first if name in found]
    names += [name for name in found if name.startswith("probe")]
    names += [name for name in found if name not in (*names, *UNSHOWN)]
    return {name: found[name] for name in names}


def _shards(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{shard['database']} ({shard['manifest_sha256'][:8]})": f"{shard['records']:,} records"
        for shard in state.get("shards", ())
    }


def _flat(settings: Any, where: str = "") -> dict[str, Any]:
    """Return entries by dotted name."""
    if not isinstance(settings, Mapping) or not settings:
        return {where: settings} if where else {}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{where}.{name}" if where else str(name))
    return flat


def _differing(columns: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [row for row in _rows(columns) if len(set(row[1:])) > 1]


def _rows(columns: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, *(_text(column[name]) if name in column else NONE for column in columns)) for name in names]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_markdown(names: list[str], sections: list[Section]) -> str:
    """Return a Markdown table for each section."""
    parts = []
    for section in sections:
        rows = [(section.title, *names), tuple("---" for _ in range(len(names) + 1)), *section.rows]
        parts.append("".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows))
    return "\n".join(parts)


def as_csv(names: list[str], sections: list[Section]) -> str:
    """Return one table with the section in its first column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["section", "name", *names])
    for section in sections:
        writer.writerows([section.title, *row] for row in section.rows)
    return text.getvalue()
