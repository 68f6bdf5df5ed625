"""tools/check_leaks.py as a user runs it, on shards of real recordings.

No record of PTB-XL is at hand in two packagings, so records of the Challenge's copy are written anew as another
database might have them: counts halved and rounded, another lead order, the gain that belongs to it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ecgfm.databases.base import load_database
from ecgfm.leads import LEADS
from ecgfm.shards.writer import Options, convert

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_copy_of_held_out_recordings_ends_with_status_1(
    tmp_path: Path, ecg_data: Path, write_challenge: Callable[..., Path], command: Command
) -> None:
    held_out = load_database("challenge-ptb-xl")
    source = ecg_data / "challenge-2021" / "training" / "ptb-xl"
    convert(held_out, source, tmp_path / "held-out", Options())
    order = [3, 0, 1, 2, 11, 10, 9, 8, 7, 6, 5, 4]
    for number, ref in enumerate(sorted(held_out.refs(source), key=lambda ref: ref.record)[:2]):
        counts_LT = np.rint(held_out.read(ref).counts_LT[order] / 2).astype(np.int16)
        names = tuple(LEADS[index] for index in order)
        write_challenge(tmp_path / "copy", f"E{number + 1:05d}", counts_LT, leads=names, gain="500.0(0)/mV")
    georgia = load_database("georgia")
    convert(georgia, tmp_path / "copy", tmp_path / "mixture", Options())
    convert(georgia, ecg_data / "challenge-2021" / "training" / "georgia", tmp_path / "georgia", Options())
    leaking = command("tools/check_leaks.py", tmp_path / "mixture", "--held-out", tmp_path / "held-out")
    assert leaking.returncode == 1
    assert "2 leaks" in leaking.stderr and "E00001" in leaking.stdout and "HR06000" in leaking.stdout
    clean = command("tools/check_leaks.py", tmp_path / "georgia", "--held-out", tmp_path / "held-out")
    assert clean.returncode == 0, clean.stderr
    assert "no leak" in clean.stdout and "not compared with PTB-XL" in clean.stdout
    doubled = command("tools/check_leaks.py", tmp_path / "mixture", tmp_path / "mixture", tmp_path / "georgia")
    assert doubled.returncode == 0 and "doubled" not in doubled.stdout


@pytest.mark.parametrize("tool", ["tools/check_leaks.py", "tools/check_shards.py"])
def test_no_folder_at_all_is_not_passed(tool: str, command: Command) -> None:
    # So it comes of a pattern in a script that matches nothing.
    done = command(tool)
    assert done.returncode == 2 and "give one or more folders of shards" in done.stderr
