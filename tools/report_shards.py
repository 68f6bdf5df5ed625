"""Write what a paper says about its data: counts, refusals, flags, labels, licences and citations of folders of shards.

    python tools/report_shards.py shards/* --out data.md

Everything comes from the manifests. The ending of --out says how tables are written: .md or .tex. Beside it a picture
of the same name shows records kept and refused, and ages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tyro
from matplotlib.figure import Figure
from rich.console import Console

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.eval.plots import COLORS, GREY, save
from ecgfm.shards.leaks import check_leaks
from ecgfm.shards.manifest import Manifest, manifest_sha256, read_manifest, write_bytes

SCHEMES = ("challenge", "scp-superdiagnostic", "scp-rhythm", "code15", "shared18", "chapman-rhythm")
"""Schemes of labels that have a table; free text and long lists of codes have none."""
Rows = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write what a paper says about its data."""

    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that tools/convert.py wrote."""
    out: Path
    """File to write, ending in .md or .tex."""
    dpi: int = 200
    """Dots per inch of the picture."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise ConfigError("give one or more folders of shards")
        if self.out.suffix not in (".md", ".tex"):
            raise ConfigError(f"--out {self.out}: the ending must be .md or .tex")


def main() -> None:
    """Write the tables and the picture."""
    settings = tyro.cli(Report, description=__doc__)
    manifests = [read_manifest(folder) for folder in settings.shards]
    style = _Style("latex" if settings.out.suffix == ".tex" else "markdown")
    text = "\n".join(_sections(settings, manifests, style)) + "\n"
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(settings.out, text.encode())
    picture = settings.out.with_suffix(".png")
    save(_picture(manifests), picture, dpi=settings.dpi)
    Console().print(f"{settings.out} and {picture}", soft_wrap=True)


class _Style:
    """Writes headings, paragraphs and tables."""

    def __init__(self, kind: Literal["markdown", "latex"]) -> None:
        self.latex = kind == "latex"

    def heading(self, text: str) -> str:
        return f"\\subsection*{{{self.text(text)}}}\n" if self.latex else f"\n## {text}\n"

    def text(self, text: str) -> str:
        if not self.latex:
            return text.replace("|", "\\|")
        return "".join(
            {"\\": "\\textbackslash{}"}.get(mark, f"\\{mark}" if mark in "&%$#_{}" else mark) for mark in text
        )

    def items(self, texts: Sequence[str]) -> str:
        lines = [self.text(text) for text in texts]
        if not self.latex:
            return "\n".join(f"- {line}" for line in lines) + "\n"
        body = "\n".join(f"\\item {line}" for line in lines)
        return f"\\begin{{itemize}}\n{body}\n\\end{{itemize}}\n"

    def table(self, head: Sequence[str], rows: Rows) -> str:
        lines = [[self.text(cell) for cell in row] for row in (head, *rows)]
        if not self.latex:
            rule = ["---", *["---:"] * (len(head) - 1)]
            return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:])) + "\n"
        body = "\n".join(f"{' & '.join(row)} \\\\" for row in lines[1:])
        columns = "l" + "r" * (len(head) - 1)
        return (
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{' & '.join(lines[0])} \\\\\n\\midrule\n{body}\n"
            "\\bottomrule\n\\end{tabular}\n"
        )


def _sections(settings: Report, manifests: Sequence[Manifest], style: _Style) -> Iterator[str]:
    names = [manifest.database for manifest in manifests]
    yield style.heading("Records")
    head = ["database", "published", "seen", "kept", "segments", "hours", "patients", "female %", "age (quartiles)"]
    yield style.table(head, [_record_row(manifest) for manifest in manifests])
    yield style.text(
        "Kept are recordings of which at least one segment was kept; a recording without a patient counts as one. "
        "Shares of women and ages are of recordings for which they are known."
    )
    for title, field in (
        ("Refused recordings", "refused"),
        ("Refused segments of kept recordings", "refused_segments"),
    ):
        yield from _counts(title, field, manifests, style)
    yield from _counts("Segments with a quality flag", "flags", manifests, style)
    yield from _counts("Recordings whose files were corrected by a rule", "mended", manifests, style)
    yield from _counts("Recordings in which a lead was computed from I and II", "derived", manifests, style)
    yield style.heading("What was done to the signals")
    yield style.table(["database", *_policy(manifests[0])], [[m.database, *_policy(m).values()] for m in manifests])
    for scheme in SCHEMES:
        codes = sorted({code for manifest in manifests for code in manifest.labels.get(scheme, {})})
        labelled = [manifest for manifest in manifests if scheme in manifest.labels]
        if codes:
            yield style.heading(f"Recordings by label ({scheme})")
            rows = [[code, *(f"{m.labels[scheme].get(code, 0):,}" for m in labelled)] for code in codes]
            yield style.table(["label", *(m.database for m in labelled)], rows)
    yield style.heading("Recordings that are there twice")
    report = check_leaks(settings.shards)
    rows = [[" and ".join(item.databases), f"{item.count:,}"] for item in report.doubled]
    yield style.table(["databases", "recordings"], rows) if rows else "None.\n"
    yield style.heading("Sources")
    yield style.items([f"{m.title}, version {m.version}, {m.licence}: {m.citation}" for m in manifests])
    yield style.heading("Reproduction")
    rows = [[name, manifest_sha256(folder)] for name, folder in zip(names, settings.shards, strict=True)]
    yield style.text(f"Converted with ecgfm {manifests[0].ecgfm}. SHA-256 of the manifests, which name every shard:\n")
    yield style.table(["database", "SHA-256"], rows)


