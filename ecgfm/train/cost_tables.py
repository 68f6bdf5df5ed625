"""The plan of a run's cost as tables and as a picture."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ecgfm.eval.plots import COLORS


def show(found: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    said = f"{found['run']}, {found['precision']}, {found['gpus']:,} x {found['gpu']}, {found['network']}"
    console.print(f"[b]{said}[/b]: batch {found['batch_size']:,} windows of {found['window_s']:g} s", highlight=False)
    assumed = ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in found["assumptions"].items() if value is not None
    )
    console.print(f"assumed (--assume.*): {assumed}", highlight=False)
    here = found.get("here")
    if here:
        console.print(_summary(found, here), highlight=False)
    else:
        console.print(
            f"the batch cannot be split over {found['gpus']:,} GPUs, or one window does not fit: see the memory",
            highlight=False,
        )
    for table in (_flops_table(found), _roofline_table(found), _memory_table(found), _links_table(found)):
        console.print(table)
    fits = found["stage_that_fits"]
    console.print(
        "no stage holds the GPU's share of the batch at once: accumulate, or recompute activations"
        if fits is None
        else f"the lowest stage that holds a GPU's share of the batch at once: {fits}",
        highlight=False,
    )
    for key, title in (("scaling", "The same batch over more GPUs"), ("scaling_weak", "As many windows a GPU")):
        console.print(_scaling_table(found[key], title))
    if "measured" in found:
        console.print(_measured_table(found["measured"]))


def _summary(found: dict[str, Any], here: dict[str, Any]) -> str:
    lines = [
        f"{here['records_per_s']:,.0f} records/s, {here['tflops']:,.0f} TFLOP/s a GPU ({here['mfu']:.0%} of the peak)",
        f"{_days(here['days'])} for {here['records']:,} records; {_days(here['schedule_days'])} for the schedule's "
        f"{here['schedule_records']:,}",
        f"loader: {_gb(here['loader_gpu'])}/s a GPU, {_gb(here['loader_node'])}/s a node, "
        f"{_gb(here['loader_cluster'])}/s in all",
    ]
    if here["streamed"]:
        lines.append(f"streamed shards: every rank reads all of them, {_gb(here['loader_cluster'])}/s each")
    return "\n".join(lines)


def _flops_table(found: dict[str, Any]) -> Table:
    table = _table(f"Operations of a record, by {found['flops_by']}", "part", "kind", "GFLOP", "share")
    for row in found["flops"]:
        share = row["total"] / found["flops_per_record"]
        table.add_row(row["part"], row["kind"], f"{row['total'] / 1e9:,.3f}", f"{share:.1%}")
    table.add_row("all", "", f"{found['flops_per_record'] / 1e9:,.3f}", "")
    return table


def _roofline_table(found: dict[str, Any]) -> Table:
    title = f"Where the time must go: a micro-batch of {found['roofline_windows']:,} windows"
    table = _table(title, "part", "GFLOP", "GB", "operations", "compute ms", "memory ms", "bound by")
    for row in found["roofline"]:
        by = "compute" if row["compute_s"] > row["memory_s"] else "memory"
        table.add_row(
            row["part"],
            f"{row['flops'] / 1e9:,.1f}",
            f"{row['bytes'] / 1e9:,.2f}",
            f"{row['kernels']:,.0f}",
            f"{row['compute_s'] * 1e3:,.2f}",
            f"{row['memory_s'] * 1e3:,.2f}",
            by,
        )
    rows = found["roofline"]
    table.add_row(
        "all",
        f"{sum(row['flops'] for row in rows) / 1e9:,.1f}",
        f"{sum(row['bytes'] for row in rows) / 1e9:,.2f}",
        f"{sum(row['kernels'] for row in rows):,.0f}",
        f"{sum(row['compute_s'] for row in rows) * 1e3:,.2f}",
        f"{sum(row['memory_s'] for row in rows) * 1e3:,.2f}",
        f"{sum(row['seconds'] for row in rows) * 1e3:,.2f} ms",
    )
    if not found["compile"]:
        fused = found["fused"]
        table.caption = (
            f"norms, loss and the rest, perfectly fused: {fused['fused_bytes'] / 1e9:,.2f} GB in "
            f"{fused['fused_kernels']:,.0f} operations"
        )
    return table


def _memory_table(found: dict[str, Any]) -> Table:
    windows = found["memory"][0]["activation_windows"]
    table = _table(
        f"Memory of a GPU in GB; activations of {windows:,} windows",
        *("ZeRO", "weights", "gradients", "AdamW", "averages", "buckets", "activations", "recomputed"),
        *("largest", "largest recomputed"),
    )
    for row in found["memory"]:
        names = ("weights", "gradients", "optimizer", "averages", "buckets")
        table.add_row(
            str(row["stage"]),
            *(f"{row[name] / 1e9:,.2f}" for name in names),
            *(f"{row['activations'][kind] / 1e9:,.2f}" if kind in row["activations"] else "-" for kind in KEPT),
            *(f"{row['largest'][kind]:,}" if kind in row["largest"] else "-" for kind in KEPT),
        )
    table.caption = (
        "largest: windows of a micro-batch that fit; buckets: DeepSpeed's reduce_bucket_size of --engine.extra"
    )
    if found["precision"] == "bfloat16":
        table.caption += "; stage 3 needs bfloat16-weights or float32"
    return table


KEPT = ("kept", "recomputed")


def _links_table(found: dict[str, Any]) -> Table:
    names = [found["network"]] + [name for name in ("infiniband-200", "ethernet-100") if name != found["network"]]
    table = _table("Sent by a GPU in an optimizer step", "ZeRO", "in the node GB", "to others GB", *_ms(names))
    for row in found["links"]:
        times = (f"{row['seconds_by_network'][name] * 1e3:,.2f}" for name in names)
        table.add_row(
            str(row["stage"]), f"{row['node_bytes'] / 1e9:,.3f}", f"{row['network_bytes'] / 1e9:,.3f}", *times
        )
    return table


def _ms(names: list[str]) -> list[str]:
    return [f"{name} ms" for name in names]


def _scaling_table(rows: list[dict[str, Any]], title: str) -> Table:
    columns = ("GPUs", "windows a GPU", "step ms", "links ms", "records/s", "TFLOP/s a GPU", "efficiency", "wall")
    table = _table(title, *columns)
    for row in rows:
        if row["seconds"] is None:
            table.add_row(f"{row['gpus']:,}", "-", *[""] * 5, "cannot be split, or does not fit")
            continue
        efficiency = row["efficiency"]
        windows = f"{row['micro']:,}" + (f" x {row['accumulation']:,}" if row["accumulation"] > 1 else "")
        table.add_row(
            f"{row['gpus']:,}",
            windows,
            f"{row['seconds'] * 1e3:,.1f}",
            f"{row['link_s'] * 1e3:,.1f}",
            f"{row['records_per_s']:,.0f}",
            f"{row['tflops']:,.1f}",
            "-" if efficiency is None else f"{efficiency:.0%}",
            row["wall"],
        )
    return table


def _measured_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("Expected and measured (median)", "figure", "expected", "measured", "measured / expected")
    for row in rows:
        found = row["measured"]
        shown = ("-", "-") if found is None else (f"{found:,.4g}", f"{found / row['expected']:.2f}")
        table.add_row(row["figure"], f"{row['expected']:,.4g}", *shown)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for column in columns:
        words = column in ("part", "kind", "bound by", "wall", "figure")
        table.add_column(column, justify="left" if words else "right")
    return table


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:,.1f} h"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def draw(found: dict[str, Any]) -> Figure:
    """Return a picture: efficiency over GPUs, and memory by stage."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label, color in (("scaling", "the same batch", COLORS[0]), ("scaling_weak", "as many a GPU", COLORS[1])):
        rows = [row for row in found[key] if row["seconds"] is not None and row["efficiency"] is not None]
        left.plot([row["gpus"] for row in rows], [row["efficiency"] for row in rows], "o-", color=color, label=label)
        last = rows[-1]
        left.annotate(
            last["wall"],
            (last["gpus"], last["efficiency"]),
            (0, 6),
            textcoords="offset points",
            ha="right",
            color=color,
        )
    left.set(xscale="log", xlabel="GPUs", ylabel="records/s a GPU, over those of one", ylim=(0, 1.1))
    left.set_xticks([row["gpus"] for row in found["scaling"]], [f"{row['gpus']:,}" for row in found["scaling"]])
    left.minorticks_off()
    left.legend(loc="lower left")
    bottom = [0.0] * len(found["memory"])
    names = [str(row["stage"]) for row in found["memory"]]
    kinds = ("weights", "gradients", "optimizer", "averages", "buckets", "activations")
    for kind, color in zip(kinds, COLORS, strict=False):
        values = [(row[kind]["kept"] if kind == "activations" else row[kind]) / 1e9 for row in found["memory"]]
        right.bar(names, values, bottom=bottom, color=color, label=kind)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    right.set(xlabel="ZeRO stage", ylabel="memory of a GPU, GB")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{found['run']}, {found['gpus']:,} x {found['gpu']}, batch {found['batch_size']:,}")
    return figure
