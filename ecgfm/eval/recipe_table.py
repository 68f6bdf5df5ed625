"""What recipes come to on equal terms: a table and a picture of probes, against untrained encoders.

A recipe is pretrained with several seeds. Of each run the AUROC of every label is known, that of an untrained encoder
of the same settings, and both for the same draws of the bootstrap over patients (see `eval.probe`). The figures of a
recipe are means over its seeds; its interval is that of the mean difference, so it knows what other patients would
change and takes the seeds as they are: the standard deviation over the seeds stands beside it.

Shapes: N records, D features, R draws, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ecgfm.eval.bootstrap import Interval, interval
from ecgfm.eval.plots import COLORS, GREY
from ecgfm.hub.encoder import ECGEncoder
from ecgfm.hub.recordings import to_contract, windows
from ecgfm.leads import LEADS
from ecgfm.nn.collapse import effective_rank, uniformity
from ecgfm.shards.reader import Shards

MEAN = "mean of the labels"
"""What is told of all labels together."""
TOKEN_RECORDS = 64
"""Records whose tokens are looked at."""
NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Score:
    """The probe of one label on one run."""

    pretrained: float
    """AUROC of the run's encoder."""
    untrained: float
    """AUROC of an encoder of the same settings with random weights."""
    pretrained_R: NDArray[np.float64]
    """The same for each draw; NaN where it has none."""
    untrained_R: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """How features and tokens of the probed records fill their space."""

    feature_rank: float
    """Effective rank of the pooled features, 1 to the lesser of D and N - 1."""
    token_rank: float
    """Effective rank of the tokens of some of the records."""
    spread: float
    """Share of the features' mean square that is not the mean feature's: 0 when all records have one feature."""
    uniformity: float
    """Of the pooled features: 0 when all point one way, about -4 when they are spread evenly."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one run."""

    recipe: str
    seed: int
    reason: str | None = None
    """Why there is no encoder to probe."""
    scores: Mapping[str, Score]
    """By label; empty where the run failed."""
    pretrained: Collapse | None = None
    untrained: Collapse | None = None


@dataclass(frozen=True, kw_only=True)
class LabelFigure:
    """One label of a recipe, over its seeds."""

    label: str
    pretrained: float
    """Mean AUROC."""
    deviation: float | None
    """Standard deviation over the seeds; None of a single one."""
    untrained: float
    difference: Interval
    """Pretrained less untrained, paired."""
    learnt: bool
    """Whether pretraining was given this label."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recipe in the table."""

    recipe: str
    encoder: str
    seeds: int
    """Runs that were probed."""
    reason: str | None
    """Why a run, or all of them, could not be."""
    figures: tuple[LabelFigure, ...]
    """Of all labels together, and of each; empty where no run was probed."""
    pretrained: Collapse | None
    """Means over the seeds."""
    untrained: Collapse | None