def _record_row(manifest: Manifest) -> list[str]:
    sexes = manifest.sex.get("female", 0) + manifest.sex.get("male", 0)
    ages = _quartiles({int(age): count for age, count in manifest.ages.items()})
    return [
        manifest.database,
        f"{manifest.expected_records:,}" if manifest.expected_records else "",
        f"{manifest.seen:,}",
        f"{manifest.kept:,}",
        f"{manifest.segments:,}",
        f"{manifest.kept_s / 3600:,.1f}",
        f"{manifest.patients:,}",
        f"{100 * manifest.sex.get('female', 0) / sexes:.0f}" if sexes else "",
        f"{ages[1]} ({ages[0]} to {ages[2]})" if ages else "",
    ]


def _quartiles(ages: dict[int, int]) -> tuple[int, int, int] | None:
    """Return the first, second and third quartile of whole years."""
    total = sum(ages.values())
    if not total:
        return None
    found: list[int] = []
    below = 0
    for age in sorted(ages):
        below += ages[age]
        while len(found) < 3 and below >= total * (len(found) + 1) / 4:
            found.append(age)
    return found[0], found[1], found[2]


def _counts(title: str, field: str, manifests: Sequence[Manifest], style: _Style) -> Iterator[str]:
    """Yield a table of what was counted, a row a reason and a column a database; nothing where all is 0."""
    counted = [manifest for manifest in manifests if getattr(manifest, field)]
    reasons = sorted({reason for manifest in counted for reason in getattr(manifest, field)})
    if reasons:
        yield style.heading(title)
        rows = [[reason, *(f"{getattr(m, field).get(reason, 0):,}" for m in counted)] for reason in reasons]
        yield style.table(["", *(manifest.database for manifest in counted)], rows)


def _policy(manifest: Manifest) -> dict[str, str]:
    signal = manifest.options["signal"]
    return {
        "rate Hz": "as published" if signal["rate_hz"] is None else f"{signal['rate_hz']:g}",
        "high-pass Hz": "none" if signal["highpass_hz"] is None else f"{signal['highpass_hz']:g}",
        "gaps filled up to s": f"{signal['max_gap_s']:g}",
        "shortest s": f"{signal['min_s']:g}",
        "segments s": "whole" if signal["segment_s"] is None else f"{signal['segment_s']:g}",
        "flags refused": ", ".join(signal["refuse"]) or "none",
    }


def _picture(manifests: Sequence[Manifest]) -> Figure:
    """Return bars of records kept and refused, and the distribution of ages."""
    figure = Figure(figsize=(11, 1.6 + 0.35 * len(manifests)), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [manifest.database for manifest in manifests][::-1]
    kept = [manifest.kept for manifest in manifests][::-1]
    refused = [manifest.seen - manifest.kept for manifest in manifests][::-1]
    left.barh(names, kept, color=COLORS[0], label="kept")
    left.barh(names, refused, left=kept, color=COLORS[1], label="refused")
    left.set(xscale="log", xlabel="recordings", xlim=(0.8, None))
    left.legend(frameon=False, fontsize=8)
    left.set_title("recordings", loc="left", fontsize=11, weight="bold")
    edges = list(range(0, 101, 10))
    for index, manifest in enumerate(manifests):
        ages = {int(age): count for age, count in manifest.ages.items()}
        total = sum(ages.values())
        if total:
            shares = [100 * sum(ages.get(age, 0) for age in range(low, high)) / total for low, high in pairwise(edges)]
            color = COLORS[index] if index < len(COLORS) else GREY
            right.plot(
                [low + 5 for low in edges[:-1]], shares, color=color, marker="o", markersize=3, label=manifest.database
            )
    right.set(xlabel="age in years", ylabel="% of its recordings", ylim=(0, None))
    if right.lines:
        right.legend(frameon=False, fontsize=7, ncols=2)
    right.set_title("ages", loc="left", fontsize=11, weight="bold")
    return figure


if __name__ == "__main__":
    config.run_command(main)
