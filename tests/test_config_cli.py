"""The command line changes leaves of the settings, and refuses what it does not know."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ecgfm import config
from ecgfm.encoders import vit
from ecgfm.errors import ConfigError, ShardError
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

ROOT = Path(__file__).parents[1]
RUN = Run(encoder=vit.XS, objective=JEPA.Config())
PRESETS = {"s": replace(RUN, encoder=vit.S), "b": replace(RUN, encoder=vit.B, data=Data(batch_size=1024))}


def cli(*words: str) -> Run:
    return config.cli(RUN, presets=PRESETS, args=words)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, without boxes and line breaks."""
    out, err = capsys.readouterr()
    return re.sub(r"[\s\u2500-\u257f]+", " ", out + err)


def test_without_words_the_defaults_hold() -> None:
    assert cli() == RUN


def test_an_option_changes_its_leaf_and_nothing_else() -> None:
    run = cli(
        "--encoder.depth", "12", "--objective.mask-ratio", "0.5", "0.6", "--data.shards", "a", "b/c", "--no-resume"
    )
    wanted = replace(
        RUN,
        encoder=replace(vit.XS, depth=12),
        objective=JEPA.Config(mask_ratio=(0.5, 0.6)),
        data=Data(shards=("a", "b/c")),
        resume=False,
    )
    assert run == wanted


def test_a_typo_ends_with_status_2_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli("--encoder.dept", "12")
    assert end.value.code == 2
    assert "Unrecognized options: --encoder.dept" in (text := said(capsys))
    assert "Perhaps you meant: --encoder.depth" in text


@pytest.mark.parametrize("words", [["--encoder.depth", "many"], ["--engine.zero-stage", "3"], ["--seed"], ["stray"]])
def test_an_ill_typed_value_ends_with_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli(*words)
    assert end.value.code == 2
    assert words[0] in said(capsys)


def test_the_launchers_local_rank_is_dropped() -> None:
    assert cli("--local_rank=3", "--seed", "5") == replace(RUN, seed=5)


@pytest.mark.parametrize("word", ["--local_ran=3", "--local-rank=3", "--local_rank", "--rank=3", "--local_ranks=3"])
def test_nothing_but_the_launchers_local_rank_is_dropped(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli(word)
    assert end.value.code == 2
    # tyro writes options with hyphens.
    assert word.split("=")[0].strip("-").replace("_", "-") in said(capsys).replace("_", "-")


@pytest.mark.parametrize("form", ["--from {}", "--from={}"])
def test_from_repeats_a_run_and_takes_changes(tmp_path: Path, form: str) -> None:
    before = replace(RUN, encoder=vit.S, optim=Optim(lr=3e-4), seed=9, out=Path("runs/first"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.to_dict(before)))
    assert cli(*form.format(path).split()) == before
    assert cli("--seed", "10", *form.format(path).split(), "--local_rank=0") == replace(before, seed=10)


def test_from_a_damaged_file_says_which_entry(tmp_path: Path) -> None:
    settings = config.to_dict(RUN)
    settings["optim"]["learning_rate"] = settings["optim"].pop("lr")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"run\.optim: unknown entry 'learning_rate'"):
        cli("--from", str(path))
    with pytest.raises(ConfigError, match=r"nowhere\.json does not exist"):
        cli("--from", str(tmp_path / "nowhere.json"))


def test_a_preset_starts_from_other_defaults() -> None:
    assert cli("--preset", "b") == PRESETS["b"]
    assert cli("--preset=s", "--encoder.depth", "3") == replace(RUN, encoder=replace(vit.S, depth=3))


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="--preset xxl: there are s, b"):
        cli("--preset", "xxl")
    with pytest.raises(ConfigError, match="--preset s: there are none"):
        config.cli(RUN, args=["--preset", "s"])


def test_from_and_preset_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.to_dict(RUN)))
    with pytest.raises(ConfigError, match="--from and --preset both say where to start"):
        cli("--from", str(path), "--preset", "s")


@pytest.mark.parametrize("flag", ["--from", "--preset"])
def test_a_start_without_a_value_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} needs a value"):
        cli("--seed", "1", flag)


def test_help_shows_what_each_field_means_and_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli("--help")
    assert end.value.code == 0
    text = said(capsys)
    assert "Samples of one token: 25 at 500 Hz are 50 ms." in text
    assert "--from run.json repeats a run" in text and "--preset {s,b}" in text


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_rank_speaks_for_all(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        cli("--encoder.dept", "12")
    assert end.value.code == 2
    assert bool(said(capsys).strip()) == (rank == "0")


def ended(main: object, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    """Return the exit status and the error output of a command."""
    with pytest.raises(SystemExit) as end:
        config.run_command(main)  # type: ignore[arg-type]
    return end.value.code, capsys.readouterr().err


def test_a_users_error_ends_a_command_with_its_message_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(error: Exception) -> None:
        raise error

    assert ended(lambda: None, capsys) == (0, "")
    assert ended(lambda: refuse(ShardError("it is cut")), capsys) == (1, "error: it is cut\n")
    assert ended(lambda: refuse(KeyboardInterrupt()), capsys)[0] == 130  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        config.run_command(lambda: refuse(ZeroDivisionError()))
    monkeypatch.setenv("RANK", "1")
    # Wrong settings are found by every rank, and told once; a shard may be cut on one machine only.
    assert ended(lambda: refuse(ConfigError("--x is wrong")), capsys) == (1, "")
    assert ended(lambda: refuse(ShardError("it is cut")), capsys) == (1, "error on rank 1: it is cut\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective.mask-ratio", "0.9", "0.1"], "--objective.mask-ratio needs 0 < low <= high < 1, got 0.9 0.1"),
        (["--optim.clip-norm", "-1"], "--optim.clip-norm must be above 0, got -1.0"),
        (["--steps", "0"], "--steps 0 must be 1 to --optim.schedule-steps 100000"),
        (["--log-every", "0"], "--log-every must be at least 1, got 0"),
    ],
)
def test_settings_that_refuse_themselves_end_with_their_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        config.run_command(lambda: print(cli(*words)))
    assert end.value.code in (1, 2)  # newer tyro shows a ValueError of a settings class as it shows a typo
    assert message in said(capsys)


def test_the_recipe_ends_with_a_plain_message_and_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "recipes" / "jepa_vit.py"), "--preset", "xl"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --preset xl: there are laptop, xs, s, b\n"
    assert done.stdout == "" and not any(tmp_path.iterdir())
