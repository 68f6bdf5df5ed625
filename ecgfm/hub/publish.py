"""Publish a folder on the Hub, and read it back as somebody else would.

What is uploaded are the files that were checked, with the card's title and example naming the repository. Then a fresh
process with an empty cache loads the commit that came of it and compares: the files' bytes, and, bit for bit, what the
model makes of the reference recordings. Nothing is said to be published that was not read back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from ecgfm import config
from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub.card import renamed, with_fine_tuning, with_results
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.encoder import CLASSIFIER, REPOSITORY, ECGEncoder
from ecgfm.hub.fetch import CONFIG, NETWORK, README, WEIGHTS, cannot_write
from ecgfm.hub.reference import REFERENCE
from ecgfm.hub.results import Result

FILES = (CONFIG, WEIGHTS, REFERENCE, README)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model on the Hub, as it was read back."""

    url: str
    """Of the commit."""
    revision: str
    """The commit."""
    compared: dict[str, str]
    """What was the same there and here, with its SHA-256."""


def load_model(folder: Path) -> ECGEncoder | ECGClassifier:
    """Return the encoder or classifier of a folder, after its self test.

    Raises:
        ContractError: It is neither, or a damaged one.
    """
    if not (folder / CONFIG).is_file():
        raise ContractError(
            f"{folder} holds no {CONFIG}; give the folder of a run, or one that tools/export.py, save_pretrained or "
            "recipes/finetune.py wrote"
        )
    content = config.read_json(folder / CONFIG)
    kind = ECGClassifier if isinstance(content, dict) and CLASSIFIER in content else ECGEncoder
    return kind.from_pretrained(folder, check=(folder / REFERENCE).is_file())


def prepare(
    folder: Path,
    out: Path,
    repo_id: str,
    *,
    results: Sequence[Result] = (),
    licence: str | None = None,
    fine_tuning: Path | None = None,
) -> None:
    """Write what will be uploaded: the checked files, and the card with the repository's name and the results.

    Args:
        folder: Of an encoder or a classifier.
        out: Folder to write; must be empty or missing.
        repo_id: `owner/name`.
        results: For the card; none leaves those that it has.
        licence: For the card's metadata; None leaves what it has.
        fine_tuning: result.json of a classifier, for the card.

    Raises:
        ConfigError: The card's metadata cannot be read, or the results are another encoder's.
        ContractError: The folder holds no model, or a damaged one; or the name is none.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ContractError(f"{repo_id!r} is not a name on the Hub; give owner/name")
    model = load_model(folder)
    if isinstance(model, ECGEncoder):  # a classifier's encoder has changed since
        _check_weights(model, results)
    missing = [name for name in FILES if not (folder / name).is_file()]
    out.mkdir(parents=True, exist_ok=True)
    if missing:  # written by an earlier version: what is read must still be whole
        model.save_pretrained(out)
    for name in FILES:
        if name not in missing:
            shutil.copyfile(folder / name, out / name)
    text = (out / README).read_text(encoding="utf-8")
    try:
        if results:
            text = with_results(text, repo_id.partition("/")[2], results)
        if fine_tuning:
            text = with_fine_tuning(text, config.read_json(fine_tuning))
        card = ModelCard(text)
        if licence:
            card.data["license"] = licence
            text = str(card)
    except ValueError as error:
        raise ConfigError(f"{folder / README}: the card's metadata cannot be read: {error}; export again") from error
    if not card.data.get("license"):
        raise ConfigError(f"{folder / README} states no licence; give --licence")
    (out / README).write_text(renamed(text, repo_id), encoding="utf-8")


def _check_weights(model: ECGEncoder, results: Sequence[Result]) -> None:
    """Refuse results of another encoder."""
    known = weights_sha256(model)
    for result in results:
        if result.weights not in (None, known):
            raise ConfigError(
                f"the result on {result.task} was measured with other weights than those that are published; measure "
                "it again, or publish what was measured"
            )


def push(folder: Path, repo_id: str, *, private: bool = False, branch: str | None = None) -> tuple[str, str]:
    """Upload a folder that `prepare` wrote; return the commit and its address.

    Args:
        folder: What to upload.
        repo_id: `owner/name`; made if need be.
        private: Only the owner may see it. A repository that is there and public is refused.
        branch: Of the repository, made if need be; main when left out.

    Raises:
        ContractError: The Hub refuses the name, the token or the card, or is not reached.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=True if private else None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ContractError(
                f"{repo_id} is there already and is public, so --private would not hold; give another name, or make it "
                "private in its settings"
            )
        if branch:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=branch,
            allow_patterns=list(FILES),
            commit_message="Publish with ecgfm",
        )
    except ContractError:
        raise
    except HFValidationError as error:
        raise ContractError(f"{repo_id!r} is not a name on the Hub: {error}") from error
    except LocalTokenNotFoundError as error:
        raise ContractError(f"{repo_id} cannot be written: nobody is logged in; run `hf auth login`") from error
    except NETWORK as error:
        raise cannot_write(repo_id, error) from error
    except ValueError as error:
        raise ContractError(f"{repo_id}: the Hub refuses the card: {error}; mend {README} or --licence") from error
    return str(done.oid), str(done.commit_url)


def read_back(folder: Path, repo_id: str, revision: str) -> dict[str, str]:
    """Load a commit in a fresh process with an empty cache, and compare it with a folder.

    Returns:
        SHA-256 of what is the same, by name: the files, and each output of the model.

    Raises:
        ContractError: It cannot be loaded, or is not the same.
    """
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-m", "ecgfm.hub.read_back", str(folder), repo_id, revision, cache]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("error: ")
        raise ContractError(f"{repo_id} at {revision[:12]} is on the Hub but did not stand the test: {reason}")
    there = json.loads(done.stdout.splitlines()[-1])
    here = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    for name, digest in here.items():
        if there["files"].get(name) != digest:
            raise ContractError(
                f"{name} of {repo_id} at {revision[:12]} is not the file that was uploaded; publish again"
            )
    for name, (local, loaded) in there["outputs"].items():
        if local != loaded:
            raise ContractError(
                f"{repo_id} at {revision[:12]} gives other {name} than {folder}; do not use it, publish again"
            )
    return here | {name: local for name, (local, _) in there["outputs"].items()}


def publish(folder: Path, repo_id: str, *, private: bool = False, branch: str | None = None) -> Published:
    """Upload a folder that `prepare` wrote, and read it back.

    Args:
        folder: What to upload.
        repo_id: `owner/name`.
        private: See `push`.
        branch: See `push`.

    Raises:
        ContractError: It could not be uploaded, or what is there is not the same.
    """
    revision, url = push(folder, repo_id, private=private, branch=branch)
    return Published(url=url, revision=revision, compared=read_back(folder, repo_id, revision))
