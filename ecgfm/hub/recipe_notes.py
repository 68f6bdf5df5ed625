"""What a recipe's docstring says: the method with its paper, what paper and code do, and where ours differs.

A docstring is a title with the source in brackets, a command, remarks, and items that begin as "Paper says:", "Code
says:" or "Ours:". A card repeats the items, so that they are written in one place.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from ecgfm.errors import ConfigError

# "Paper says:", "Code says (none is public; ...):", "Mehari 2022 (https://...) say, for the ECG:", "Ours:".
ITEM = re.compile(r"^(?P<who>Ours|[A-Z].*?\bsays?\b.*?):\s", re.MULTILINE)
TITLE = re.compile(r"(?P<title>.*?) \((?P<source>.*)\)\.?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RecipeNotes:
    """What a recipe's docstring says."""

    name: str
    """The file's name without its ending."""
    title: str
    """The method and the network."""
    source: str
    """Authors, year and address of the paper."""
    items: tuple[tuple[str, str], ...]
    """Who says, and what; the last is Ours, where it differs from the others."""


def read_notes(path: Path) -> RecipeNotes:
    """Return what the docstring of a recipe's file says; nothing is run.

    Raises:
        ConfigError: The file is missing, or its docstring does not say where it differs from the paper.
    """
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"{path} is no recipe: {error}") from error
    head = TITLE.fullmatch(text.partition("\n\n")[0])
    found = list(ITEM.finditer(text))
    if not head or len(found) < 2 or found[-1]["who"] != "Ours":
        raise ConfigError(
            f"{path} is no recipe: its docstring needs a title with the paper in brackets, and paragraphs that begin "
            'with "Paper says:" and, last, "Ours:"'
        )
    ends = [*(one.start() for one in found[1:]), len(text)]
    items = [(one["who"], _joined(text[one.end() : end])) for one, end in zip(found, ends, strict=True)]
    return RecipeNotes(name=path.stem, title=_joined(head["title"]), source=_joined(head["source"]), items=tuple(items))


def pretraining_recipes(folder: Path) -> list[Path]:
    """Return the recipes of a folder that pretrain, sorted: those that define RUN. Nothing is run."""
    recipes = sorted(folder.glob("*.py"))
    return [path for path in recipes if re.search(r"^RUN = ", path.read_text(encoding="utf-8"), re.MULTILINE)]


def notes_of(recipes: Path, name: str | None) -> RecipeNotes | None:
    """Return the notes of the recipe with the file name that a checkpoint wrote down; None when it is not there."""
    if not name or not re.fullmatch(r"\w+\.py", name) or not (recipes / name).is_file():
        return None
    return read_notes(recipes / name)


def _joined(text: str) -> str:
    """Return lines as one."""
    return " ".join(text.split())
