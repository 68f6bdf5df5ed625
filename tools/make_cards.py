"""Write the card of each pretraining recipe into model_cards/, from its docstring and settings.

python tools/make_cards.py           # write them
python tools/make_cards.py --check   # say which are not as they would be written
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

import torch
import tyro
from huggingface_hub import ModelCardData

from ecgfm import config
from ecgfm.encoders.base import Encoder, build_encoder
from ecgfm.errors import ConfigError
from ecgfm.hub.card import LICENCE, recipe_text, tags
from ecgfm.hub.card_sections import table
from ecgfm.hub.recipe_notes import pretraining_recipes, read_notes
from ecgfm.shards.manifest import write_bytes
from ecgfm.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
TEMPLATE = "template.md"
KEPT = ("README.md", TEMPLATE)


@dataclass(frozen=True, kw_only=True)
class MakeCards:
    """Write the cards of the recipes."""

    check: bool = False
    """Write nothing, and fail when a card is not as it would be written."""


def main() -> None:
    """Write or compare all cards, and remove or name those of recipes that are gone."""
    settings = tyro.cli(MakeCards, description=__doc__)
    cards = dict(recipe_cards())
    gone = [path for path in sorted(CARDS.glob("*.md")) if path.name not in (*KEPT, *cards)]
    other = [name for name, text in cards.items() if read(CARDS / name) != text] + [path.name for path in gone]
    if settings.check:
        if other:
            raise ConfigError(f"model_cards: {', '.join(other)} not as python tools/make_cards.py writes them; run it")
        return
    for path in gone:
        path.unlink()
    for name, text in cards.items():
        write_bytes(CARDS / name, text.encode())
    print(f"{len(cards)} cards in {CARDS}, {len(other)} changed")


def read(path: Path) -> str | None:
    """Return a card, None where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def recipe_cards() -> Iterator[tuple[str, str]]:
    """Yield file name and text of the card of each recipe of pretraining."""
    for path in pretraining_recipes(ROOT / "recipes"):
        yield f"{path.stem}.md", recipe_card(path, presets(path))


def presets(path: Path) -> dict[str, Run]:
    """Return the runs of a recipe by name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {"default": module.RUN, **getattr(module, "PRESETS", {})}


def recipe_card(path: Path, runs: Mapping[str, Run]) -> str:
    """Return the card of a recipe."""
    notes = read_notes(path)
    run = runs["default"]
    kinds = sorted({str(config.to_dict(one.encoder)["kind"]) for one in runs.values()})
    methods = sorted({str(config.to_dict(one.objective)["kind"]) for one in runs.values()})
    data = ModelCardData(
        license=LICENCE,
        library_name="ecgfm",
        pipeline_tag="feature-extraction",
        tags=tags("foundation-model", *kinds, *methods),
    )
    docstring = path.read_text(encoding="utf-8")
    command = re.search(r"^    (deepspeed .*)$", docstring, re.MULTILINE)
    if not command:
        raise ConfigError(f"{path}: its docstring shows no command")
    flags = re.sub(r"--out \S+", f"--out runs/{path.stem}", command[1])
    weights = next((one.data.weights for one in runs.values() if one.data.weights), ())
    mixture = f"The mixture of the paper, in its presets: {', '.join(weights)}." if weights else ""
    text = Template((CARDS / TEMPLATE).read_text(encoding="utf-8")).substitute(
        front_matter=data.to_yaml(),
        title=notes.title,
        source=notes.source,
        name=path.stem,
        hub_name=f"ecg-{path.stem.replace('_', '-')}",
        command=flags,
        recipe=recipe_text(notes),
        leads=config.to_dict(run.encoder)["num_leads"],
        presets=_presets(runs),
        mixture=mixture,
    )
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _presets(runs: Mapping[str, Run]) -> str:
    head = (
        "preset",
        "encoder",
        "parameters",
        "objective",
        "window",
        "windows a step",
        "steps",
        "highest rate",
        "precision",
    )
    rows = [
        (
            f"`{name}`" if name != "default" else "(default)",
            str(config.to_dict(run.encoder)["kind"]),
            f"{parameters(run.encoder):,}",
            str(config.to_dict(run.objective)["kind"]),
            f"{run.data.window_s:g} s",
            f"{run.data.batch_size:,}",
            f"{run.optim.schedule_steps:,}",
            f"{run.optim.lr:g}",
            run.engine.precision,
        )
        for name, run in runs.items()
    ]
    return table(head, rows)


@cache
def parameters(encoder: Encoder.Config) -> int:
    """Return the number of an encoder's parameters, without memory for them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_encoder(encoder).parameters())


if __name__ == "__main__":
    config.run_command(main)
