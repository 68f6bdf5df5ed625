"""The recipe as a user runs it: help, mistakes, a folder that holds another run, a full disk.

What is refused before the ranks meet, and plans, are asked of the recipe in this process: a new one imports for long.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

Command = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = "recipes/jepa_vit.py"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the recipe's file with words here, which must not come to train."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        full = [RECIPE, *map(str, words)]
        monkeypatch.setattr(sys, "argv", full)
        monkeypatch.setattr("ecgfm.train.loop.start_world", lambda _: pytest.fail("the run was not refused"))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / RECIPE), run_name="__main__")
        status = end.value.code
        assert isinstance(status, int)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(full, status, said.out, said.err)

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("COLUMNS", "120")
    return run


@pytest.fixture
def forked(run_ranks: Callable[..., list[int]], tmp_path: Path) -> Command:
    """Return a function that runs the recipe in a process that need not import anything; it has one output."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        log = tmp_path / "said"
        log.unlink(missing_ok=True)
        (status,) = run_ranks(0, RECIPE, *words, log=log)
        return subprocess.CompletedProcess(words, status, log.read_text())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], command: Command) -> Path:
    """Return the folder of a run of two steps, started without a launcher."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command(RECIPE, *tiny, "--steps", "2", "--out", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2 of 2" in done.stdout and "records/s" in done.stdout and "s left" in done.stdout
    return folder


def test_help_explains_every_option(command: Command) -> None:
    done = command(RECIPE, "--help")
    assert done.returncode == 0
    for word in ("Paper says", "--data.shards", "--objective.mask-ratio", "--engine.zero-stage", "--from run.json"):
        assert word in done.stdout


def test_a_run_leaves_settings_metrics_board_and_checkpoint(trained: Path) -> None:
    settings = json.loads((trained / "run.json").read_text())
    assert settings["encoder"]["kind"] == "vit" and settings["objective"]["kind"] == "jepa"
    zero = json.loads((trained / "deepspeed.json").read_text())["zero_optimization"]
    assert zero["stage"] == 1 and zero["reduce_bucket_size"] < 1_000_000  # as many numbers as there are gradients
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "target_std", "effective_rank", "lr", "momentum", "records_per_s"} <= last.keys()
    assert list((trained / "tensorboard").glob("events*"))
    files = {path.name for path in (trained / "checkpoints" / "step-00000002").iterdir()}
    assert {"encoder.safetensors", "contract.json", "state.json", "engine.safetensors"} <= files


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.shard", "x"], "--data.shards"),
        (["--encoder.depht", "3"], "--encoder.depth"),
        (["--optim.lr", "fast"], "fast"),
        (["--objective.mask-ratio", "0.9", "0.1"], "--objective.mask-ratio needs 0 < low <= high < 1"),
        (["--steps", "21", "--optim.schedule-steps", "20"], "--steps 21 must be 1 to"),
    ],
)
def test_a_typing_error_is_answered_with_a_hint(
    words: list[str], expected: str, tmp_path: Path, asked: Command
) -> None:
    done = asked("--out", tmp_path / "run", *words)
    assert done.returncode in (1, 2)
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.window-s", "9.9"], "are not filled by the steps of 100"),
        (["--objective.min-block", "45"], "fewer than --objective.min-block 45"),
        (["--data.shards", "/nowhere"], "/nowhere/manifest.json does not exist"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    words: list[str], expected: str, tmp_path: Path, tiny: list[str], asked: Command
) -> None:
    done = asked(*tiny, "--out", tmp_path / "run", *words)
    assert done.returncode == 1
    assert expected in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--data.batch-size", "7", "--engine.accumulation", "2"],
            "not a multiple of 1 ranks x --engine.accumulation 2",
        ),
        (["--data.window-s", "20"], "30 are shorter than --data.window-s"),
    ],
)
def test_what_does_not_fit_the_ranks_or_records_is_refused_before_anything_is_written(
    words: list[str], expected: str, tmp_path: Path, tiny: list[str], forked: Command
) -> None:
    done = forked(*tiny, "--out", tmp_path / "run", *words)
    assert done.returncode == 1
    assert expected in done.stdout, done.stdout[-2000:]
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "value", "before"), [("optim.lr", "0.5", "0.001"), ("engine.zero-stage", "0", "1")]
)
def test_going_on_with_other_settings_is_refused_by_name(
    setting: str, value: str, before: str, trained: Path, tiny: list[str], asked: Command
) -> None:
    words = [*tiny, "--out", trained, "--steps", "3", f"--{setting}", value]
    done = asked(*words)
    assert done.returncode == 1
    name = setting.replace("-", "_")
    assert f"{name} was {before}, is now {value}" in done.stderr and f"--accept-change {name}" in done.stderr
    assert asked(*words, "--accept-change", name, "--dry-run").returncode == 0
    # How long to wait changes no weight.
    assert asked(*tiny, "--out", trained, "--engine.timeout-min", "30", "--dry-run").returncode == 0


def test_a_folder_with_a_run_is_not_overwritten(trained: Path, tiny: list[str], asked: Command) -> None:
    done = asked(*tiny, "--out", trained, "--no-resume")
    assert done.returncode == 1 and "holds a run already (step-00000002)" in done.stderr


def test_a_run_is_repeated_from_its_file(
    trained: Path, tmp_path: Path, forked: Command, losses: Callable[[Path], list[float]]
) -> None:
    done = forked("--from", trained / "run.json", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stdout[-2000:]
    assert losses(tmp_path / "again") == losses(trained)


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, tiny: list[str], forked: Command) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", trained, run], check=True)
    path = run / "checkpoints" / "step-00000002" / "engine.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    done = forked(*tiny, "--out", run, "--steps", "3")
    assert done.returncode == 1
    assert f"{path} is damaged" in done.stdout


def test_a_full_disk_ends_the_run_with_the_checkpoint_before_whole(
    tmp_path: Path, tiny: list[str], command: Command
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2600k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        done = command(RECIPE, *tiny, "--out", disk / "run", "--checkpoint-every", "1")
        assert done.returncode == 1
        assert "MB free and a checkpoint takes about" in done.stderr, done.stderr[-2000:]
        kept = [path.name for path in (disk / "run" / "checkpoints").iterdir() if path.name != "latest"]
        assert kept and not any(name.endswith(".tmp") for name in kept)
        assert json.loads((disk / "run" / "checkpoints" / kept[0] / "state.json").read_text())["step"] == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_that_is_at_its_end_says_so_and_stays_as_it_is(trained: Path, tiny: list[str], forked: Command) -> None:
    before = (trained / "metrics.jsonl").read_text()
    done = forked(*tiny, "--steps", "1", "--out", trained)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "it has 2 steps already and is asked for 1: nothing to do" in done.stdout
    assert (trained / "metrics.jsonl").read_text() == before


def test_a_run_does_not_start_on_records_that_are_held_out_elsewhere(
    tmp_path: Path, training_shards: Path, tiny: list[str], command: Command, forked: Command
) -> None:
    archive, held_out, run = tmp_path / "archive", tmp_path / "held-out", tmp_path / "run"
    archive.mkdir()
    for name in ("E00005.hea", "E00005.mat"):
        (archive / name).write_bytes((training_shards.parent / "georgia" / name).read_bytes())
    (archive / "records.csv").write_text("record,patient,split\nE00005,p1,test\n")
    done = command("tools/convert.py", "wfdb-folder", archive, held_out)
    assert done.returncode == 0, done.stderr
    done = forked(*tiny, "--steps", "1", "--out", run, "--data.held-out", held_out)
    assert done.returncode == 1
    assert "E00005" in done.stdout and "same recording" in done.stdout and "Traceback" not in done.stdout
    assert not (run / "checkpoints").exists()


def test_a_dry_run_says_what_the_run_would_be_and_leaves_nothing(
    trained: Path, tmp_path: Path, tiny: list[str]
) -> None:
    run = tmp_path / "run"
    script = (
        "import runpy, sys\n"
        f"sys.argv = {[RECIPE, *tiny, '--dry-run', '--ranks', '2', '--out', str(run)]!r}\n"
        "try:\n"
        f"    runpy.run_path({RECIPE!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert 'deepspeed' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "steps: 0 to 20 of schedules of 20",
        "8 windows = 2 ranks x 4 x 1 micro-batches",
        "windows: 160 of 10 s",
        "georgia 30 records, 0.1 h of signal, 5.33 epochs",
        "leaks: none among 30 records",
    ):
        assert words in done.stdout
    assert not run.exists()
    # What it says of parameters and of a checkpoint's bytes is what the run of the fixture has.
    folder = trained / "checkpoints" / "step-00000002"
    published = load_file(folder / "encoder.safetensors")
    assert f"encoder {sum(weight.numel() for weight in published.values()):,} parameters" in done.stdout
    real = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    planned = float(done.stdout.split("checkpoint: about ")[1].split()[0]) * 1e6
    # Names and pickles of 70 tensors weigh much beside so small a model.
    assert planned == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.window-s", "9.9"], "are not filled by the steps of 100"),
        (["--data.batch-size", "7", "--ranks", "2"], "not a multiple of 2 ranks"),
        (["--data.window-s", "20"], "30 are shorter than --data.window-s"),
        (["--out", "/dev/null/run"], "/dev/null is no folder"),
        (["--data.weights", "ptb-xl=1"], "--data.weights says nothing of georgia"),
        (["--data.held-out", "/nowhere"], "/nowhere/manifest.json does not exist"),
    ],
)
def test_a_dry_run_finds_what_a_run_would_be_refused_for(
    words: list[str], expected: str, tmp_path: Path, tiny: list[str], asked: Command
) -> None:
    done = asked(*tiny, "--dry-run", "--out", tmp_path / "run", *words)
    assert done.returncode == 1
    assert expected in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_dry_run_of_a_run_that_goes_on_refuses_other_settings(trained: Path, tiny: list[str], asked: Command) -> None:
    done = asked(*tiny, "--dry-run", "--out", trained)
    assert done.returncode == 0 and "steps: 2 to 20" in done.stdout, done.stderr
    done = asked(*tiny, "--dry-run", "--out", trained, "--optim.lr", "0.5")
    assert done.returncode == 1 and "optim.lr was 0.001, is now 0.5" in done.stderr
