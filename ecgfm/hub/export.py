"""From a run's newest checkpoint to a folder that can be loaded, copied and published.

The weights and the contract are compared with the hashes that the checkpoint recorded, loaded strictly,
and written beside `out`; the folder gets its name when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgfm import config
from ecgfm.errors import CheckpointError, ConfigError, ContractError
from ecgfm.hub.card import LICENCE, Provenance, model_card
from ecgfm.hub.encoder import CONFIG, README, WEIGHTS, ECGEncoder, load_weights_
from ecgfm.run_folder import CHECKPOINTS, CONTRACT, ENCODER, RUN, STATE, checkpoints


def export(run: Path, out: Path, *, licence: str = LICENCE) -> Path:
    """Write the encoder of a run's newest checkpoint as `out`, and return `out`.

    Args:
        run: Folder of the run.
        out: Folder to write; an earlier export there is replaced.
        licence: Of the weights, for the card, as the Hub spells licences.

    Raises:
        CheckpointError: The run holds no whole checkpoint, or `out` is something else or cannot be written.
        ContractError: The weights do not belong to the settings.
    """
    checkpoint = newest_checkpoint(run)
    settings = _read(run / RUN, ("encoder", "objective", "data"))
    state = _read(checkpoint / STATE, ("step", "shards"))
    for name in (ENCODER, CONTRACT):
        _verify(checkpoint / name, state.get("files", {}).get(name))
    _check_out(out)
    model = ECGEncoder(encoder=settings["encoder"], signal=_read(checkpoint / CONTRACT, ("rate_hz",)))
    load_weights_(model.encoder, checkpoint / ENCODER)
    model.card = model_card(
        out.name,
        config.to_dict(model.encoder.config),
        model.signal,
        sum(weight.numel() for weight in model.encoder.parameters()),
        Provenance(run=settings, state=state),
        address=out.as_posix(),
        licence=licence,
    )
    try:
        _write(model, out)
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror}; give another folder or free space"
        ) from error
    return out


def newest_checkpoint(run: Path) -> Path:
    """Return the folder of a run's last whole checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run} does not exist; give the folder that a recipe wrote with --out")
    found = [path for path in checkpoints(run) if (path / STATE).is_file()]
    if not found:
        raise CheckpointError(
            f"{run} has no whole checkpoint below {CHECKPOINTS}; run the same recipe again to its first one"
        )
    return found[-1]


def _read(path: Path, entries: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = config.read_json(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; is {path.parent} what a recipe wrote?") from error
    missing = [name for name in entries if not isinstance(content, dict) or name not in content]
    if missing:
        raise CheckpointError(f"{path} has no entry {missing[0]!r}; is {path.parent} what a recipe wrote?")
    assert isinstance(content, dict)
    return content


def _verify(path: Path, facts: Mapping[str, Any] | None) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; delete {path.parent} to export the checkpoint before")
    if facts:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != facts["sha256"]:
            raise CheckpointError(f"{path} is damaged; delete {path.parent} to export the checkpoint before")


def _check_out(out: Path) -> None:
    """Refuse to replace anything that is not an earlier export."""
    if not out.name:
        raise CheckpointError(f"{out} has no name of its own; give the folder to write, such as exports/first")
    if not out.exists():
        return
    strangers = (
        [path.name for path in out.iterdir() if path.name not in (CONFIG, WEIGHTS, README)] if out.is_dir() else [""]
    )
    if strangers or (any(out.iterdir()) and not _is_export(out)):
        what = f"holds {sorted(strangers)[0]}" if strangers and strangers[0] else "is something else"
        raise CheckpointError(f"{out} exists and {what}, so it is no earlier export; give another folder, or remove it")


def _is_export(out: Path) -> bool:
    try:
        content = config.read_json(out / CONFIG)
    except ConfigError:
        return False
    return isinstance(content, dict) and "ecgfm" in content


def _write(model: ECGEncoder, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    try:
        model.save_pretrained(fresh)
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if out.exists():
            out.rename(old)  # a folder cannot be renamed onto one that holds files
        fresh.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load_export(folder: Path) -> ECGEncoder:
    """Return the encoder of an export, which is not asked of the Hub when the folder is missing.

    Raises:
        ContractError: It is no export, or a damaged one.
    """
    if not folder.is_dir():
        raise ContractError(f"{folder} does not exist; give a folder that tools/export.py wrote")
    return ECGEncoder.from_pretrained(folder)
