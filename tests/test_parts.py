"""The folder is the registry: file names are part names."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecgfm import parts
from ecgfm.data.augment.base import Augmentation
from ecgfm.databases.base import Database
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective

REAL: dict[str, type[Any]] = {
    "ecgfm.data.augment": Augmentation,
    "ecgfm.databases": Database,
    "ecgfm.encoders": Encoder,
    "ecgfm.objectives": Objective,
}
FOLDER_NUMBER = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of a package with three parts."""
    name = f"folder_of_parts_{next(FOLDER_NUMBER)}"
    package = tmp_path / name
    package.mkdir()
    files = {
        "__init__": "",
        "base": "class Base: ...",
        "_shared": "from .base import Base\nclass Shared(Base): ...",
        "slow_wave": "from .base import Base\nfrom ._shared import Shared\nclass SlowWave(Shared): ...",
        "fast_wave": "from .base import Base\nclass FastWave(Base): ...\nclass Settings: ...",
        "double": "from .base import Base\nclass One(Base): ...\nclass Two(Base): ...",
    }
    for file, text in files.items():
        (package / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def base(folder: str) -> type[Any]:
    __import__(f"{folder}.base")
    found: type[Any] = sys.modules[f"{folder}.base"].Base
    return found


def test_every_file_but_base_and_underscores_is_a_part(folder: str) -> None:
    assert parts.names(folder) == ("double", "fast_wave", "slow_wave")


def test_a_new_file_is_a_new_part_at_once(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder / "new.py").write_text("from .base import Base\nclass New(Base): ...")
    assert "new" in parts.names(folder)
    assert parts.load(folder, "new", base(folder)).__name__ == "New"


@pytest.mark.parametrize("name", ["slow_wave", "slow-wave"])
def test_a_part_is_the_class_its_own_file_defines(folder: str, name: str) -> None:
    part = parts.load(folder, name, base(folder))
    assert part.__name__ == "SlowWave"  # and not Shared or Base, which the file imports
    assert parts.kind_of(part) == "slow_wave"


def test_classes_that_are_not_of_the_base_are_passed_over(folder: str) -> None:
    assert parts.load(folder, "fast_wave", base(folder)).__name__ == "FastWave"


def test_two_parts_in_one_file_are_our_fault(folder: str) -> None:
    with pytest.raises(AssertionError, match="exactly one Base"):
        parts.load(folder, "double", base(folder))


def test_an_unknown_name_is_refused_with_the_nearest_and_all(folder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parts.load(folder, "slow-wav", base(folder))
    message = str(caught.value)
    assert "'slow-wav'" in message and "did you mean slow_wave" in message
    assert "double, fast_wave, slow_wave" in message
    with pytest.raises(ConfigError, match=r"did you mean slow-wave\? \(there are: double, fast-wave, slow-wave\)"):
        parts.load(folder, "slow_wav", base(folder), hyphens=True)


@pytest.mark.parametrize("name", ["base", "_shared", "__init__", "..errors", "os", ""])
def test_nothing_but_a_part_can_be_loaded(folder: str, name: str) -> None:
    with pytest.raises(ConfigError, match="is not in"):
        parts.load(folder, name, base(folder))


@pytest.mark.parametrize(("real", "name"), [(real, name) for real in REAL for name in parts.names(real)])
def test_every_part_of_the_library_loads_under_its_name(real: str, name: str) -> None:
    part = parts.load(real, name, REAL[real])
    assert issubclass(part, REAL[real])
    assert parts.kind_of(part) == name
