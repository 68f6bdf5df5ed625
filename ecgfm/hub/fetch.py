"""The files of a published model: from a folder, or from the Hub, all of one commit.

What is read is JSON, safetensors and text; nothing else is asked for, and nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ecgfm import config
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub.digest import check_digest

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
README = "README.md"
SNAPSHOTS = "snapshots"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""A name on the Hub."""
NETWORK: tuple[type[Exception], ...] = (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError)
"""What a request may end in: refused by the Hub, or, by the HTTP library of the client's version, cut or never made."""


class FromHub(TypedDict, total=False):
    """How the Hub is asked; a folder is read as it is."""

    revision: str | None
    """Branch, tag or commit."""
    cache_dir: str | Path | None
    """Where downloads are kept, if not in the usual place."""
    force_download: bool
    """Download again what is there already."""
    local_files_only: bool
    """Do not ask the network."""
    token: str | bool | None
    """Of the Hub, if not the one that is logged in."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Files on this machine."""

    paths: dict[str, Path]
    """By name; optional ones that are not there are left out."""
    revision: str | None
    """Commit on the Hub; None of a folder."""


def fetch(where: str | Path, required: Sequence[str], optional: Sequence[str] = (), **how: Any) -> Fetched:
    """Return files of a folder, or of `owner/name` on the Hub.

    Args:
        where: The folder or name.
        required: Files without which it is no model. The first is asked for first: it decides the commit from which
            all others come, so that a push in between cannot mix two models.
        optional: Files that may be missing, or that the Hub may fail to give.
        how: See `FromHub`.

    Raises:
        ContractError: A required file is missing or cannot be had; the message has the fix.
        TypeError: An option is unknown.
    """
    check_options(how)
    where = str(where)
    if Path(where).is_dir():
        paths = {name: Path(where) / name for name in (*required, *optional)}
        for name in required:
            if not paths[name].is_file():
                raise ContractError(
                    f"{paths[name]} does not exist; give a folder that tools/export.py or save_pretrained wrote"
                )
        return Fetched(paths={name: path for name, path in paths.items() if path.is_file()}, revision=None)
    if not REPOSITORY.fullmatch(where):  # a misspelt folder must not cost the retries of a request
        raise ContractError(f"{where} is neither a folder nor a name on the Hub (owner/name); looked in {Path.cwd()}")
    found: dict[str, Path] = {}
    commit: str | None = None
    for name in required:
        found[name] = _download(where, name, how)
        commit = found[name].parent.name if found[name].parent.parent.name == SNAPSHOTS else how.get("revision")
        how = {**how, "revision": commit}
    for name in optional:
        try:
            path = Path(hf_hub_download(where, name, **how))
        except NETWORK:
            continue  # the card explains and the reference checks; neither decides what the model is
        check_digest(path, where)
        found[name] = path
    return Fetched(paths=found, revision=commit)


def check_options(how: Mapping[str, Any]) -> None:
    """Refuse options that are not those of `FromHub`, which a folder would pass over without a word.

    Raises:
        TypeError: As Python does for a misspelt argument.
    """
    unknown = sorted(how.keys() - FromHub.__annotations__.keys())
    if unknown:
        raise TypeError(f"from_pretrained() got an unexpected keyword argument {unknown[0]!r}")


def read_entries(path: Path, entries: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return objects of a config.json, by name; what else it holds is passed over.

    Raises:
        ContractError: It is not JSON, or an entry is missing or no object.
    """
    try:
        content = config.read_json(path)
    except ConfigError as error:
        raise ContractError(f"{error}; download or export it again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), dict) for name in entries):
        raise ContractError(f"{path} is not an encoder of ecgfm: it must hold the objects {', '.join(entries)}")
    return {name: content[name] for name in (*entries, *optional) if name in content}


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a file to write in the place of `path`, which then is replaced; a failure leaves `path` as it was."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _download(repo_id: str, name: str, how: FromHub | dict[str, Any]) -> Path:
    """Return one file of a repository on the Hub."""
    try:
        path = Path(hf_hub_download(repo_id, name, **how))
    except HFValidationError as error:
        raise ContractError(f"{repo_id} is neither a folder nor a name that the Hub takes: {error}") from error
    except LocalEntryNotFoundError as error:
        raise ContractError(
            f"{repo_id} is no folder in {Path.cwd()}, and as a name on the Hub its {name} is not in the cache and the "
            "Hub was not asked or not reached; correct the folder, or check the network"
        ) from error
    except EntryNotFoundError as error:
        raise ContractError(f"{repo_id} on the Hub has no {name}: it is not an encoder of ecgfm") from error
    except RepositoryNotFoundError as error:
        raise ContractError(
            f"{repo_id} is neither a folder nor a repository on the Hub that you may read; "
            "check the name, or log in when it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ContractError(
            f"{repo_id} on the Hub has no revision {how.get('revision')!r}; give one of its branches, tags or commits"
        ) from error
    except NETWORK as error:
        raise ContractError(
            f"{name} of {repo_id} cannot be downloaded: {error}; what has come is kept, try again"
        ) from error
    check_digest(path, repo_id)
    return path


def cannot_write(repo_id: str, error: Exception) -> ContractError:
    """Return what to say of an upload that the Hub, or the way to it, did not let through."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = status is not None and status < 500
    fix = "log in with `hf auth login` as somebody who may" if refused else "try again: what was uploaded is kept"
    return ContractError(f"{repo_id} cannot be written: {error}; {fix}")
