"""Figures of a logged step, and that they reach every board, from two ranks through the real engine."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ecgfm.errors import ConfigError
from ecgfm.train.engine import Engine
from ecgfm.train.figures import Meter, WindowCost
from ecgfm.train.monitor import MonitorConfig, check_monitor
from tests.parity.launch import launch_ranks

# Stands for wandb, which is not installed for the tests: what DeepSpeed's monitor calls is written down.
WANDB = """
import json, os
class Error(Exception): ...
def _note(**what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"rank": os.environ["RANK"], **what}) + "\\n")
def init(**settings):
    if os.environ.get("REFUSE"):
        raise Error("no key is configured")
    _note(init=settings, dir=os.environ["WANDB_DIR"], console=os.environ["WANDB_CONSOLE"])
def log(data, step=None, commit=None):
    _note(log=data, step=step)
"""
Launch = Callable[..., Any]


class TwoRanks:
    """The first of two ranks, of which the other waited for a share of the time and used 64 GB."""

    rank, size, device = 0, 2, torch.device("cpu")

    def __init__(self, wait: float) -> None:
        self.wait = wait

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of both ranks' values."""
        other = values.clone().double()
        other[-4:] = torch.tensor([0.0, 0.0, self.wait, 64.0])
        return (values.double() + other) / 2


def meter(peak_tflops: float | None = None, wait: float = 0.0) -> Meter:
    engine = SimpleNamespace(world=TwoRanks(wait), gradient_norm=lambda: 0.5)
    return Meter(cast(Engine, engine), WindowCost(tokens=200, flops=10**9, peak_tflops=peak_tflops))


def test_waiting_and_memory_are_those_of_the_rank_that_has_most() -> None:
    ours = meter(wait=0.9)
    ours.step(torch.tensor([1.0, 3.0]), 8, good=True)
    figures = ours.figures(1, {"loss": torch.tensor(3.0), "spread": torch.tensor(0.25)}, {"lr": 0.1})
    assert figures["loader_wait"] == pytest.approx(0.9) and figures["memory_gb"] == pytest.approx(64)
    assert (figures["loss"], figures["spread"]) == (2.0, 0.25)
    assert "mfu" not in figures


def test_a_figure_of_a_database_is_a_quotient_of_means_and_one_without_windows_is_left_out() -> None:
    ours = meter()
    ours.step(torch.ones(1), 8, good=True)
    losses = {"loss": 1.0, "mse.ptb": 0.6, "mse.ptb over": 0.25, "mse.ludb": 0.0, "mse.ludb over": 0.0}
    figures = ours.figures(1, {name: torch.tensor(value) for name, value in losses.items()}, {})
    assert figures["mse.ptb"] == pytest.approx(2.4, rel=1e-6)
    assert not [name for name in figures if name.startswith("mse.") and name != "mse.ptb"]


def test_waiting_is_a_share_of_the_time_and_begins_anew_with_each_logged_step() -> None:
    ours = meter()
    before = time.perf_counter()
    ours.pause()
    with ours.waiting():
        time.sleep(0.2)
    ours.step(torch.ones(1), 8, good=True)
    share = ours.figures(1, {"loss": torch.ones(())}, {})["loader_wait"]
    assert 0.2 / (time.perf_counter() - before) <= share <= 1.0
    assert ours.figures(2, {"loss": torch.ones(())}, {})["loader_wait"] == 0
    with ours.waiting():
        time.sleep(0.01)
    ours.pause()
    assert ours.figures(3, {"loss": torch.ones(())}, {})["loader_wait"] == 0


def test_speeds_are_multiples_of_the_records_a_second() -> None:
    ours = meter(peak_tflops=2.0)
    ours.step(torch.ones(1), 8, good=True)
    figures = ours.figures(1, {"loss": torch.ones(())}, {})
    rate = figures["records_per_s"]
    assert rate > 0 and figures["tokens_per_s"] == pytest.approx(200 * rate)
    # Of one device, and there are two; 10^9 operations a window.
    assert figures["tflops"] == pytest.approx(rate / 2 * 1e9 / 1e12)
    assert figures["mfu"] == pytest.approx(figures["tflops"] / 2.0)


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wandb that writes to the returned file where Python finds it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    for name in ("WANDB_DIR", "WANDB_CONSOLE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "notes"


def test_every_board_has_the_figures_of_the_metrics_from_rank_0_alone(
    tmp_path: Path, boards: Path, tiny: list[str]
) -> None:
    out = tmp_path / "run"
    words = f"--monitor.wandb ecg --monitor.csv --monitor.peak-tflops 0.5 --steps 3 --out {out}"
    launch_ranks(2, ["recipes/jepa_vit.py", *tiny, *words.split()], tmp_path / "logs")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert abs(time.time() - line.pop("time")) < 600
        assert line["tokens_per_s"] == pytest.approx(50 * line["records_per_s"])
        assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)
        assert 0 <= line["loader_wait"] <= 1 and 0.1 < line["memory_gb"] < 100
        assert {"feature_rank", "feature_std", "uniformity", "alignment", "target_std_least"} <= line.keys()

    notes = [json.loads(line) for line in boards.read_text().splitlines()]
    assert {note["rank"] for note in notes} == {"0"}
    assert notes[0]["init"] == {"project": "ecg", "group": "run", "entity": None}
    assert notes[0]["dir"] == str(out) and notes[0]["console"] == "off"
    seen: dict[int, dict[str, float]] = {}
    for note in notes[1:]:
        seen.setdefault(note["step"], {}).update(note["log"])
    assert [{"step": step, **figures} for step, figures in seen.items()] == lines

    files = {path.stem: list(csv.reader(path.open())) for path in (out / "csv").iterdir()}
    assert files.keys() == lines[0].keys() - {"step"}
    assert [float(value) for _, value in files["loss"][1:]] == [line["loss"] for line in lines]


def test_a_board_that_does_not_let_us_in_ends_the_run_on_all_ranks(
    tmp_path: Path, boards: Path, tiny: list[str], start_recipe: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE", "1")
    process = start_recipe(2, *tiny, "--monitor.wandb", "ecg", "--out", tmp_path / "run", log=tmp_path / "log")
    assert process.wait(timeout=240) == 1
    said = (tmp_path / "log").read_text()
    assert "--monitor.wandb ecg: no key is configured; run `wandb login`, or set WANDB_MODE=offline" in said
    assert "Traceback" not in said.split("subprocess")[0]


def test_a_board_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_monitor(MonitorConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--monitor.wandb ecg: wandb is not installed; pip install wandb"):
        check_monitor(MonitorConfig(wandb="ecg"))


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"wandb": ""}, "--monitor.wandb"),
        ({"wandb_team": "us"}, "--monitor.wandb-team"),
        ({"peak_tflops": 0.0}, "--monitor.peak-tflops"),
        ({"peak_tflops": float("inf")}, "--monitor.peak-tflops"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        MonitorConfig(**wrong)
