"""Publish an exported encoder on the Hugging Face Hub.

    python tools/publish.py FOLDER OWNER/NAME --private

The folder is loaded and checked first. Log in with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.hub.export import load_export


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
    print(load_export(settings.folder).push_to_hub(settings.repo_id, private=settings.private or None))


if __name__ == "__main__":
    config.run_command(main)
