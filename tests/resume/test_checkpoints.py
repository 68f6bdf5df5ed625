"""Checkpoints are written behind the training, whole or not at all, and survive kills, full disks and damage.

Everything here is one rank with an engine of few weights; test_resume.py does it with real runs. Called with a folder
this file is a program that writes checkpoints without end, in processes that a test kills.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.encoders.vit import ViT
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.leads import LEADS
from ecgfm.objectives.base import build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.signal.contract import SignalContract
from ecgfm.train import checkpoint_writer
from ecgfm.train.checkpoint import State, checkpoints, checksum, newest, read_whole, settle, step_of
from ecgfm.train.checkpoint_writer import Saver
from ecgfm.train.engine import Engine
from ecgfm.train.run import Run
from ecgfm.train.world import World

T = TypeVar("T")
ENCODER = ViT.Config(width=8, patch_samples=100, depth=1, num_heads=2)
CONTRACT = SignalContract(
    rate_hz=500, leads=LEADS, mean_mv=(0.0,) * 12, std_mv=(1.0,) * 12, highpass_hz=None, clip=5.0, window_samples=5000
)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Alone(World):
    """A world of one rank, without torch.distributed."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1

    def agree(self, error: Exception | None, *, patient: bool = False) -> None:
        """Raise it."""
        if error:
            raise error

    def from_first(self, value: T) -> T:
        """Return it."""
        return value


class FewWeights(Engine):
    """What a checkpoint needs of an engine."""

    def __init__(self) -> None:
        self.world = Alone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.objective = build_objective(JEPA.Config(min_block=4), ENCODER, 5000, 500.0)

    @torch.no_grad()
    def fill_(self, value: float) -> None:
        """Set all weights, as a step would change them."""
        for weight in self.objective.parameters():
            weight.fill_(value)

    def collect(self) -> dict[str, Tensor]:
        """Return copies of the weights, and what stands for AdamW's state."""
        whole = {f"model.{name}": tensor.clone() for name, tensor in self.objective.state_dict().items()}
        # What is not equal to itself is compared too.
        return whole | {"step": torch.tensor(3.0), "exp_avg.x": torch.tensor([[float("nan"), -0.0]])}


