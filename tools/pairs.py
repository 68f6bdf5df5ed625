"""Tell which objective runs with which encoder, by trying each pair.

    python tools/pairs.py            # print the table
    python tools/pairs.py --write    # put it into README.md

Each objective is built with each encoder, small ones, on windows of 4 s at 500 Hz, and takes the loss and the gradient
of a step. A new objective or encoder is found by its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from ecgfm import config, parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, Progress, build_objective

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- tools/pairs.py writes this table. -->", "<!-- Until here. -->"
ROWS, SAMPLES, RATE_HZ = 4, 2000, 500.0

# Small enough to try all pairs in seconds; what is not named here is tried with its defaults.
ENCODERS: dict[str, dict[str, Any]] = {
    "inception1d": {"width": 16, "depth": 3, "bottleneck": 4},
    "lstm": {"width": 16, "depth": 1, "patch_samples": 25, "kernels": (25,), "strides": (25,)},
    "resnet1d": {"width": 16, "layers": (1, 1), "patch_samples": 10, "stem_stride": 5, "stem_pool": False},
    "s4": {"width": 16, "depth": 1, "patch_samples": 25, "kernels": (25,), "strides": (25,)},
    "ts_cnn": {"width": 16, "channels": (4, 4, 4, 4, 4, 4), "spatial": 8},
    "u_resnet": {"width": 16, "widths": (8, 8), "strides": (5, 5), "patch_samples": 25},
    "vit": {"width": 16, "depth": 1, "num_heads": 2},
    "vit_leadtime": {"width": 16, "depth": 1, "num_heads": 2},
    "xresnet1d": {"width": 32, "layers": (1, 1), "patch_samples": 8},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "advmask": {"projector": (16, 8), "masker_widths": (4, 4)},
    "byol": {"hidden": 16, "projection": 8},
    "dino": {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8},
    "jepa": {"predictor_width": 16, "predictor_depth": 1, "predictor_heads": 2, "min_block": 2},
    "lejepa": {"projector": (16, 8), "num_directions": 16},
    "mae": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    "moco": {"queue": 64},
    "moco_v3": {"projector": (16, 8), "predictor": (16, 8)},
    "simclr": {"projector": (16, 8)},
    "vicreg": {"expander": (16, 8)},
}
# Settings that make another encoder of one, as far as an objective can tell: its column has their option.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"s4": ("--encoder.causal", {"causal": True})}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Tell which objective runs with which encoder."""

    write: bool = False
    """Put the table into README.md instead of printing it."""


def main() -> None:
    """Try all pairs and print or write the table."""
    settings = tyro.cli(Pairs, description=__doc__)
    columns = encoders()
    text = table(
        {name: [runs(objective, encoder) for encoder in columns.values()] for name, objective in objectives().items()}
    )
    if not settings.write:
        print(text, end="")
        return
    before, _, after = in_readme()
    README.write_text(f"{before}{text}{after}", encoding="utf-8")


def in_readme() -> tuple[str, str, str]:
    """Return the README's text before the table, the table, and the text after it.

    Raises:
        ConfigError: The marks of its beginning and end are not there.
    """
    text = README.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"{README} needs the lines {BEGIN!r} and {END!r} around the table")
    before, rest = text.split(f"{BEGIN}\n")
    found, after = rest.split(END)
    return f"{before}{BEGIN}\n", found, f"{END}{after}"


def encoders() -> dict[str, Encoder.Config]:
    """Return small settings of each encoder of the folder, and of its variants, by what heads their column."""
    found: dict[str, Encoder.Config] = {}
    for name in parts.names("ecgfm.encoders"):
        kind = parts.load("ecgfm.encoders", name, Encoder).Config  # type: ignore[type-abstract]
        found[f"`{name}`"] = kind(**ENCODERS.get(name, {}))
        if name in VARIANTS:
            option, values = VARIANTS[name]
            found[f"`{name} {option}`"] = replace(found[f"`{name}`"], **values)
    return found


def objectives() -> dict[str, Objective.Config]:
    """Return small settings of each objective of the folder, by its name."""
    return {
        name: parts.load("ecgfm.objectives", name, Objective).Config(**OBJECTIVES.get(name, {}))  # type: ignore[type-abstract]
        for name in parts.names("ecgfm.objectives")
    }


def runs(objective: Objective.Config, encoder: Encoder.Config) -> bool:
    """Tell whether an objective takes an encoder: False where the pair is refused when it is built.

    A pair that is not refused must give a loss that is finite and a gradient for the encoder.
    """
    try:
        built = build_objective(objective, encoder, SAMPLES, RATE_HZ)
    except ConfigError:
        return False
    names = built.labels(built.config)
    batch = Batch(
        signal_BLT=torch.randn(ROWS, encoder.num_leads, SAMPLES, generator=torch.Generator().manual_seed(0)),
        microvolt_per_count_B=torch.ones(ROWS),
        database_B=torch.zeros(ROWS, dtype=torch.int64),
        labels_BC=torch.arange(ROWS * len(names)).remainder(2).float().view(ROWS, -1) if names else None,
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.zeros(ROWS, encoder.num_leads),
        std_mv_BL=torch.ones(ROWS, encoder.num_leads),
    )
    draws = Draws(seed=0, step=0, rows=(0, ROWS), all_rows=ROWS, device=torch.device("cpu"))
    loss = built(built.views(batch, draws), Progress(step=0, schedule_steps=1))["loss"]
    torch.autograd.backward(loss)
    slopes = [weight.grad for weight in built.encoder.parameters() if weight.grad is not None]
    assert math.isfinite(loss.item()) and any(bool(slope.any()) for slope in slopes), (objective, encoder)
    return True


def table(runs_with: Mapping[str, Sequence[bool]]) -> str:
    """Return the table in Markdown: a line for each set of objectives that take the same encoders.

    Args:
        runs_with: Of each objective, whether it takes each of `encoders`.
    """
    lines: dict[tuple[bool, ...], list[str]] = {}
    for name, answers in runs_with.items():
        lines.setdefault(tuple(answers), []).append(f"`{name}`")
    columns = list(encoders())
    rows = [("", *columns), ("---", *[":-:"] * len(columns))]
    for answers, names in sorted(lines.items(), key=lambda line: -sum(line[0])):
        rows.append((", ".join(names), *("yes" if answer else "-" for answer in answers)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    config.run_command(main)
