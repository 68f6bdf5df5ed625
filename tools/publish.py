"""Publish an exported encoder on the Hugging Face Hub.

    python tools/publish.py FOLDER OWNER/NAME --private

The folder is loaded and checked first. Log in with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import tyro
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ecgfm import config
from ecgfm.errors import ContractError
from ecgfm.hub.export import load_export

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish an exported encoder."""

    folder: tyro.conf.Positional[Path]
    """Folder that tools/export.py wrote."""
    repo_id: tyro.conf.Positional[str]
    """owner/name on the Hub; made if need be."""
    private: bool = False
    """Make a new repository private."""


def main() -> None:
    """Check the folder, upload it, and print where it is."""
    settings = tyro.cli(Publish, description=__doc__)
    if not REPOSITORY.fullmatch(settings.repo_id):
        raise ContractError(f"{settings.repo_id!r} is not a name on the Hub; give owner/name")
    encoder = load_export(settings.folder)
    try:
        address = encoder.push_to_hub(settings.repo_id, private=settings.private or None)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise ContractError(
            f"{settings.repo_id} cannot be written: {error}; log in with `hf auth login` as somebody who may"
        ) from error
    print(address)


if __name__ == "__main__":
    config.run_command(main)
