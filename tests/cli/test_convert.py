"""tools/convert.py and tools/check_shards.py as a user runs them, on real records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_georgia_converts_and_passes_the_check(tmp_path: Path, ecg_data: Path, command: Command) -> None:
    source = ecg_data / "challenge-2021" / "training" / "georgia"
    done = command("tools/convert.py", "georgia", source, tmp_path / "out", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "10 of 10,344 published" in done.stdout and "records/s" in done.stdout
    checked = command("tools/check_shards.py", tmp_path / "out")
    assert checked.returncode == 0, checked.stdout
    assert "10 records in 1 shards are whole" in checked.stdout
    again = command("tools/convert.py", "georgia", source, tmp_path / "out")
    assert again.returncode == 0 and "nothing was missing" in again.stdout


def test_the_lying_gain_is_caught_and_mended_only_on_request(tmp_path: Path, ecg_data: Path, command: Command) -> None:
    source = ecg_data / "challenge-2021" / "training" / "ptb"
    done = command("tools/convert.py", "ptb", source, tmp_path / "out")
    assert done.returncode == 1
    assert "implausible-amplitude" in done.stdout
    assert "S0001" in done.stderr and "--mend gain-2000000-is-1000" in done.stderr
    assert json.loads((tmp_path / "out" / "refused.jsonl").read_text())["reason"] == "implausible-amplitude"
    mended = command("tools/convert.py", "ptb", source, tmp_path / "mended", "--mend", "gain-2000000-is-1000")
    assert mended.returncode == 0, mended.stderr
    assert json.loads((tmp_path / "mended" / "manifest.json").read_text())["mended"] == {"gain-2000000-is-1000": 1}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gerogia", "SOURCE", "OUT"], "did you mean georgia"),
        (["georgia", "NOWHERE", "OUT"], "does not exist"),
        (["georgia", "SOURCE", "OUT", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["georgia", "SOURCE", "OUT", "--rate-hz", "0"], "--rate-hz must be native or 1 to 10000"),
        (["georgia", "SOURCE", "OUT", "--mend", "magic"], "--mend magic"),
        (["georgia", "SOURCE", "OUT", "--worker", "2"], "--workers"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do_and_writes_nothing(
    words: list[str], expected: str, tmp_path: Path, command: Command
) -> None:
    places = {"SOURCE": tmp_path, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere"}
    done = command("tools/convert.py", *(places.get(word, word) for word in words))
    assert done.returncode in (1, 2)
    assert expected in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_names_the_fault_and_fails(tmp_path: Path, training_shards: Path, command: Command) -> None:
    for path in training_shards.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:-2000])
    done = command("tools/check_shards.py", tmp_path)
    assert done.returncode == 1
    assert f"{shard.name}: " in done.stdout and "cut or damaged" in done.stdout
    assert "1 of 1 folders have faults" in done.stderr


def test_a_killed_conversion_leaves_no_half_shard_and_goes_on(
    tmp_path: Path, write_challenge: Callable[..., Path], command: Command
) -> None:
    random = np.random.default_rng(0)
    for number in range(1, 401):
        write_challenge(tmp_path / "source", f"E{number:05d}", random.normal(0, 300, (12, 5000)).astype(np.int16))
    words = ["tools/convert.py", "georgia", str(tmp_path / "source"), str(tmp_path / "out")]
    words += ["--workers", "2", "--records-per-shard", "20"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((tmp_path / "out").glob("*.tar"))) < 3:
        time.sleep(0.01)
    assert process.poll() is None, "it was done before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    done = command(*words)
    assert done.returncode == 0, done.stderr
    reported = [path for path in before if path.stat().st_mtime_ns == before[path]]
    assert len(reported) >= len(before) - 2  # one of each worker may have lacked its report
    assert command("tools/check_shards.py", tmp_path / "out").returncode == 0
    assert not list((tmp_path / "out").glob("*.tmp"))
