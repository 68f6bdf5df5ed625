"""Which checkpoint a run goes on from, when some are damaged, unfinished, of another version or gone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecgfm.errors import CheckpointError
from ecgfm.run_folder import checkpoints
from ecgfm.train import checkpoint
from ecgfm.train.checkpoint import State, checksum, settle
from tests.train.lone import Lone, flip


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lone]:
    made = Lone(tmp_path / "run")
    yield made
    made.saver.close()


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


def test_a_bad_sector_is_damage_and_a_missing_permission_is_not(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    lone.write(1, 2)
    sound = checkpoint.sha256

    def fail_with(number: int) -> Callable[[Path], str]:
        def read(path: Path) -> str:
            if path.parent.name == "step-00000002" and path.name == "engine.safetensors":
                raise OSError(number, os.strerror(number))
            return sound(path)

        return read

    monkeypatch.setattr(checkpoint, "sha256", fail_with(errno.EACCES))
    with pytest.raises(CheckpointError, match=r"engine\.safetensors cannot be read: Permission denied"):
        settle(lone.engine.world, lone.run)
    assert len(checkpoints(lone.run)) == 2
    monkeypatch.setattr(checkpoint, "sha256", fail_with(errno.EIO))
    found, notes = settle(lone.engine.world, lone.run)
    assert found and found[1].step == 1 and "cannot be read: Input/output error" in notes[0]


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
