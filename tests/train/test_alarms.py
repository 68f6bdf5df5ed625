"""Bad steps through the real engine on two ranks, and the alarms on curves that are sick or well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ecgfm.data.loader import Loader
from ecgfm.errors import ConfigError, TrainingError
from ecgfm.shards.reader import Shards
from ecgfm.train.alarms import Alarms, Watch

ROOT = Path(__file__).resolve().parents[2]
BATCH, WINDOW = 8, 5000
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run_failing(tiny: list[str], run_ranks: Callable[..., list[int]]) -> Run:
    """Return a function that trains on two ranks with bad steps; it returns the ranks' status and all output."""

    def run(out: Path, steps: str, what: str, rank: int, *words: str) -> tuple[int, str]:
        log = out.with_suffix(".log")
        log.unlink(missing_ok=True)
        script = ("tests/train/failing_recipe.py", *tiny, *words, "--out", out)
        first, second = run_ranks(2, *script, log=log, FAIL_STEPS=steps, FAIL_WHAT=what, FAIL_RANK=str(rank))
        assert first == second, log.read_text()[-3000:]
        return first, log.read_text()

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def content(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return weights, optimizer state and target of a checkpoint."""
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "engine.safetensors")


@pytest.mark.parametrize(
    ("stage", "what", "words"),
    [("0", "loss", ["--optim.clip-norm", "0.1"]), ("1", "gradient", []), ("2", "loss", ["--engine.accumulation", "2"])],
)
def test_a_bad_step_of_one_rank_moves_nothing_on_any(
    tmp_path: Path, training_shards: Path, run_failing: Run, stage: str, what: str, words: list[str]
) -> None:
    out = tmp_path / "run"
    options = ["--engine.zero-stage", stage, "--steps", "4", "--checkpoint-every", "1", "--keep-checkpoints", "9"]
    status, said = run_failing(out, "3", what, 1, *options, *words)
    assert status == 0, said[-3000:]
    assert f"step 3: skipped, its {what} is not finite" in said
    before, bad, after = (content(out, step) for step in (2, 3, 4))
    assert before.keys() == bad.keys()
    assert {"step", "model.target.norm.weight", "exp_avg.encoder.norm.weight"} <= bad.keys()
    assert all(torch.equal(before[name], bad[name]) for name in before)
    assert not all(torch.equal(bad[name], after[name]) for name in bad)

    metrics = lines(out / "metrics.jsonl")
    assert ["loss" in line for line in metrics] == [True, True, False, True]
    assert [line.get("skipped_steps") for line in metrics] == [None, None, 1, 1]

    (line,) = lines(out / "bad_steps.jsonl")
    assert (line["step"], line["not_finite"]) == (3, what)
    shards = Shards([training_shards])
    number = {shards.about(index)["record"]: index for index in range(len(shards))}
    listed = [shards.counts(number[place["record"]])[:, place["start_sample"] :] for place in line["records"]]
    seen = []
    for micro in range(2 if "--engine.accumulation" in words else 1):
        # A gradient cannot be traced to its rank: all ranks' records are listed then.
        for rank in (1,) if what == "loss" else (0, 1):
            accumulation = 2 if "--engine.accumulation" in words else 1
            loader = Loader(
                shards,
                window_samples=WINDOW,
                batch_size=BATCH,
                accumulation=accumulation,
                rank=rank,
                world_size=2,
                seed=0,
            )
            seen += list(loader.read(2 * BATCH + micro * BATCH // accumulation).signal_BLT.numpy())
    assert len(seen) == len(listed)
    assert all((one == other[:, :WINDOW]).all() for one, other in zip(seen, listed, strict=True))


def test_too_many_bad_steps_end_the_run_and_are_counted_over_a_restart(tmp_path: Path, run_failing: Run) -> None:
    out = tmp_path / "run"
    words = ["--alarms.max-bad-steps", "3", "--checkpoint-every", "2"]
    # Steps 4 to 6 are bad. The first launch ends after 4, of itself.
    status, said = run_failing(out, "2 4 5 6", "loss", 0, *words, "--steps", "4")
    assert status == 0, said[-3000:]
    status, said = run_failing(out, "2 4 5 6", "loss", 0, *words, "--steps", "9")
    assert status == 1
    bad = lines(out / "bad_steps.jsonl")
    assert [line["step"] for line in bad] == [2, 4, 5, 6]
    first = bad[1]["records"][0]
    place = f"step 4, {first['database']} {first['record']} from sample {first['start_sample']}"
    assert "of 3 steps in a row is not finite" in said and place in said
    assert "Traceback" not in said
    # From the checkpoint of step 4 again: the same steps are bad, and stand there once.
    status, said = run_failing(out, "2 4 5", "loss", 0, *words, "--steps", "6")
    assert status == 0, said[-3000:]
    assert [line["step"] for line in lines(out / "bad_steps.jsonl")] == [2, 4, 5]


def watch(**thresholds: Any) -> Watch:
    return Watch(Alarms(**thresholds), warmup_steps=10, memory={})


def test_a_healthy_curve_raises_no_alarm() -> None:
    # A laptop run on synthetic records: the loss falls by two thirds with noise, rank and std stay.
    healthy = watch()
    for step in range(1, 201):
        figures = {
            "loss": 0.3 + 0.55 * 0.98**step + 0.05 * (step % 3),
            "effective_rank": 54.0 + step % 4,
            "target_std": 0.6 + 0.08 * 0.99**step,
            "feature_rank": 5.0 + step % 3,
            "feature_std": 0.15 + 0.02 * (step % 2),
            "uniformity": -0.3 - 0.05 * (step % 2),
            "target_entropy": 0.9 - 0.002 * step,
            "usage_entropy": 1.0,
        }
        assert healthy.alarms(step, figures) == ()


@pytest.mark.parametrize("name", ["effective_rank", "feature_rank", "target_std", "feature_std"])
def test_a_collapse_is_told_from_the_end_of_the_warm_up(name: str) -> None:
    sick = watch()
    # Before the warm-up's end anything goes, and is no reference.
    for step, value in ((5, 900.0), (9, 0.1), (10, 50.0), (20, 10.1)):
        assert sick.alarms(step, {"loss": 1.0, name: value}) == ()
    (alarm,) = sick.alarms(30, {"loss": 1.0, name: 9.9})
    assert alarm == f"collapse: {name} 9.9, 50 at the end of the warm-up"
    assert sick.alarms(40, {"loss": 1.0, name: 10.1}) == ()


def test_features_that_draw_together_are_a_collapse() -> None:
    sick = watch()
    for step, value in ((5, -3.0), (10, -1.5), (20, -0.031), (30, -2.9)):
        assert sick.alarms(step, {"uniformity": value}) == ()
    assert sick.alarms(40, {"uniformity": -0.029}) == ("collapse: uniformity -0.029, -1.5 at the end of the warm-up",)


def test_the_entropy_of_targets_has_two_ends_and_that_of_their_use_one() -> None:
    sick = watch()
    assert sick.alarms(9, {"target_entropy": 0.0, "usage_entropy": 0.0}) == ()
    assert sick.alarms(10, {"target_entropy": 0.5, "usage_entropy": 1.0}) == ()
    (low,) = sick.alarms(11, {"target_entropy": 0.01})
    (high,) = sick.alarms(12, {"target_entropy": 0.99})
    (unused,) = sick.alarms(13, {"target_entropy": 0.5, "usage_entropy": 0.0})
    assert "target_entropy 0.01" in low and "one class takes all" in low
    assert "no target prefers any class" in high
    assert "usage_entropy 0" in unused


def test_the_verdict_says_which_figure_it_was() -> None:
    sick = watch(stop_after=1)
    sick.alarms(10, {"feature_rank": 6.0, "target_entropy": 0.5})
    verdict = sick.verdict(sick.alarms(11, {"feature_rank": 1.0, "target_entropy": 1.0}))
    assert "collapse: feature_rank 1, 6 at the end" in str(verdict) and "target_entropy 1 " in str(verdict)


def test_a_spike_is_told_from_the_median_and_not_from_a_spike_before() -> None:
    sick = watch()
    for step in range(1, 13):
        assert sick.alarms(step, {"loss": 1.0 + 0.1 * (step % 2)}) == ()
    assert sick.alarms(13, {"loss": 2.9}) == ()
    assert sick.alarms(14, {"loss": 40.0})[0].startswith("spike: loss 40, usually 1")
    assert sick.alarms(15, {"loss": 40.0})[0].startswith("spike: loss 40, usually 1")


def test_a_negative_loss_never_spikes() -> None:
    similarity = watch()
    assert not any(similarity.alarms(step, {"loss": -0.9 + 0.1 * (step % 5)}) for step in range(1, 60))


def test_what_is_remembered_in_a_checkpoint_gives_the_same_alarms() -> None:
    figures = [{"loss": 1.0 + (step == 31) * 9, "effective_rank": 60.0 - step, "target_std": 1.0} for step in range(60)]
    whole = watch(rank_share=0.5, stop_after=3)
    expected = [(alarms := whole.alarms(step, line), str(whole.verdict(alarms))) for step, line in enumerate(figures)]
    assert any(alarms for alarms, _ in expected) and any("--alarms.stop-after 3" in text for _, text in expected)
    for cut in range(0, 60, 7):
        first = watch(rank_share=0.5, stop_after=3)
        for step in range(cut):
            first.alarms(step, figures[step])
        again = Watch(first.config, 10, json.loads(json.dumps(first.memory())))
        found = [(alarms := again.alarms(step, figures[step]), str(again.verdict(alarms))) for step in range(cut, 60)]
        assert found == expected[cut:]


def test_alarms_only_warn_unless_they_are_told_to_stop() -> None:
    for limit in (None, 2):
        sick = watch(stop_after=limit)
        sick.alarms(10, {"loss": 1.0, "effective_rank": 50.0})
        for step in range(11, 16):
            verdict = sick.verdict(sick.alarms(step, {"loss": 1.0, "effective_rank": 1.0}))
            assert (verdict is None) == (limit is None or step < 12)
            assert verdict is None or isinstance(verdict, TrainingError)


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"max_bad_steps": 0}, "--alarms.max-bad-steps"),
        ({"rank_share": 1.0}, "--alarms.rank-share"),
        ({"std_share": -0.1}, "--alarms.std-share"),
        ({"uniformity_share": 1.0}, "--alarms.uniformity-share"),
        ({"entropy": (0.5, 0.5)}, "--alarms.entropy"),
        ({"entropy": (-0.1, 0.5)}, "--alarms.entropy"),
        ({"spike": 1.0}, "--alarms.spike"),
        ({"stop_after": 0}, "--alarms.stop-after"),
    ],
)
def test_thresholds_that_cannot_work_are_refused(wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        Alarms(**wrong)
