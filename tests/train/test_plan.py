"""The plan of a run: counts and bytes from the meta device are those of the real model and of a real checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ecgfm import parts
from ecgfm.errors import CheckpointError, ConfigError
from ecgfm.objectives.base import Objective
from ecgfm.shards.leaks import LeakReport, require_no_leak
from ecgfm.shards.reader import Shards
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.optim import Optim, build_optimizer
from ecgfm.train.plan import dry_run, plan, run_loader, run_objective, signal_contract, sizes
from ecgfm.train.run import Data, Run
from tests.objectives.takers import encoder_for

FREE = 10**12
NAMES = parts.names("ecgfm.objectives")


@pytest.fixture(params=NAMES)
def run(request: pytest.FixtureRequest, training_shards: Path, tmp_path: Path) -> Run:
    """Return a small run of each objective."""
    objective = parts.load("ecgfm.objectives", request.param, Objective).Config()  # type: ignore[type-abstract]
    return Run(
        encoder=encoder_for(objective, 5000, 500.0),
        objective=objective,
        data=Data(shards=(str(training_shards),), batch_size=8),
        optim=Optim(schedule_steps=60),
        out=tmp_path / "run",
        steps=45,
    )


def lines(run: Run, *, ranks: int = 1, start: int = 0, free: int = FREE) -> str:
    """Return the plan as one text."""
    shards = Shards(run.data.shards)
    contract = signal_contract(run, shards)
    loader = run_loader(run, shards, contract, rank=0, ranks=ranks, position=0, pin_memory=False)
    leaks: LeakReport = require_no_leak([Path(folder) for folder in run.data.shards])
    return "\n".join(plan(run, loader, sizes(run_objective(run, contract)), leaks, ranks, start, free))


def test_the_meta_device_gives_the_sizes_of_the_real_model(run: Run) -> None:
    contract = signal_contract(run, Shards(run.data.shards))
    real = run_objective(run, contract)
    with torch.device("meta"):
        planned = run_objective(run, contract)
    assert all(weight.is_meta for weight in planned.parameters())
    assert sizes(planned) == sizes(real)
    assert sizes(real).encoder == sum(weight.numel() for weight in real.published().parameters())

    # Against the bytes that AdamW holds after a step; its step counters, four bytes a tensor, are not counted.
    optimizer = build_optimizer(run.optim, real)
    for weight in real.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    assert sizes(real).optimizer_bytes == sum(value.nbytes for value in state)


def test_the_plan_counts_windows_epochs_and_hours(run: Run) -> None:
    text = lines(run)
    assert "steps: 0 to 45 of schedules of 60" in text
    assert "batch: 8 windows = 1 ranks x 8 x 1 micro-batches" in text
    assert "windows: 360 of 10 s, 1.0 h to see" in text
    # 30 records of 10.1 to 13 s: 346.5 s; 360 windows are 12 times through them.
    assert "data: georgia 30 records, 0.1 h of signal, 12 epochs at the end" in text
    assert "leaks: none among 30 records" in text
    assert "windows: 120 of 10 s" in lines(run, start=30)


def test_optimizer_state_is_split_over_the_ranks_from_stage_1_on(run: Run) -> None:
    def state(stage: int, ranks: int) -> str:
        there = replace(run, engine=EngineConfig(zero_stage=stage))  # type: ignore[arg-type]
        return lines(there, ranks=ranks).split("optimizer state ")[1].split(";")[0]

    whole = state(0, 1)
    part, everything = whole.split(" of ")
    assert part == everything
    assert state(0, 4) == whole and state(1, 1) == whole
    share, total = (float(word.split()[0]) for word in state(1, 4).split(" of "))
    assert share == pytest.approx(total / 4, abs=0.06)  # one digit is printed


def test_a_disk_without_room_for_one_checkpoint_is_refused_and_for_all_is_warned_of(run: Run) -> None:
    size = sizes(run_objective(run, signal_contract(run, Shards(run.data.shards)))).checkpoint_bytes
    with pytest.raises(CheckpointError, match="a checkpoint takes about"):
        lines(run, free=size - 1)
    assert "warning: the disk has no room for 4 checkpoints" in lines(run, free=size)
    assert "warning" not in lines(run, free=4 * size)


def test_ranks_that_cannot_share_the_batch_are_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Shards(run.data.shards)
    for ranks in (2, 8):
        dry_run(replace(run, dry_run=True, ranks=ranks), shards, signal_contract(run, shards), None)
        assert f"{ranks} ranks x {8 // ranks} x 1" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="not a multiple of 3 ranks"):
        dry_run(replace(run, dry_run=True, ranks=3), shards, signal_contract(run, shards), None)
    assert not run.out.exists()


def test_a_folder_that_cannot_be_made_is_found(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shards = Shards(run.data.shards)
    with pytest.raises(CheckpointError, match="file is no folder"):
        dry_run(replace(run, out=tmp_path / "file" / "run"), shards, signal_contract(run, shards), None)


def test_the_number_of_ranks_is_for_the_plan_alone(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"--ranks 2 .* is for --dry-run"):
        replace(run, ranks=2)