class Lone:
    """A run's folder, and what writes its checkpoints."""

    def __init__(self, run: Path, *, keep: int = 3, keep_every: int | None = None) -> None:
        self.run, self.engine, self.said = run, FewWeights(), list[str]()
        self.saver = Saver(self.engine, run, CONTRACT, keep=keep, keep_every=keep_every, say=self.said.append)

    def save(self, step: int) -> None:
        """Begin to write weights that are all `step`."""
        self.engine.fill_(step)
        self.saver.save(state_of(step))

    def write(self, *steps: int) -> None:
        """Write checkpoints, and wait for them."""
        for step in steps:
            self.save(step)
        self.saver.finish()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, each of which must be whole."""
        return [read_whole(folder).step for folder in checkpoints(self.run)]

    def latest(self) -> str:
        """Return the name of the newest checkpoint, as people read it."""
        return (self.run / "checkpoints" / "latest").read_text().strip()


def state_of(step: int) -> dict[str, Any]:
    """Return what the loop says of a step."""
    return {
        "step": step,
        "records_seen": 8 * step,
        "world_size": 1,
        "fingerprint": "0" * 16,
        "identity": {"seed": 0},
        "shards": [],
        "versions": {},
        "last_metrics": {"loss": 1 / (step + 2)},
        "alarms": {"spikes": [0.1, 2.0]},
    }


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


def flip(path: Path, place: int) -> None:
    """Change a bit."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def edit_step(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"records_seen": 24', '"records_seen": 25'))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: flip(folder / "engine.safetensors", 5000),
    "a flipped bit in what others read": lambda folder: flip(folder / "encoder.safetensors", -1),
    "cut short": lambda folder: os.truncate(folder / "engine.safetensors", 5000),
    "a file is gone": lambda folder: (folder / "contract.json").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "an empty state": lambda folder: os.truncate(folder / "state.json", 0),
    "half a state": lambda folder: os.truncate(folder / "state.json", 300),
    "a digit of the state": edit_step,
    "another one's files": lambda folder: shutil.copytree(
        folder.with_name("step-00000001"), folder, dirs_exist_ok=True
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_newest_checkpoint_is_kept_aside_and_the_one_before_goes_on(what: str, lone: Lone) -> None:
    lone.write(1, 2, 3)
    folder = lone.run / "checkpoints" / "step-00000003"
    DAMAGE[what](folder)
    found, notes = settle(lone.engine.world, lone.run)
    assert found and found[1].step == 2 and lone.steps() == [1, 2] and lone.latest() == "step-00000002"
    assert len(notes) == 1 and notes[0].startswith("WARNING: ") and str(folder) in notes[0]
    aside = folder.with_name("step-00000003.damaged")
    assert aside.is_dir() and str(aside) in notes[0]
    # The same again: both are kept.
    lone.write(3)
    (folder / "state.json").unlink()
    assert settle(lone.engine.world, lone.run)[0] == found and folder.with_name(f"{aside.name}-2").is_dir()


def test_where_none_is_whole_all_stay_as_they_are(lone: Lone) -> None:
    lone.write(1, 2)
    for step in (1, 2):
        flip(lone.run / "checkpoints" / f"step-0000000{step}" / "engine.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint of .* is whole: .*step-00000002.*step-00000001"):
        settle(lone.engine.world, lone.run)
    assert [folder.name for folder in checkpoints(lone.run)] == ["step-00000001", "step-00000002"]


def test_a_checkpoint_of_another_version_is_not_taken_for_damage(lone: Lone) -> None:
    lone.write(1, 2)
    path = lone.run / "checkpoints" / "step-00000002" / "state.json"
    said = json.loads(path.read_text()) | {"moon": "full"}
    path.write_text(json.dumps(said | {"checksum": checksum(said)}))
    with pytest.raises(CheckpointError, match=r"of another version of ecgfm: .*moon"):
        settle(lone.engine.world, lone.run)
    assert len(checkpoints(lone.run)) == 2


def test_what_is_deleted_by_hand_is_not_missed_and_what_is_unfinished_is_removed(lone: Lone) -> None:
    lone.write(1, 2, 3)
    folder = lone.run / "checkpoints"
    shutil.rmtree(folder / "step-00000003")
    (folder / "step-00000004.tmp").mkdir()
    (folder / "latest.tmp").write_text("step-0000")
    found, notes = settle(lone.engine.world, lone.run)
    assert found and isinstance(found[1], State) and found[1].step == 2
    assert lone.latest() == "step-00000002" and not list(folder.glob("*.tmp"))
    assert notes == [f"removed {folder / 'step-00000004.tmp'}, which was not finished"]
    shutil.rmtree(folder)
    assert settle(lone.engine.world, lone.run) == (None, [])
    lone.write(1)  # the folder, too, may go while a run writes
    assert lone.steps() == [1]


def test_kills_at_any_moment_lose_no_whole_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lone = Lone(run)
    moments = random.Random(0)
    known, interrupted = 0, 0
    program = subprocess.Popen(
        [sys.executable, __file__, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert program.stdin and program.stdout
    with program:
        for _ in range(10):
            program.stdin.write("\n")
            program.stdin.flush()
            writer = int(program.stdout.readline())
            # One more, and then anywhere in the next ones.
            until = time.monotonic() + 60
            while not any((step_of(folder) or 0) > known for folder in checkpoints(run)):
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.08))
            os.kill(writer, signal.SIGKILL)
            assert program.stdout.readline() == "killed\n"
            steps = lone.steps()  # each of them is whole
            assert steps[-1] > known
            known = steps[-1]
            assert set(range(7, known, 7)) <= set(steps)
            # The very first may have been killed before it was written down.
            if known > 1:
                assert read_whole(run / "checkpoints" / lone.latest()).step in steps[-2:]
            interrupted += any((run / "checkpoints").glob("step-*.tmp"))
        program.stdin.close()
    assert interrupted >= 3, "it was killed where there is nothing to lose"
    # Two are kept, and one more where it was killed before it removed the oldest.
    assert len([step for step in lone.steps() if step % 7]) <= 3


def write_without_end(run: Path) -> None:
    lone = Lone(run, keep=2, keep_every=7)
    found, _ = settle(lone.engine.world, run)
    step = found[1].step if found else 0
    while True:
        step += 1
        lone.save(step)


def main() -> None:
    """Start a writer for each line of the input, and print its number and how it ended."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                write_without_end(Path(sys.argv[1]))
            finally:
                os._exit(1)
        print(child, flush=True)
        print("killed" if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else "ended", flush=True)


if __name__ == "__main__":
    main()
