"""From a run's folder to a published folder and its card."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file

from ecgfm import ECGEncoder, config
from ecgfm.errors import CheckpointError, ContractError
from ecgfm.hub.card import renamed
from ecgfm.hub.export import export, load_export

SHARDS = [
    {
        "database": "ptb-xl",
        "title": "PTB-XL",
        "licence": "CC-BY-4.0",
        "citation": "Wagner et al. 2020 | a pipe",
        "address": "https://doi.org/10.13026/kfzx-aw45",
        "records": 17439,
        "patients": 15000,
        "manifest_sha256": "ab" * 32,
    }
]


def write_checkpoint(run: Path, encoder: ECGEncoder, step: int, *, name: str | None = None) -> Path:
    folder = run / "checkpoints" / (name or f"step-{step:08d}")
    folder.mkdir(parents=True)
    save_file(dict(encoder.encoder.state_dict()), folder / "encoder.safetensors")
    (folder / "contract.json").write_text(json.dumps(config.to_dict(encoder.signal)))
    digests = {
        file: {"sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest()}
        for file in ("encoder.safetensors", "contract.json")
    }
    state: dict[str, Any] = {
        "step": step,
        "records_seen": step * 64,
        "recipe": "mae_vit_time.py",
        "shards": SHARDS,
        "versions": {"torch": "2.15"},
        "last_metrics": {"loss": 0.5, "target_std": 0.7},
        "files": digests,
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def run(encoder: ECGEncoder, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_checkpoint(folder, encoder, 40)
    settings = {
        "encoder": config.to_dict(encoder.encoder.config),
        "objective": {"kind": "jepa", "mask_ratio": [0.75, 0.85]},
        "data": {
            "shards": ["/home/somebody/shards/ptb-xl"],
            "batch_size": 64,
            "cache": "/home/somebody/cache",
            "held_out": ["/home/somebody/shards/ptb-xl"],
            "s3_command": "curl -H 'X-Token: hush' {url}",
        },
        "optim": {"lr": 1e-3, "clip_norm": None},
        "engine": {"extra": "/home/somebody/deepspeed.json"},
        "monitor": {"wandb": "secret-project", "wandb_team": "somebody"},
        "probe": {"shards": "/home/somebody/shards/ludb", "label": "ludb:a"},
        "out": "/home/somebody/run",
        "seed": 0,
    }
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


def test_an_export_holds_the_checkpoints_weights_and_contract(encoder: ECGEncoder, run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "exports" / "first")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["first"]
    wanted = load_file(run / "checkpoints" / "step-00000040" / "encoder.safetensors")
    got = load_file(out / "model.safetensors")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in got)
    assert load_export(out).signal == encoder.signal


def test_the_newest_whole_checkpoint_is_taken(encoder: ECGEncoder, run: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        encoder.encoder.get_parameter("norm.weight").fill_(7.0)
    write_checkpoint(run, encoder, 100_000_000)  # nine digits sort before eight as text
    with torch.no_grad():
        encoder.encoder.get_parameter("norm.weight").fill_(9.0)
    write_checkpoint(run, encoder, 200_000_000, name="step-200000000.tmp")
    assert (load_export(export(run, tmp_path / "out")).encoder.get_parameter("norm.weight") == 7.0).all()


def test_an_earlier_export_is_replaced_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    (out / "README.md").write_text("old")
    assert (export(run, out) / "README.md").read_text() != "old"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt"):
        export(run, out)
    assert (out / "notes.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="no earlier export"):
        export(run, file)
    with pytest.raises(CheckpointError, match="no earlier export"):
        export(run, run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out", "run"]


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        export(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        export(tmp_path / "empty", tmp_path / "out")
    (run / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run\.json has no entry 'encoder'"):
        export(run, tmp_path / "out")


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step-00000040" / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        export(run, tmp_path / "out")
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_missing_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="does not exist"):
        load_export(tmp_path / "none")


def test_the_cards_front_matter_is_read_by_the_hub_and_its_example_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (export(run, tmp_path / "out", licence="cc-by-4.0") / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.license == "cc-by-4.0" and data.library_name == "ecgfm"
    assert data.pipeline_tag == "feature-extraction" and {"ecg", "vit", "jepa"} <= set(data.tags or ())
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(example, {})
    assert "torch.Size([1, 16])" in capsys.readouterr().out


def test_the_card_says_what_was_seen_and_tells_no_folder_of_the_trainer(run: Path, tmp_path: Path) -> None:
    text = (export(run, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    row = "| ptb-xl | [PTB-XL](https://doi.org/10.13026/kfzx-aw45) | 17,439 | 15,000 | CC-BY-4.0 |"
    for wanted in (
        row,
        "Wagner et al. 2020",
        "ab" * 32,
        "Not a medical device",
        "**Leakage.**",
        "| loss | 0.5 |",
        "| seed | 0 |",
    ):
        assert wanted in text, wanted
    assert not [word for word in ("somebody", "hush", "secret-project") if word in text]
    assert "deepspeed recipes/mae_vit_time.py --from run.json --data.shards ptb-xl --out runs/again" in text
    (settings,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    assert json.loads(settings)["data"] == {"shards": ["ptb-xl"], "batch_size": 64}
    assert "$" not in text


def test_the_card_of_an_encoder_that_scales_by_record_gives_no_scale_of_databases(
    encoder: ECGEncoder, run: Path, tmp_path: Path
) -> None:
    path = run / "checkpoints" / "step-00000040" / "contract.json"
    assert "| II | 0.01" in (export(run, tmp_path / "out") / "README.md").read_text()
    path.write_text(json.dumps(config.to_dict(encoder.signal) | {"scale": "record"}))
    state = json.loads(path.with_name("state.json").read_text())
    state["files"]["contract.json"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name("state.json").write_text(json.dumps(state))
    text = (export(run, tmp_path / "out") / "README.md").read_text()
    assert "both of the window itself" in text and "| II | 0.01" not in text


def test_publishing_renames_the_title_and_the_example_only(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out")
    text = (out / "README.md").read_text(encoding="utf-8")
    new = renamed(text, "me/ecg")
    changed = [pair for pair in zip(text.splitlines(), new.splitlines(), strict=True) if pair[0] != pair[1]]
    assert [after for _, after in changed] == ["# me/ecg", 'encoder = ECGEncoder.from_pretrained("me/ecg")']


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root, who may write anywhere")
def test_a_place_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        export(run, tmp_path / "closed" / "out")
