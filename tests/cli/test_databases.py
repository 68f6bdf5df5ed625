"""tools/databases.py tells what there is, and all about one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from ecgfm import parts

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_every_database_has_a_line(command: Command) -> None:
    done = command("tools/databases.py")
    assert done.returncode == 0, done.stderr
    for name in parts.names("ecgfm.databases"):
        assert f" {name.replace('_', '-')} " in done.stdout


def test_one_database_is_told_with_its_rules_and_its_manual(command: Command) -> None:
    done = command("tools/databases.py", "ptb")
    assert done.returncode == 0, done.stderr
    assert "--mend gain-2000000-is-1000" in done.stdout and "tools/download.py ptb" in done.stdout
    assert "Such records are refused as implausible" in done.stdout
    assert "did you mean ptb" in command("tools/databases.py", "ptbb").stderr
