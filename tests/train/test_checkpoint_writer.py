"""Checkpoints are written behind the training, whole or not at all, on disks that are full or lie."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.objectives.jepa import JEPA
from ecgfm.run_folder import checkpoints
from ecgfm.train import checkpoint_writer
from ecgfm.train.checkpoint import newest, read_whole, settle
from ecgfm.train.run import Run
from tests.train.lone import ENCODER, Lone, flip, state_of

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    made = Lone(tmp_path / "run")
    yield made
    made.saver.close()


def test_a_step_does_not_wait_for_the_disk_and_what_is_written_is_of_its_time(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, sound = threading.Event(), save_file

    def slow(tensors: dict[str, Tensor], path: Path) -> None:
        assert disk.wait(60)
        sound(tensors, path)

    monkeypatch.setattr(checkpoint_writer, "save_file", slow)
    state = state_of(1)
    lone.engine.fill_(1.0)
    lone.saver.save(state)
    # It is back, nothing is written, and the run changes what it was given.
    assert not lone.saver.failed() and not checkpoints(lone.run) and not lone.said
    lone.engine.fill_(7.0)
    state["alarms"]["spikes"].append(9.0)
    threading.Timer(0.3, disk.set).start()
    lone.saver.save(state_of(2))  # waits for the one before
    assert lone.said[0].startswith("step 2: waited 0.") and "step 1: wrote" in lone.said[1]
    lone.saver.finish()
    assert len(lone.said) == 3 and "step 2: wrote" in lone.said[2]

    folder = lone.run / "checkpoints" / "step-00000001"
    whole = load_file(folder / "engine.safetensors")
    assert whole.keys() == lone.engine.collect().keys()
    weights = dict(lone.engine.objective.named_parameters())
    assert all((whole[f"model.{name}"] == 1.0).all() for name in weights)
    encoder = load_file(folder / "encoder.safetensors")
    wanted = lone.engine.objective.published().state_dict()
    assert encoder.keys() == wanted.keys()
    assert all(torch.equal(encoder[name], whole[f"model.target.{name}"]) for name in wanted)
    assert read_whole(folder).alarms == state_of(1)["alarms"]


def test_the_newest_and_every_nth_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    lone = Lone(tmp_path / "run", keep=2, keep_every=4)
    lone.write(*range(2, 13, 2))
    assert lone.steps() == [4, 8, 10, 12] and lone.latest() == "step-00000012"
    lone.write(14, 100_000_000)  # nine digits sort before eight as text
    assert lone.steps() == [4, 8, 12, 14, 100_000_000] and lone.latest() == "step-100000000"
    assert not list((lone.run / "checkpoints").glob("*.tmp"))
    lone.saver.close()


def test_steps_that_have_no_checkpoint_cannot_be_kept() -> None:
    settings = {"encoder": ENCODER, "objective": JEPA.Config(), "checkpoint_every": 1000}
    assert Run(**settings, keep_every=5000).keep_every == 5000  # type: ignore[arg-type]
    for wrong in (1500, 500, 0, -1000):
        with pytest.raises(ConfigError, match=f"--keep-every {wrong} must be a multiple of --checkpoint-every 1000"):
            Run(**settings, keep_every=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["engine.safetensors", "encoder.safetensors", "contract.json", "state.json"])
def test_a_disk_that_gives_back_other_bytes_is_noticed(name: str, lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    lone.write(1)
    for word in ("save_file", "write_bytes"):
        sound = getattr(checkpoint_writer, word)

        def lie(*words: Any, sound: Callable[..., None] = sound) -> None:
            sound(*words)
            path = next(each for each in words if isinstance(each, Path))
            if path.name == name:
                flip(path, -2)

        monkeypatch.setattr(checkpoint_writer, word, lie)
    lone.save(2)
    for _ in range(1000):
        if lone.saver.failed():
            break
        time.sleep(0.01)
    # The next step's save, or the end, says it on all ranks.
    with pytest.raises(CheckpointError, match=rf"(?s)step-00000001 is whole.*gave back (an)?other .*{name}"):
        lone.save(3)
    assert lone.steps() == [1] and lone.latest() == "step-00000001"
    assert not list((lone.run / "checkpoints").glob("*.tmp"))


def test_whatever_write_fails_for_want_of_space_the_checkpoint_before_is_whole(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [0, 0]

    def fail_at(sound: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **more: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                counts[0] += 1
                if counts[0] == counts[1]:
                    raise FULL
            return sound(*words, **more)

        return call

    for owner, name in [(checkpoint_writer, "save_file"), (os, "fsync"), (Path, "rename"), (Path, "replace")]:
        monkeypatch.setattr(owner, name, fail_at(getattr(owner, name)))
    lone.write(1)
    calls, step, failures = counts[0], 1, 0
    assert calls > 8
    for number in range(1, calls + 1):
        counts[:] = [0, number]
        before = step
        lone.save(before + 1)
        with pytest.raises(CheckpointError, match="No space left on device"):
            lone.saver.finish()
        failures += 1
        counts[:] = [0, 0]
        found, _ = settle(lone.engine.world, lone.run)
        # Where only `latest` failed, the checkpoint had its name already.
        assert found and found[1].step in (before, before + 1)
        assert lone.latest() == found[0].name and not list((lone.run / "checkpoints").glob("*.tmp"))
        step = found[1].step + 1
        lone.write(step)  # there is room again
        assert lone.steps()[-1] == step
    assert failures == calls


def test_a_disk_that_is_really_full_leaves_the_checkpoint_before_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        lone = Lone(disk / "run")
        lone.write(1)
        size = sum(path.stat().st_size for path in (disk / "run").rglob("*") if path.is_file())
        (disk / "of-others").write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))
        with pytest.raises(CheckpointError, match=r"step-00000001 is whole, .*MB free and a checkpoint takes about"):
            lone.write(2)
        # Somebody fills it after we have looked.
        monkeypatch.setattr(checkpoint_writer, "needed_bytes", lambda objective: 0)
        lone.save(2)
        with pytest.raises(CheckpointError, match=r"step-00000001 is whole, .*No space left on device"):
            lone.saver.finish()
        assert lone.steps() == [1] and lone.latest() == "step-00000001"
        (disk / "of-others").unlink()
        lone.write(2)
        assert lone.steps() == [1, 2]
        # A folder that can no longer be written ends the run in the step, before anything is collected.
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CheckpointError, match=r"step-00000002 is whole, .*Read-only file system"):
            lone.save(3)
        assert settle(lone.engine.world, lone.run)[0] == newest(lone.run) and lone.steps() == [1, 2]
        lone.saver.close()
    finally:
        subprocess.run(["umount", disk], check=True)