def collapse(
    encoder: ECGEncoder, shards: Shards, index_N: NDArray[np.int64], features_ND: NDArray[np.float32]
) -> Collapse:
    """Return how an encoder's features and tokens fill their space.

    Args:
        encoder: In evaluation mode.
        shards: Of the records.
        index_N: The records that `features_ND` are of; tokens are taken of the first window of some of them.
        features_ND: As `embed_shards` gives them.
    """
    contract = encoder.signal
    first: dict[int, list[torch.Tensor]] = {}
    for index in index_N[:: max(1, len(index_N) // TOKEN_RECORDS)].tolist():
        one = shards.sample(index)
        ready = to_contract(
            one.signal_LT, rate_hz=one.rate_hz, leads=LEADS, unit="mV", contract=contract, name=one.record
        )
        start, stop = next(windows(ready.shape[-1], contract.window_samples, encoder.encoder.config.patch_samples))
        first.setdefault(stop - start, []).append(torch.from_numpy(ready[:, start:stop]))
    with torch.no_grad():
        tokens = [encoder(encoder.normalise(torch.stack(signals))).flatten(0, 1) for signals in first.values()]
    features = torch.from_numpy(features_ND)
    centre = features.mean(dim=0)
    return Collapse(
        feature_rank=float(effective_rank(features)),
        token_rank=float(effective_rank(torch.cat(tokens))),
        spread=float((features - centre).square().sum(dim=1).mean() / features.square().sum(dim=1).mean()),
        uniformity=float(uniformity(features)),
    )


def summarise(
    outcomes: Sequence[Outcome], encoders: Mapping[str, str], learnt: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Return a row for each recipe: the largest difference from untrained first, what failed last.

    Args:
        outcomes: Of all runs.
        encoders: What encoder each recipe has, and windows of what length.
        learnt: The labels that each recipe's objective is given; those that are given none may be left out.
    """
    rows = []
    for recipe in dict.fromkeys(outcome.recipe for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.recipe == recipe]
        probed = [run for run in runs if run.reason is None]
        reasons = dict.fromkeys(run.reason for run in runs if run.reason is not None)
        given = learnt.get(recipe, ())
        rows.append(
            Row(
                recipe=recipe,
                encoder=encoders[recipe],
                seeds=len(probed),
                reason="; ".join(reasons) or None,
                figures=_figures([run.scores for run in probed], given) if probed else (),
                pretrained=_mean([run.pretrained for run in probed if run.pretrained]),
                untrained=_mean([run.untrained for run in probed if run.untrained]),
            )
        )
    return sorted(rows, key=lambda row: -row.figures[0].difference.value if row.figures else np.inf)


def _figures(runs: Sequence[Mapping[str, Score]], given: Sequence[str]) -> tuple[LabelFigure, ...]:
    """Return the figures of all labels together, and of each."""
    labels = list(runs[0])
    assert all(list(run) == labels for run in runs), "runs were probed for different labels"
    of_label = [[run[label] for run in runs] for label in labels]
    together = [[score for scores in of_label for score in scores], *of_label]
    figures = []
    for label, scores in zip([MEAN, *labels], together, strict=True):
        by_seed_S = np.mean(np.reshape([score.pretrained for score in scores], (-1, len(runs))), axis=0)
        untrained = float(np.mean([score.untrained for score in scores]))
        draws_SR = np.stack([score.pretrained_R - score.untrained_R for score in scores])
        figures.append(
            LabelFigure(
                label=label,
                pretrained=float(by_seed_S.mean()),
                deviation=float(by_seed_S.std(ddof=1)) if len(runs) > 1 else None,
                untrained=untrained,
                # A draw without a positive record of one label says nothing of the mean of all of them.
                difference=interval(float(by_seed_S.mean()) - untrained, draws_SR.mean(axis=0)),
                learnt=bool(set(labels) & set(given)) if label == MEAN else label in given,
            )
        )
    return tuple(figures)


def _mean(figures: Sequence[Collapse]) -> Collapse | None:
    if not figures:
        return None
    names = Collapse.__dataclass_fields__
    return Collapse(**{name: float(np.mean([getattr(one, name) for one in figures])) for name in names})


def as_markdown(rows: Sequence[Row], caption: Sequence[str]) -> str:
    """Return the tables of a comparison: all labels together, each label, and how features fill their space.

    Args:
        rows: Of `summarise`.
        caption: Lines that say what was done.
    """
    probed = [row for row in rows if row.figures]
    parts = ["\n".join(f"- {line}" for line in caption) + "\n"]
    overall: list[list[str]] = []
    for row in rows:
        if not row.figures:
            overall.append([row.recipe, row.encoder, "0", NONE, NONE, NONE, row.reason or NONE])
            continue
        mean = row.figures[0]
        note = _verdict(mean.difference) + (f"; {row.reason}" if row.reason else "")
        overall.append([row.recipe, row.encoder, str(row.seeds), *_cells(mean), note])
    header = ["recipe", "encoder, window", "seeds", "AUROC", "untrained", "difference", "against untrained"]
    parts.append(f"## {MEAN.capitalize()}\n\n" + _table(header, overall))
    if not probed:
        return "\n".join(parts)
    header = ["recipe", "AUROC", "untrained", "difference", "against untrained"]
    for place, first in enumerate(probed[0].figures[1:], start=1):
        cells = [
            [row.recipe, *_cells(row.figures[place]), _verdict(row.figures[place].difference)]
            for row in sorted(probed, key=lambda row: -row.figures[place].difference.value)
        ]
        parts.append(f"## {first.label}\n\n" + _table(header, cells))
    names = {
        "feature_rank": "rank of features",
        "token_rank": "rank of tokens",
        "spread": "spread of features",
        "uniformity": "uniformity",
    }
    cells = [[row.recipe, *(_pair(row, name) for name in names)] for row in probed]
    parts.append("## Pretrained (untrained)\n\n" + _table(["recipe", *names.values()], cells))
    return "\n".join(parts)


def plot_recipes(rows: Sequence[Row]) -> Figure:
    """Return the AUROC of each recipe, pretrained and untrained, and their difference with its interval.

    A panel is all labels together, or one of them; recipes stand in the order of the rows.
    """
    probed = [row for row in rows if row.figures]
    labels = [figure.label for figure in probed[0].figures] if probed else []
    columns = max(1, len(labels))
    figure = Figure(figsize=(2.2 + 2.9 * columns, 2.4 + 0.56 * len(probed)), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False, sharey=True)
    heights = range(len(probed) - 1, -1, -1)
    for place, label in enumerate(labels):
        upper, lower = panels[:, place]
        for height, row in zip(heights, probed, strict=True):
            found = row.figures[place]
            name = {"label": "pretrained, and deviation over seeds"} if height == 0 and place == 0 else {}
            other = {"label": "untrained"} if name else {}
            upper.errorbar(
                found.pretrained, height, xerr=found.deviation, fmt="o", color=COLORS[0], markersize=5, zorder=3, **name
            )
            upper.plot(found.untrained, height, "o", color=COLORS[1], markersize=5, fillstyle="none", **other)
            low, high = found.difference.low, found.difference.high
            color = COLORS[2] if low > 0 else COLORS[1] if high < 0 else GREY
            lower.plot([low, high], [height] * 2, color=color, linewidth=2, solid_capstyle="round")
            lower.plot(found.difference.value, height, "o", color=color, markersize=5)
            if found.learnt:
                upper.annotate("+", (found.pretrained, height), (4, 3), textcoords="offset points", fontsize=8)
        title = label.replace(":", ": ", 1)
        upper.set_title(title if len(title) <= 30 else title[:27] + "...", loc="left", fontsize=9, weight="bold")
        upper.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        lower.axvline(0.0, color="black", linewidth=1, zorder=0)
        upper.set_xlabel("AUROC", fontsize=8)
        lower.set_xlabel("difference, 95 % interval", fontsize=8)
        for axes in (upper, lower):
            axes.set_yticks(list(heights), [row.recipe for row in probed], fontsize=8)
            axes.set_ylim(-0.6, len(probed) - 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(axis="x", labelsize=8)
            axes.grid(color="#e6e6e6", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    if labels:
        figure.legend(loc="outside upper right", frameon=False, ncols=2, fontsize=8)
    return figure


def _cells(figure: LabelFigure) -> list[str]:
    deviation = "" if figure.deviation is None else f" +- {figure.deviation:.3f}"
    difference = figure.difference
    return [
        f"{figure.pretrained:.3f}{deviation}{' (learnt)' if figure.learnt else ''}",
        f"{figure.untrained:.3f}",
        f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})",
    ]


def _verdict(difference: Interval) -> str:
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "not told apart"


def _pair(row: Row, name: str) -> str:
    if row.pretrained is None or row.untrained is None:
        return NONE
    return f"{getattr(row.pretrained, name):.3g} ({getattr(row.untrained, name):.3g})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
