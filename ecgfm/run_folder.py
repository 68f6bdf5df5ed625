"""What lies in a run's folder, for those who write it and those who only read it.

Nothing but the standard library is needed: a run is read on a machine that could not train it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
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
ENCODER = "encoder.safetensors"
"""In each checkpoint: the weights of the encoder, as they are published."""
CONTRACT = "contract.json"
"""In each checkpoint: what the encoder demands of a signal."""


def read_metrics(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, or of its bad steps.

    What is no such line is left out: a last one that a kill cut short, or one that the disk damaged.
    """
    path = run / name
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
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


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints that are under their own names, which they get when they are whole; oldest first."""
    found = [(step_of(path), path) for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir()]
    # By number: nine digits sort before eight as text.
    return [path for _, path in sorted((step, path) for step, path in found if step is not None)]


def step_of(folder: Path) -> int | None:
    """Return the step that a checkpoint's name says; None when it is not a whole one's name."""
    found = re.fullmatch(r"step-(\d+)", folder.name)
    return int(found[1]) if found else None


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest of `checkpoints`."""
    found = checkpoints(run)
    return found[-1] if found else None


def run_names(folders: Iterable[Path]) -> list[str]:
    """Return a short name for each folder: its own, with as many of those above it as tell it from the others."""
    whole = [folder.resolve().parts for folder in folders]
    length = 1
    while len({parts[-length:] for parts in whole}) < len(set(whole)):
        length += 1
    return ["/".join(parts[-length:]) for parts in whole]


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
