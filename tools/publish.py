"""Publish a pretrained encoder or a fine-tuned classifier on the Hugging Face Hub, and read it back.

    python tools/publish.py RUN OWNER/NAME --dry-run
    python tools/publish.py RUN OWNER/NAME --results out/probe --private

RUN is the --out of a recipe, or a folder that tools/export.py or save_pretrained wrote. The weights are checked, the
card is filled, and what was uploaded is loaded again in a fresh process with an empty cache, where files must be the
same and features equal bit for bit. Log in with `hf auth login`, or set HF_TOKEN.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.hub.card import LICENCE
from ecgfm.hub.export import export
from ecgfm.hub.publish import FILES, prepare, publish
from ecgfm.hub.results import FINETUNE, SUPERVISED, UNTRAINED, Result, read_results, with_controls
from ecgfm.run_folder import CHECKPOINTS, RUN

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
CLASSIFIER = "classifier"


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish an encoder or a classifier."""

    source: tyro.conf.Positional[Path]
    """Folder of a run, of a fine-tuning, or of an export."""
    repo_id: tyro.conf.Positional[str]
    """owner/name on the Hub; made if need be."""
    private: bool = False
    """Make a new repository private; one that is there and public is refused."""
    dry_run: bool = False
    """Do all but the upload, ask no network, and show what would be uploaded."""
    branch: str | None = None
    """Branch to upload to, made if need be; main by default."""
    licence: str | None = None
    """Licence of the weights, as the Hub spells it; apache-2.0 by default, or what an export's card says."""
    results: tuple[Path, ...] = ()
    """Folders of tools/probe.py or recipes/finetune.py, for the card; a fine-tuning's own is taken unasked."""
    untrained: tuple[Path, ...] = ()
    """The same, measured with random weights (--init untrained): a control."""
    supervised: tuple[Path, ...] = ()
    """The same, trained from scratch on the labels alone: a control."""
    out: Path | None = None
    """Keep what is uploaded in this folder, which must not exist."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.exists():
            raise ConfigError(f"--out {self.out} exists; give a folder that does not")
        if (self.untrained or self.supervised) and not self.results and not self.fine_tuning():
            raise ConfigError("--untrained and --supervised are controls of --results, which is missing")

    def fine_tuning(self) -> Path | None:
        """Return result.json of the fine-tuning whose folder, or whose classifier, `source` is."""
        folder = self.source.resolve().parent if self.source.resolve().name == CLASSIFIER else self.source
        return folder / FINETUNE if (folder / FINETUNE).is_file() else None


def main() -> None:
    """Export, prepare, publish, and say what is there."""
    settings = tyro.cli(Publish, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = _folder(settings, scratch / "export")
        ready = scratch / "upload"
        prepare(
            folder,
            ready,
            settings.repo_id,
            results=_results(settings),
            licence=settings.licence,
            fine_tuning=settings.fine_tuning(),
        )
        if settings.out:
            shutil.copytree(ready, settings.out)
        for name in FILES:
            if (ready / name).is_file():
                print(f"{name}  {(ready / name).stat().st_size:,} bytes")
        if settings.dry_run:
            print((ready / "README.md").read_text(encoding="utf-8"))
            print(f"dry run: nothing was uploaded to {settings.repo_id}")
            return
        done = publish(ready, settings.repo_id, private=settings.private, branch=settings.branch)
    for name, digest in done.compared.items():
        print(f"the same there and here: {name}  {digest[:16]}")
    print(f"published as {settings.repo_id}, commit {done.revision[:12]}: {done.url}")


def _folder(settings: Publish, out: Path) -> Path:
    """Return the folder of the model: a fine-tuning's classifier, a run's export, or what was given."""
    source = settings.source
    if (source / CLASSIFIER / "config.json").is_file():
        return source / CLASSIFIER
    if (source / RUN).is_file() and (source / CHECKPOINTS).is_dir():
        return export(source, out, licence=settings.licence or LICENCE, recipes=RECIPES)
    return source


def _results(settings: Publish) -> list[Result]:
    """Return what was measured, with its controls."""
    own = settings.fine_tuning()
    paths = (own, *settings.results) if own and own.parent not in settings.results else settings.results
    results = [result for path in paths for result in read_results(path)]
    controls = {
        name: [result for path in paths for result in read_results(path)]
        for name, paths in ((UNTRAINED, settings.untrained), (SUPERVISED, settings.supervised))
        if paths
    }
    return with_controls(results, controls)


if __name__ == "__main__":
    config.run_command(main)
