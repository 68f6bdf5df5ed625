"""Which objective runs with which encoder: what the README says is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.base import Encoder, check_window
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, Progress, build_objective
from tools import pairs

WINDOWS = 3


def takes_a_step(objective: Objective.Config, encoder: Encoder.Config) -> bool:
    """Tell whether a pair is built and one step moves its encoder; fail where it is built and does not."""
    try:
        built = build_objective(objective, encoder, pairs.SAMPLES, pairs.RATE_HZ)
    except ConfigError as error:
        assert parts.kind_of(type(objective)) in str(error) or parts.kind_of(type(encoder)) in str(error)
        return False
    labels = len(built.labels(objective))
    batch = Batch(
        signal_BLT=torch.randn(WINDOWS, 12, pairs.SAMPLES),
        microvolt_per_count_B=torch.ones(WINDOWS),
        database_B=torch.zeros(WINDOWS, dtype=torch.int64),
        labels_BC=torch.eye(WINDOWS, labels) if labels else None,
        rate_hz=pairs.RATE_HZ,
        mean_mv_BL=torch.zeros(WINDOWS, 12),
        std_mv_BL=torch.ones(WINDOWS, 12),
    )
    before = torch.cat([weight.detach().flatten() for weight in built.encoder.parameters()])
    optimizer = torch.optim.SGD((weight for weight in built.parameters() if weight.requires_grad), lr=0.1)
    draws = Draws(seed=1, step=0, rows=(0, WINDOWS), all_rows=WINDOWS, device=torch.device("cpu"))
    torch.autograd.backward(built(built.views(batch, draws), Progress(step=0, schedule_steps=1))["loss"])
    optimizer.step()
    after = torch.cat([weight.detach().flatten() for weight in built.encoder.parameters()])
    assert after.isfinite().all() and not torch.equal(after, before), (objective, encoder)
    return True


def test_every_pair_takes_a_step_or_is_refused_when_built_as_the_readme_says() -> None:
    columns = list(pairs.encoders().values())
    assert {parts.kind_of(type(encoder)) for encoder in columns} == set(parts.names("ecgfm.encoders"))
    for encoder in columns:
        check_window(encoder, pairs.SAMPLES)  # as a run does; what is refused is not refused for its length
    found = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, objective in pairs.objectives().items():
            found[name] = [takes_a_step(objective, encoder) for encoder in columns]
    assert found.keys() == set(parts.names("ecgfm.objectives"))
    assert pairs.table(found) == pairs.in_readme()[1], "write it anew: python tools/pairs.py --write"


def test_the_tool_tells_a_pair_that_runs_from_one_that_is_refused() -> None:
    objectives, encoders = pairs.objectives(), pairs.encoders()
    assert pairs.runs(objectives["mae"], encoders["`vit`"])
    assert not pairs.runs(objectives["cpc"], encoders["`s4`"])
    assert pairs.runs(objectives["cpc"], encoders["`s4 --encoder.causal`"])


def test_objectives_that_take_the_same_encoders_share_a_line() -> None:
    width = len(pairs.encoders())
    yes, no = [True] * width, [False] * width
    lines = pairs.table({"a": no, "b": yes, "c": no}).splitlines()
    assert lines[2:] == ["| `b` |" + " yes |" * width, "| `a`, `c` |" + " - |" * width]


def test_a_readme_without_the_marks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "README.md"
    path.write_text("nothing")
    monkeypatch.setattr(pairs, "README", path)
    with pytest.raises(ConfigError, match="needs the lines"):
        pairs.in_readme()
