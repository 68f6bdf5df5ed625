"""The README's commands, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that looks like a checkout."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tools", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=420, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def blocks(section: str, language: str = "bash|python") -> list[tuple[str, str]]:
    """Return language and content of the blocks of a section."""
    content = f"\n{README}".split(f"\n{section}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(rf"^```({language})\n(.*?)^```", content, re.DOTALL | re.MULTILINE)
    assert found
    return found


def run_lines(content: str, folder: Path) -> int:
    """Run the commands of a block; return how many they are."""
    commands = [line for line in content.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    for line in commands:
        name, *words = shlex.split(line)
        if name == "deepspeed":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                words = ["--master_port", str(free.getsockname()[1]), *words]
        program = sys.executable if name == "python" else str(Path(sys.executable).with_name(name))
        run([program, *words], folder)
    return len(commands)


def test_the_way_from_recordings_to_an_encoder_runs_as_written(folder: Path) -> None:
    ((_, content),) = blocks("## From recordings to an encoder", "bash")
    assert run_lines(content, folder) == 9
    for name in ("ecg.png", "run.png", "features.png", "probe/probe.png", "encoder/README.md"):
        assert (folder / "out" / name).stat().st_size > 2000
    results = json.loads((folder / "out" / "probe" / "probe.json").read_text())["results"]
    assert [result["label"] for result in results] == ["synthetic:lbbb"]


def test_the_example_in_python_runs_as_written(folder: Path) -> None:
    if not (folder / "out" / "encoder").exists():
        pytest.fail("the encoder that the commands make is not there")
    time = np.arange(3084) / 257
    beat = np.exp(-(((time % 0.8 - 0.4) / 0.02) ** 2))
    np.save(folder / "out" / "signal.npy", 300.0 * np.arange(1, 9)[:, None] * beat)
    ((_, content),) = blocks("# ecgfm", "python")
    assert run([sys.executable, "-c", content], folder).strip() == "torch.Size([1, 192])"


def test_five_minutes_of_use_run_as_written(folder: Path) -> None:
    if not (folder / "out" / "encoder").exists():
        pytest.fail("the encoder that the commands make is not there")
    *here, (_, elsewhere) = blocks("## Use it in five minutes")
    assert "someone/ecg-blocks" in elsewhere  # needs what somebody has published
    said = ""
    for language, content in here:
        if language == "bash":
            run_lines(content, folder)
        else:
            said += run([sys.executable, "-c", content], folder)
    assert "torch.Size([1, 192])" in said
    assert {name.name for name in (folder / "out").iterdir()} >= {"report.html", "features.parquet", "predictions.csv"}
    assert (folder / "out" / "classifier" / "model.safetensors").is_file()


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"(?:tools|recipes)/\w+\.py", README):
        assert (ROOT / name).is_file(), name


def test_every_database_that_the_readme_names_exists() -> None:
    from ecgfm import parts

    table = README.split("### Databases")[1].split("###")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)}
    assert named == {name.replace("_", "-") for name in parts.names("ecgfm.databases")}


def test_the_table_of_databases_says_what_their_readers_say() -> None:
    from ecgfm.databases.base import load_database

    table = README.split("### Databases")[1].split("###")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\| `.*$", table, re.MULTILINE)]
    for name, _, records, rates, licence, care in rows:
        database = load_database(name.strip("`"))
        assert records == (f"{database.expected_records:,}" if database.expected_records else ""), name
        assert rates == ", ".join(f"{rate:g}" for rate in database.native_rates_hz), name
        assert licence in (database.licence, ""), name
        assert care
