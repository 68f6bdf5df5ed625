"""Command lines that have words of a tool's own and words of a recipe."""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Sequence, Set
from pathlib import Path

from ecgfm.errors import ConfigError
from ecgfm.train.run import Run


def split(words: Sequence[str], own_names: Set[str]) -> tuple[list[str], list[str]]:
    """Return the words that are the tool's, and those that are the recipe's.

    Args:
        words: Of the command line. Those before the first option are the tool's.
        own_names: Fields of the tool's settings; of nested ones the outer name.
    """
    own_names = own_names | {"help"}
    own = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    rest: list[str] = []
    goes_to = own
    for word in words[len(own) :]:
        if word == "-h" or word.startswith("--"):
            name = word.removeprefix("--").removeprefix("no-").split("=")[0].split(".")[0].replace("-", "_")
            goes_to = own if word == "-h" or name in own_names else rest
        goes_to.append(word)
    return own, rest


def load_recipe(path: Path) -> tuple[Run, dict[str, Run]]:
    """Return a recipe's default run and its presets.

    Raises:
        ConfigError: There is no such file, or it does not pretrain.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; give a recipe, such as recipes/jepa_vit.py, first")
    recipe = runpy.run_path(str(path))
    default = recipe.get("RUN")
    if not isinstance(default, Run):
        raise ConfigError(f"{path} is no recipe: it has no RUN")
    return default, recipe.get("PRESETS", {})
