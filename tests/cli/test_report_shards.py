"""tools/report_shards.py: the tables that a paper needs, from manifests alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, ecg_data: Path, command: Command) -> list[Path]:
    out = tmp_path_factory.mktemp("shards")
    for name, source in (("ludb", ecg_data / "ludb"), ("georgia", ecg_data / "challenge-2021")):
        assert command("tools/convert.py", name, source, out / name, "--workers", "1").returncode == 0
    return [out / "ludb", out / "georgia"]


def cells(text: str, database: str) -> list[str]:
    """Return the first row of a Markdown text that begins with a database."""
    match = re.search(rf"^\| {database} \|(.*)\|$", text, re.MULTILINE)
    assert match, text
    return [cell.strip() for cell in match[1].split("|")]


def test_the_tables_say_what_the_shards_hold(tmp_path: Path, folders: list[Path], command: Command) -> None:
    done = command("tools/report_shards.py", *folders, "--out", tmp_path / "data.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "data.md").read_text()
    ages, women, known = [], 0, 0
    for folder in folders[:1]:
        for path in folder.glob("*.tar"):
            for about in re.findall(rb'\{"age":[^\x00]*?"start_s":[^\x00]*?\}', path.read_bytes()):
                facts = json.loads(about)
                ages += [facts["age"]] if facts["age"] is not None else []
                known += facts["sex"] is not None
                women += facts["sex"] == "female"
    low, middle, high = (int(np.quantile(np.floor(ages), q, method="inverted_cdf")) for q in (0.25, 0.5, 0.75))
    row = cells(text, "ludb")
    assert row[:6] == ["200", "200", "200", "200", "0.6", "200"]
    assert row[6:] == [f"{100 * women / known:.0f}", f"{middle} ({low} to {high})"]
    assert cells(text, "georgia")[:4] == ["10,344", "10", "10", "10"]
    assert "Kalyakulina et al. 2020" in text and "CC-BY-4.0" in text
    assert "| STach |" in text and "ludb-counts-are-microvolt" in text
    assert (tmp_path / "data.png").stat().st_size > 10_000


def test_latex_escapes_what_latex_would_read(tmp_path: Path, folders: list[Path], command: Command) -> None:
    assert command("tools/report_shards.py", *folders, "--out", tmp_path / "data.tex").returncode == 0
    text = (tmp_path / "data.tex").read_text()
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") > 3
    assert "female \\%" in text and not re.search(r"(?<!\\)[%#_$]", text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--out", "data.docx"], "must be .md or .tex"), (["nowhere", "--out", "data.md"], "nowhere")],
)
def test_a_mistake_is_answered_with_what_to_do(
    words: list[str], expected: str, folders: list[Path], command: Command
) -> None:
    done = command("tools/report_shards.py", *folders, *words)
    assert done.returncode in (1, 2) and expected in done.stderr and "Traceback" not in done.stderr
