"""The scripts of slurm/ under a real Slurm: warned, preempted, cancelled; resumed to the bits of a whole run."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ecgfm.run_folder import checkpoints

if TYPE_CHECKING:
    from tests.cluster.conftest import Slurm

Start = Callable[..., "subprocess.Popen[str]"]
STEPS = 60
# A checkpoint a step takes longer than the step: there is time for a signal before the end.
SLOW = ["--optim.schedule-steps", str(STEPS), "--checkpoint-every", "1"]


def steps(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


def test_a_warned_and_preempted_run_on_two_nodes_ends_with_the_losses_of_a_whole_one(
    tmp_path: Path, slurm: Slurm, start_recipe: Start, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, whole, log, whole_log = (tmp_path / name for name in ("run", "whole", "log", "whole.log"))
    job = slurm.submit("pretrain.sbatch", log, "recipes/jepa_vit.py", *tiny, *SLOW, "--out", run, options="--nodes=2")
    slurm.wait_for_steps(job, run, 3, log)
    slurm("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 sends before the end of the time
    slurm.wait(job, "PENDING", log)
    first = steps(run)
    slurm.wait(job, "RUNNING", log)
    slurm.wait_for_steps(job, run, first + 3, log)
    urgent = slurm(
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--output=/dev/null",
        "--wrap",
        "sleep 1",
    )
    slurm.wait(urgent, "COMPLETED", log)
    second = steps(run)
    slurm.wait(job, "COMPLETED", log)
    text = log.read_text()
    assert 3 <= first < second < STEPS, text
    for words in (
        f"stopped at step {first} by SIGUSR1",
        f"going on from step {first}",
        f"stopped at step {second} by SIGTERM",
        f"going on from step {second}",
        "start 3, 2 ranks on n[1-2]",
    ):
        assert words in text, text
    assert slurm.field(job, "Restarts") == "2"
    assert start_recipe(2, *tiny, *SLOW[:2], "--out", whole, log=whole_log).wait(timeout=240) == 0
    assert len(losses(run)) == STEPS and losses(run) == losses(whole)


def test_a_run_that_is_requeued_by_hand_or_warned_while_it_starts_goes_on(
    tmp_path: Path, slurm: Slurm, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # The script repeats the warning every two seconds, which is as many steps as fit into that.
    words = ["recipes/jepa_vit.py", *tiny, *SLOW, "--optim.schedule-steps", "200", "--out", str(run)]
    job = slurm.submit("pretrain.sbatch", log, *words, options="--ntasks-per-node=2")
    slurm.wait(job, "RUNNING", log)
    time.sleep(2)
    slurm("scancel", "--batch", "--signal=USR1", job)  # long before the first step
    slurm.wait(job, "PENDING", log)
    assert 1 <= steps(run) < 200, log.read_text()
    slurm.wait(job, "RUNNING", log)
    slurm.wait_for_steps(job, run, steps(run) + 2, log)
    slurm("scontrol", "requeue", job)
    slurm.wait(job, "PENDING", log)
    slurm.wait(job, "COMPLETED", log)
    assert len(losses(run)) == 200
    assert json.loads((run / "checkpoints" / "step-00000200" / "state.json").read_text())["world_size"] == 2


def test_a_cancelled_run_saves_and_stays_cancelled(tmp_path: Path, slurm: Slurm, tiny: list[str]) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    job = slurm.submit("pretrain.sbatch", log, "recipes/jepa_vit.py", *tiny, *SLOW, "--out", run)
    slurm.wait_for_steps(job, run, 3, log)
    slurm("scancel", job)
    slurm.wait(job, "CANCELLED", log)
    stopped = steps(run)
    time.sleep(3)
    assert slurm.field(job, "JobState") == "CANCELLED"
    assert slurm.field(job, "Restarts") == "0"
    assert (run / "checkpoints" / f"step-{stopped:08d}").is_dir(), log.read_text()


def test_a_run_that_fails_is_not_started_again(tmp_path: Path, slurm: Slurm, tiny: list[str]) -> None:
    log = tmp_path / "log"
    words = ["recipes/jepa_vit.py", *tiny, "--data.window-s", "9.9", "--out", str(tmp_path / "run")]
    job = slurm.submit("pretrain.sbatch", log, *words, options="--ntasks-per-node=2")
    slurm.wait(job, "FAILED", log)
    assert slurm.field(job, "ExitCode") == "1:0" and "are not filled by the steps" in log.read_text()
    job = slurm.submit("pretrain.sbatch", tmp_path / "other", "recipes/nothing.py")
    slurm.wait(job, "FAILED", tmp_path / "other")
    assert "must be a command" in (tmp_path / "other").read_text()


def test_an_array_job_converts_a_database_a_task(tmp_path: Path, slurm: Slurm, training_shards: Path) -> None:
    data, out, log = tmp_path / "data", tmp_path / "shards", tmp_path / "log"
    data.mkdir()
    (data / "georgia").symlink_to(training_shards.parent / "georgia")
    words = [str(data), str(out), "georgia", "nothing"]
    job = slurm.submit("convert.sbatch", Path(f"{log}-%a"), *words, options="--array=0-2")
    slurm.wait(f"{job}_0", "COMPLETED", Path(f"{log}-0"))
    slurm.wait(f"{job}_1", "FAILED", Path(f"{log}-1"))
    slurm.wait(f"{job}_2", "FAILED", Path(f"{log}-2"))
    assert (out / "georgia" / "manifest.json").is_file()
    assert "nothing" in Path(f"{log}-1").read_text()
    assert "--array=0-1" in Path(f"{log}-2").read_text()


def shards_and_encoder(
    folder: Path, tiny: list[str], command: Callable[..., subprocess.CompletedProcess[str]]
) -> tuple[Path, Path]:
    recordings, shards, run, encoder = (folder / name for name in ("rec", "shards", "run", "encoder"))
    for made in (
        ["tools/synthesise.py", recordings, "--records", "200"],
        ["tools/convert.py", "synthetic", recordings, shards],
        ["recipes/jepa_vit.py", *tiny, "--data.shards", shards, "--steps", "2", "--out", run],
        ["tools/export.py", run, encoder],
    ):
        done = command(*made)
        assert done.returncode == 0, done.stderr[-3000:]
    return shards, encoder


def test_a_fine_tuning_on_two_tasks_that_is_warned_saves_and_goes_on(
    tmp_path: Path, slurm: Slurm, tiny: list[str], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shards, encoder = shards_and_encoder(tmp_path, tiny, command)
    out, log = tmp_path / "finetuned", tmp_path / "log"
    words = ["recipes/finetune.py", "--encoder", encoder, "--shards", shards, "--task", "labels"]
    words += ["--task.labels", "synthetic:lbbb", "--method", "direct", "--full.steps", "2000", "--batch-size", "8"]
    words += ["--validate-every", "500", "--draws", "20", "--out", out]
    job = slurm.submit("finetune.sbatch", log, *map(str, words), options="--ntasks-per-node=2")
    slurm.wait_for_steps(job, out, 3, log)
    slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job, "PENDING", log)
    assert "step-00000000" < checkpoints(out)[-1].name < "step-00002000" and not (out / "result.json").exists()
    slurm.wait(job, "COMPLETED", log)
    assert "goes on at step" in log.read_text()
    result = json.loads((out / "result.json").read_text())
    assert result["processes"] == 2 and result["selected"]["steps"] == 2000


def test_an_array_job_probes_an_encoder_once_a_seed(
    tmp_path: Path, slurm: Slurm, tiny: list[str], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shards, encoder = shards_and_encoder(tmp_path, tiny, command)
    out = tmp_path / "probe"
    log = tmp_path / "log"
    words = [
        "tools/probe.py",
        str(encoder),
        str(shards),
        "--label",
        "synthetic:lbbb",
        "--folds",
        "2",
        "--untrained",
        "1",
    ]
    words += ["--seed", "{task}", "--out", f"{out}-{{task}}"]
    job = slurm.submit("finetune.sbatch", Path(f"{log}-%a"), *words, options="--array=3-4")
    for task in (3, 4):
        slurm.wait(f"{job}_{task}", "COMPLETED", Path(f"{log}-{task}"))
        probe = json.loads((Path(f"{out}-{task}") / "probe.json").read_text())
        assert probe["results"][0]["label"] == "synthetic:lbbb" and probe["seed"] == task
    for options, expected, mistaken in (
        ("--array=0-1", "all tasks of --array would do the same", words[:-4]),
        ("", "submit with --array", words),
        ("", "must be a command", ["tools/nothing.py"]),
    ):
        job = slurm.submit("finetune.sbatch", log, *mistaken, options=options)
        slurm.wait(job + ("_0" if options else ""), "FAILED", log)
        assert expected in log.read_text()
        log.unlink()
