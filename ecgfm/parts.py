"""The folder is the registry: a part's name is the name of its file.

`ecgfm/encoders/vit.py` holds the encoder "vit"; adding a part is adding a file. Files whose name starts
with an underscore, and `base.py`, are shared code and not parts. On a command line the underscore may
be written as a hyphen.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TypeVar

from ecgfm.errors import ConfigError

T = TypeVar("T")


def names(folder: str) -> tuple[str, ...]:
    """Return the parts of a folder, such as `ecgfm.encoders`, sorted by name."""
    package = importlib.import_module(folder)
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in found if name != "base" and not name.startswith("_")))


def load(folder: str, name: str, base: type[T], *, hyphens: bool = False) -> type[T]:
    """Return the one class in `folder`/`name`.py that is a `base`.

    Args:
        folder: Such as `ecgfm.encoders`.
        name: Of the part, with underscores or hyphens.
        base: What all parts of the folder are.
        hyphens: Name the parts with hyphens in messages, where a command line calls them so.

    Raises:
        ConfigError: There is no such file; the message names the nearest ones.
    """
    known = names(folder)
    file = name.replace("-", "_")
    if file not in known:
        near = difflib.get_close_matches(file, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        listed = f"{hint} (there are: {', '.join(known)})"
        listed = listed.replace("_", "-") if hyphens else listed
        raise ConfigError(f"{name!r} is not in {folder.replace('.', '/')}/{listed}")
    module = importlib.import_module(f"{folder}.{file}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{folder}.{file} must define exactly one {base.__name__}, has {classes}"
    return classes[0]


def kind_of(part: type) -> str:
    """Return the name of a part: that of the file which defines it."""
    return part.__module__.rsplit(".", 1)[-1]
