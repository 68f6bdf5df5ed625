"""Files from the Hub are all of one commit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ecgfm import ECGEncoder
from ecgfm.errors import ContractError
from ecgfm.hub import fetch as module
from ecgfm.hub.fetch import fetch, whole


def test_a_push_between_two_downloads_mixes_nothing(
    encoder: ECGEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = tmp_path / "snapshots"
    for commit in ("a" * 40, "b" * 40):
        encoder.save_pretrained(snapshots / commit)
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, name: str, *, revision: str | None = None, **options: Any) -> str:
        asked.append((name, revision))
        if name == "README.md":
            raise LocalEntryNotFoundError("there is none")
        # The branch moves after the first answer.
        commit = revision if revision in ("a" * 40, "b" * 40) else ("a" * 40 if len(asked) == 1 else "b" * 40)
        return str(snapshots / commit / name)

    monkeypatch.setattr(module, "hf_hub_download", download)
    found = ECGEncoder.from_pretrained("someone/encoder", revision="main", check=True)
    assert asked[0] == ("config.json", "main")
    assert {revision for _, revision in asked[1:]} == {"a" * 40}
    assert {name for name, _ in asked[1:]} == {"model.safetensors", "README.md", "reference.safetensors"}
    assert found.revision == "a" * 40
    assert found.card is None


def test_a_folder_has_no_revision(encoder: ECGEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    assert ECGEncoder.from_pretrained(tmp_path).revision is None


def test_an_optional_file_that_cannot_be_had_is_left_out_and_a_required_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").touch()

    def download(repo_id: str, name: str, **options: Any) -> str:
        if name != "config.json":
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path / name)

    monkeypatch.setattr(module, "hf_hub_download", download)
    assert fetch("a/b", ["config.json"], ["README.md"]).paths.keys() == {"config.json"}
    with pytest.raises(ContractError, match="not in the cache"):
        fetch("a/b", ["config.json", "model.safetensors"])


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), whole(path) as file:
        file.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]  # noqa: PTH208
    with whole(path) as file:
        file.write_text("after")
    assert path.read_text() == "after"
