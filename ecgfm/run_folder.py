"""What lies in a run's folder, for those who write it and those who only read it.

Nothing but the standard library is needed: a run is read on a machine that could not train it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecgfm.errors import ConfigError

RUN = "run.json"
"""The settings."""
METRICS = "metrics.jsonl"
"""A line for each logged step: `step`, `time` (seconds since 1970) and figures, and words where there is an alarm."""
BAD_STEPS = "bad_steps.jsonl"
"""A line for each skipped step: `step`, what was not finite, and its records."""
CHECKPOINTS = "checkpoints"
STATE = "state.json"
"""In each checkpoint: the step, versions, what the shards were."""


def read_metrics(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, or of its bad steps; a last line that a kill cut short is left out."""
    path = run / name
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        lines.append(line)
    return lines


def read_settings(run: Path) -> dict[str, Any]:
    """Return run.json.

    Raises:
        ConfigError: The folder holds no run.
    """
    path = run / RUN
    if not path.is_file():
        what = "is not there" if not run.exists() else "is no folder" if not run.is_dir() else f"has no {RUN}"
        raise ConfigError(f"{run} holds no run: it {what}; give the folder that --out of a recipe named")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings")
    return settings


def last_step(settings: dict[str, Any]) -> int | None:
    """Return the step after which a run stops, where its settings say so."""
    steps = settings.get("steps") or settings.get("optim", {}).get("schedule_steps")
    return int(steps) if steps else None


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that is under its own name, which it gets when it is whole."""
    found = sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.name.removeprefix("step-").isdigit())
    return found[-1] if found else None


def read_state(run: Path) -> dict[str, Any]:
    """Return what the newest checkpoint says of the run, empty where there is none."""
    newest = newest_checkpoint(run)
    if newest is None or not (newest / STATE).is_file():
        return {}
    try:
        state = json.loads((newest / STATE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return state if isinstance(state, dict) else {}
