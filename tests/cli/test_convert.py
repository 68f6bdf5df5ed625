"""tools/convert.py and tools/check_shards.py as a user runs them, on real records."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
        (["georgia", "SOURCE", "OUT", "--min-s", "nan"], "--min-s must be 0 seconds or more, got nan"),
        (["georgia", "SOURCE", "OUT", "--max-gap-s", "-1"], "--max-gap-s must be 0 seconds or more, got -1"),
        (["georgia", "SOURCE", "OUT", "--segment-s", "0.5"], "--segment-s must be 2 seconds or more, got 0.5"),
        (["georgia", "SOURCE", "OUT", "--max-refused", "7"], "--max-refused is a share from 0 to 1, got 7"),
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


# Filter and rate make a record cost some ten milliseconds: time enough to be stopped.
SLOW = ["--highpass-hz", "0.5", "--rate-hz", "257", "--records-per-shard", "8"]
NUM_SHARDS = 18


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, write_challenge: Callable[..., Path]) -> Path:
    """Return a folder of 144 records, of which every 24th must be refused."""
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for number in range(1, 25):
        signal_LT = generator.normal(0, 300, (12, 5000)) if number < 24 else np.zeros((12, 5000))
        write_challenge(root, f"E{number:05d}", np.rint(signal_LT).astype(np.int16))
    for number in range(25, 145):
        old, new = f"E{(number - 1) % 24 + 1:05d}", f"E{number:05d}"
        (root / f"{new}.mat").hardlink_to(root / f"{old}.mat")
        (root / f"{new}.hea").write_text((root / f"{old}.hea").read_text().replace(old, new))
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, many: Path, command: Command) -> dict[str, str]:
    """Return the hashes that a conversion has that nothing stops."""
    out = tmp_path_factory.mktemp("whole")
    done = command("tools/convert.py", "georgia", many, out, "--workers", "2", *SLOW)
    assert done.returncode == 0, done.stderr
    assert command("tools/check_shards.py", out).returncode == 0
    return hashes(out)


def hashes(out: Path) -> dict[str, str]:
    """Return the hash of every file for users; there is none that is half-written."""
    files = [path for path in out.iterdir() if path.is_file() and path.name != ".lock"]
    assert not list(out.rglob("*.tmp"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(many: Path, out: Path, workers: int = 2) -> subprocess.Popen[str]:
    """Start a conversion in a process group of its own, as a shell does."""
    words = [sys.executable, "tools/convert.py", "georgia", str(many), str(out), "--workers", str(workers), *SLOW]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_shards(process: subprocess.Popen[str], out: Path, number: int) -> None:
    while process.poll() is None and len(list(out.glob("*.tar"))) < number:
        time.sleep(0.002)
    assert process.poll() is None, "it was done before it could be stopped"


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def runs(pid: int) -> bool:
    """Tell whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_conversion_that_is_killed_again_and_again_ends_with_the_bytes_of_one_that_is_not(
    tmp_path: Path, many: Path, whole: dict[str, str], command: Command
) -> None:
    out = tmp_path / "out"
    moments = random.Random(0)
    for _ in range(3):
        process = start(many, out)
        wait_for_shards(process, out, len(list(out.glob("*.tar"))) + moments.randint(1, 4))
        time.sleep(moments.uniform(0, 0.1))  # somewhere inside a shard
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
        assert len(kept) < NUM_SHARDS and not (out / "manifest.json").exists()
    done = command("tools/convert.py", "georgia", many, out, "--workers", "2", *SLOW)
    assert done.returncode == 0, done.stderr
    assert hashes(out) == whole and len(whole) == NUM_SHARDS + 2
    # What was whole was not written again, but for the two that may have lacked their report.
    assert sum(path.stat().st_mtime_ns != written for path, written in kept.items()) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_a_conversion_with_status_130_and_nothing_half_written(
    tmp_path: Path, many: Path, whole: dict[str, str], workers: int
) -> None:
    out = tmp_path / "out"
    process = start(many, out, workers)
    wait_for_shards(process, out, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped by Ctrl-C" in errors and "Traceback" not in errors
    left = hashes(out)
    assert left.items() < whole.items() and 3 <= len(left) < NUM_SHARDS


def test_a_worker_that_is_killed_ends_the_command_with_a_message_and_not_for_ever(
    tmp_path: Path, many: Path, whole: dict[str, str], command: Command
) -> None:
    out = tmp_path / "out"
    process = start(many, out)
    wait_for_shards(process, out, 3)
    one, other = workers_of(process)
    os.kill(one, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: a worker process was killed" in errors and "--workers" in errors and "Traceback" not in errors
    assert not runs(other)
    left = hashes(out)
    assert left.items() < whole.items() and len(left) >= 3
    assert command("tools/convert.py", "georgia", many, out, *SLOW).returncode == 0
    assert hashes(out) == whole


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_command_that_is_killed_alone(
    tmp_path: Path, many: Path, number: signal.Signals
) -> None:
    # They would write beside the workers of the next call.
    process = start(many, tmp_path / "out")
    wait_for_shards(process, tmp_path / "out", 3)
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    outlived = [pid for pid in workers if runs(pid)]
    for pid in outlived:
        os.kill(pid, signal.SIGKILL)
    assert not outlived
