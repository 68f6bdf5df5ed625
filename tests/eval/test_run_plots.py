"""What the picture of runs shows is what their metrics say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ecgfm.errors import ConfigError
from ecgfm.eval.run_plots import plot_runs
from ecgfm.run_folder import run_names


def write_run(folder: Path, scale: float = 1.0, **more: Any) -> Path:
    """Write the metrics of a run of five logged steps, of which the last two are in alarm, and a line cut short."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for step in range(10, 60, 10):
        rows.append({"step": step, "time": 1e9 + step, "loss": scale / step, "target_std": 0.5, "lr": 1e-3 * step})
        rows[-1] |= {"momentum": 0.99 + step / 10_000, "effective_rank": 60.0 - step, "loader_wait": 0.1}
        if step == 30:
            rows[-1] |= {"val_loss": 2 * scale / step, **more}
        if step > 30:
            rows[-1]["alarm"] = "collapse: effective_rank 5, 50 at the end of the warm-up"
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 60, "lo')
    return folder


def shown(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


def points(line: Line2D) -> list[list[float]]:
    return [np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()]


def drawn(axes: Axes, kind: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_gid() == kind]


def test_each_figure_is_drawn_against_the_step_with_its_alarms_and_skipped_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", probe_auc=0.8)
    (run / "bad_steps.jsonl").write_text('{"step": 12}\n{"step": 13}\n')
    figure = plot_runs((run,))
    panels = shown(figure)
    assert list(panels) == ["loss", "schedules", "effective rank", "spread", "probe", "waiting and utilisation"]
    steps = [10, 20, 30, 40, 50]
    loss, val_loss = [line for line in panels["loss"].lines if line.get_gid() in ("run", "figure")]
    assert points(loss) == [steps, pytest.approx([1 / step for step in steps])]
    assert points(val_loss) == [[30], pytest.approx([2 / 30])]
    (skipped,) = drawn(panels["loss"], "skipped")
    assert points(skipped)[0] == [12, 13]
    # The ticks stand below, and leave the loss its scale.
    (run / "bad_steps.jsonl").unlink()
    assert panels["loss"].get_ylim() == shown(plot_runs((run,)))["loss"].get_ylim()
    (alarm,) = drawn(panels["effective rank"], "alarm")
    assert points(alarm) == [[40, 50], [20, 10]]
    assert not drawn(panels["spread"], "alarm")
    rate, momentum = [line for line in panels["schedules"].lines if line.get_gid() in ("run", "figure")]
    assert points(rate)[1] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert points(momentum)[1] == pytest.approx([(0.01 - step / 10_000) / 0.009 for step in steps])
    assert figure.get_supxlabel() == "optimizer step; crosses: alarms; ticks below the loss: skipped steps"


def test_several_runs_are_drawn_over_each_other_in_colours_of_their_own(tmp_path: Path) -> None:
    runs = (write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", scale=3.0))
    figure = plot_runs(runs)
    first, second = drawn(shown(figure)["loss"], "run")
    assert points(second)[1] == pytest.approx([3 * value for value in points(first)[1]])
    assert first.get_color() != second.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a/run", "b/run"]


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    assert run_names((tmp_path / "x" / "one", tmp_path / "y" / "two")) == ["one", "two"]
    assert run_names((tmp_path / "x" / "one", tmp_path / "y" / "one")) == ["x/one", "y/one"]
    assert run_names((tmp_path / "one", tmp_path / "one")) == ["one", "one"]


def test_a_run_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics.jsonl does not exist; give the folder of a run"):
        plot_runs((tmp_path,))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no figures yet"):
        plot_runs((tmp_path,))
