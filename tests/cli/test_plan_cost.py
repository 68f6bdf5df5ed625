"""tools/plan.py as a user runs it: tables, JSON, a picture, and a run's own figures. Some 15 s of one processor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ecgfm import config
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.recipe_words import split
from ecgfm.train.run import Data, Run
from tools import plan

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = Run(
    encoder=ViT.Config(width=64, depth=2, num_heads=1, patch_samples=100),
    objective=JEPA.Config(min_block=4),
    data=Data(batch_size=512),
)


def settings(**changed: Any) -> plan.PlanCost:
    return plan.PlanCost(recipe=Path("recipes/jepa_vit.py"), **changed)


def test_a_recipe_is_planned_with_its_own_options(tmp_path: Path, command: Command) -> None:
    options = ("--preset", "xs", "--encoder.depth", "2", "--gpu", "A100", "--nodes", "2", "--assume.overlap", "0.5")
    done = command("tools/plan.py", "recipes/jepa_vit.py", *options, "--json", "--out", str(tmp_path / "plan.png"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["run"] == "jepa on vit" and found["batch_size"] == 2048 and found["gpus"] == 16
    assert found["assumptions"]["overlap"] == 0.5
    assert [row["stage"] for row in found["memory"]] == [0, 1, 2, 3]
    assert [row["gpus"] for row in found["scaling"]] == [1, 8, 16, 128, 1024]
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_figures_hang_together() -> None:
    found = plan.plan(settings(gpu="H100", nodes=4), SMALL)
    here = found["here"]
    assert here["loader_cluster"] == pytest.approx(here["records_per_s"] * 12 * 5000 * 2)
    assert here["loader_node"] * 4 == pytest.approx(here["loader_cluster"])
    assert here["days"] == pytest.approx(204_800_000 / here["records_per_s"] / 86_400)
    assert sum(part["total"] for part in found["flops"]) == pytest.approx(found["flops_per_record"])
    by_gpus = {row["gpus"]: row for row in found["scaling"]}
    assert by_gpus[1]["efficiency"] == 1.0 and by_gpus[32]["records_per_s"] == here["records_per_s"]
    assert by_gpus[1024]["seconds"] is None  # 512 windows are too few
    assert by_gpus[8]["efficiency"] > by_gpus[128]["efficiency"]
    assert found["scaling_weak"][-1]["efficiency"] > 0.5


def test_what_was_measured_stands_beside_what_is_expected(tmp_path: Path) -> None:
    run = replace(SMALL, out=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(run)))
    lines = [{"step": step, "records_per_s": 1000.0 * step, "memory_gb": 2.0} for step in (1, 4, 4, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = settings(measured=tmp_path, peak_tflops=0.4, bandwidth_gb_s=20.0, memory_gb=8.0, gpus=1)
    assert plan.read_run(asked, ["--data.batch-size", "256"]).data.batch_size == 256
    found = plan.plan(asked, plan.read_run(asked, []))
    rows = {row["figure"]: row for row in found["measured"]}
    assert rows["records_per_s"]["measured"] == 4000 and rows["mfu"]["measured"] is None
    assert rows["memory_gb"]["expected"] == pytest.approx(
        found["memory"][1]["states"] / 1e9 + found["memory"][1]["activations"]["kept"] / 1e9, rel=0.5
    )
    # A machine so slow is bound by what it computes.
    assert rows["mfu"]["expected"] < 0.6


def test_words_go_to_the_tool_or_to_the_recipe() -> None:
    own = ["r.py", "--gpu", "H100", "--gpus-per-node", "4", "--assume.mfu=0.4", "--out", "a.png", "--json"]
    rest = ["--engine.compile", "--steps", "3"]
    assert split([*own[:5], *rest, *own[5:]], {each.name for each in fields(plan.PlanCost)}) == (own, rest)


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="B200"):
        plan.plan(settings(gpu="H20"), SMALL)
    with pytest.raises(ConfigError, match="ethernet-100"):
        plan.plan(settings(network="token-ring"), SMALL)
    with pytest.raises(ConfigError, match="does not exist"):
        plan.read_run(plan.PlanCost(recipe=Path("recipes/none.py")), [])
    with pytest.raises(ConfigError, match="no RUN"):
        plan.read_run(plan.PlanCost(recipe=Path("recipes/probe.py")), [])
