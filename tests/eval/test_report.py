"""The report says what the numbers say, asks for nothing, and looks right in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval import report_figures
from ecgfm.eval.metrics import evaluate
from ecgfm.eval.predictions import Predictions, read_predictions
from ecgfm.eval.report import Options, make_page, write_report
from ecgfm.eval.report_examples import choose, shards_of
from ecgfm.shards.manifest import manifest_sha256
from tests.eval.browser import browser

LABELS = ("AF", "<script>alert(1)</script>", 'cost "$x$" & a very long name of a label that does not end soon')
FEW = Options(draws=40, examples=0)
PARTS = np.repeat(["train", "validation", "test"], [60, 30, 60])
Evaluated = Callable[..., Path]


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluated:
    """Return a function that writes what an evaluation leaves, and returns its folder."""

    def write(name: str, *, kind: str = "multilabel", seed: int = 0, settings: Any = None, **change: Any) -> Path:
        draw, own = np.random.default_rng(0), np.random.default_rng(seed)
        if kind == "regression":
            target = draw.normal(60, 15, (150, 1))
            logit = target + own.normal(0, 5, target.shape)
        else:
            target = (draw.random((150, 3)) < [0.3, 0.5, 0.2]).astype(float)
            target = np.eye(3)[draw.integers(0, 3, 150)] if kind == "multiclass" else target
            logit = 2 * target - 1 + own.normal(0, 1.5, target.shape)
        probability = {
            "multilabel": 1 / (1 + np.exp(-logit)),
            "multiclass": np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True),
        }.get(kind, logit)
        arrays = {
            "logit_NC": logit,
            "probability_NC": probability,
            "target_NC": target,
            "split_N": PARTS,
            "record_N": np.arange(150),
            "patient_N": np.asarray([f"p{number // 2}" for number in range(150)]),
            "labels_C": np.asarray(LABELS[: target.shape[1]]),
            "feature_ND": draw.normal(size=(150, 6)),
        }
        folder = tmp_path / name
        folder.mkdir(parents=True)
        np.savez(folder / "predictions.npz", **{**arrays, **change})
        (folder / "run.json").write_text(json.dumps(settings or {"task": {"kind": "ptb-xl"}, "seed": seed}))
        return folder

    return write


class Text(HTMLParser):
    """Counts elements and gathers the text of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element, and keep what it would fetch."""
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "poster", "data")]
        self.addresses += [value or "" for name, value in attrs if tag == "link" and name == "href"]

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data


def test_the_page_shows_the_figures_of_the_test_part(evaluated: Evaluated, tmp_path: Path) -> None:
    folder, control = evaluated("one"), evaluated("two", seed=3)
    page = Text()
    page.feed(write_report([folder, control], tmp_path / "new" / "report.html", FEW).read_text())
    read = read_predictions(folder)
    test = slice(90, 150)
    scores = evaluate(
        "multilabel",
        read.target_NC[test],
        read.probability_NC[test],
        read.patient_N[test].tolist(),
        labels=LABELS,
        thresholds_C=read.thresholds_C,
        draws=40,
    )
    for part in (scores.macro["auc"], scores.macro["f_max"], *scores.per_class["auc"].values()):
        assert f"{part.value:.3f} {part.low:.3f}\u2013{part.high:.3f}" in page.text
    assert "60 test records of 30 patients" in page.text and "ptb-xl: one" in page.text
    assert page.tags.count("script") == 1 and all(label in page.text for label in LABELS)
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_differences_are_paired_and_only_of_the_same_records(evaluated: Evaluated) -> None:
    one, two = evaluated("one"), evaluated("two", seed=3)
    other = evaluated("other", seed=4, record_N=np.arange(150) + 7)
    page = make_page([one, two, other], FEW)
    first, second, third = page.models
    difference = second.differences["auc"].difference
    assert difference.value == pytest.approx(first.scores.macro["auc"].value - second.scores.macro["auc"].value)
    assert difference.low < difference.value < difference.high
    assert not first.differences and not third.differences


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_every_kind_has_its_page(kind: str, evaluated: Evaluated, tmp_path: Path) -> None:
    text = write_report([evaluated("one", kind=kind)], tmp_path / "x.html", FEW).read_text()
    assert ("Confusion matrix" in text) == (kind == "multiclass") and ("MAE" in text) == (kind == "regression")
    assert ("Calibration" in text) == (kind == "multiclass")


def test_a_patient_in_two_parts_is_stated(evaluated: Evaluated) -> None:
    patients = np.asarray([f"p{number}" for number in range(150)])
    clean = make_page([evaluated("one", patient_N=patients)], FEW).findings[0]
    assert clean.state == "good" and "each of the 150 records" in clean.text
    patients[[100, 120]] = patients[[3, 70]]
    (found,) = [one for one in make_page([evaluated("two", patient_N=patients)], FEW).findings if one.state == "bad"]
    assert found.text == "Patients are in more than one part: 1 in train and test, 1 in validation and test."


def test_without_the_training_part_nothing_is_claimed_about_it(evaluated: Evaluated, tmp_path: Path) -> None:
    folder = evaluated("one")
    with np.load(folder / "predictions.npz") as file:
        kept = {name: file[name][60:] if len(file[name]) == 150 else file[name] for name in file.files}
    np.savez(folder / "predictions.npz", **kept)
    states = [one.state for one in make_page([folder], FEW).findings]
    assert set(states) == {"unknown"}
    said = {"splits_share_no_patient": True, "examples": {"train": {"records": 60, "patients": 30, "AF": 17}}}
    (folder / "result.json").write_text(json.dumps(said))
    page = make_page([folder], FEW)
    assert page.findings[0].state == "good" and page.parts[0].positives == (17, 0, 0)
    assert page.parts[0].records == page.models[0].predictions.train_records == 60


def test_seeds_stand_side_by_side_and_settings_that_differ_come_first(evaluated: Evaluated, tmp_path: Path) -> None:
    for seed in range(2):
        evaluated(f"run/seed-{seed}", seed=seed)
    page = make_page([tmp_path / "run"], FEW)
    assert [model.name for model in page.models] == ["seed-0", "seed-1"]
    assert page.settings == [("seed", ["0", "1"], True), ("task.kind", ["ptb-xl", "ptb-xl"], False)]


def test_label_efficiency_is_drawn_where_evaluations_differ_in_training_records(evaluated: Evaluated) -> None:
    whole = evaluated("whole", settings={"init": "pretrained"})
    fewer = PARTS.copy()
    fewer[10:60] = "validation"
    tenth = evaluated("tenth", seed=1, split_N=fewer, settings={"init": "pretrained"})
    assert not make_page([whole], FEW).efficiency
    (picture,) = make_page([whole, tenth], FEW).efficiency
    assert ">10</text>" in picture.svg and ">60</text>" in picture.svg


def test_of_many_records_a_sample_is_drawn_and_said(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = evaluated("one")
    (whole,) = make_page([folder], FEW).features
    monkeypatch.setattr(report_figures, "MOST_DOTS", 20)
    (some,) = make_page([folder], FEW).features
    assert "drawn by chance" not in whole.caption and "20 of 60 records, drawn by chance" in some.caption
    counts = [sum(map(int, re.findall(r"\((\d+)\)</text>", one.svg))) for one in (whole, some)]
    assert counts == [60, 20]
    assert make_page([folder], FEW).features == [some]


def test_a_record_of_several_labels_is_no_colour_of_its_own(evaluated: Evaluated) -> None:
    folder = evaluated("one")
    several = (read_predictions(folder).target_NC[90:] == 1).sum(axis=1)
    (picture,) = make_page([folder], FEW).features
    assert f">several labels ({(several > 1).sum()})<" in picture.svg
    assert f">none of the labels ({(several == 0).sum()})<" in picture.svg


def test_recordings_are_only_looked_up_in_the_shards_that_were_evaluated(evaluated: Evaluated, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text("{}")
    folder = evaluated("one", settings={"shards": [str(shards)]})
    told = {"shards": [{"manifest_sha256": manifest_sha256(shards)}]}
    (folder / "result.json").write_text(json.dumps(told))
    assert shards_of(read_predictions(folder), []) == ([shards], "")
    (shards / "manifest.json").write_text("{ }")
    model = read_predictions(folder)
    found, why = shards_of(model, [])
    assert found == [] and "have changed since the evaluation" in why
    with pytest.raises(ConfigError, match="not those that were evaluated"):
        shards_of(model, [shards])


def test_the_title_is_the_tasks_and_every_figure_is_explained(evaluated: Evaluated, tmp_path: Path) -> None:
    folder = evaluated("one")
    (folder / "result.json").write_text(json.dumps({"task": {"title": "Statements of PTB-XL"}}))
    page = make_page([folder], FEW)
    assert page.title == "Statements of PTB-XL: one"
    assert set(page.named) == {*page.macro, *page.per_class} and "sensitivity" in page.named
    text = write_report([folder], tmp_path / "x.html", FEW).read_text()
    for name in page.named:
        assert f"<dt>{page.names[name][0]}</dt><dd>{page.names[name][1]}</dd>" in text


def test_examples_are_the_surest_right_and_wrong_answers(evaluated: Evaluated) -> None:
    model: Predictions = read_predictions(evaluated("one"))
    rows = model.rows("test").tolist()
    chosen = choose(model, rows, 6)
    assert [one.what for one in chosen] == ["right"] * 3 + ["false positive", "false negative", "false positive"]
    assert len({one.row for one in chosen}) == 6 and model.thresholds_C is not None
    best: dict[int, tuple[float, int]] = {}
    for column in range(3):
        for row in rows:
            probability = model.probability_NC[row, column]
            if model.target_NC[row, column] == 1 and probability >= model.thresholds_C[column]:
                best[column] = max(best.get(column, (0.0, 0)), (probability, row))
    frequent = sorted(range(3), key=lambda column: -int(model.target_NC[rows, column].sum()))
    assert (chosen[0].row, chosen[0].column) == (best[frequent[0]][1], frequent[0])
    taken = {one.row for one in chosen[:3]}
    wrong = [
        (model.probability_NC[row, column], row)
        for column in range(3)
        for row in rows
        if row not in taken
        and model.target_NC[row, column] == 0
        and model.probability_NC[row, column] >= model.thresholds_C[column]
    ]
    assert chosen[3].row == max(wrong)[1]


def test_what_is_no_evaluation_is_refused_with_the_fix(evaluated: Evaluated, tmp_path: Path) -> None:
    one = evaluated("one")
    broken: list[tuple[dict[str, Any], str]] = [
        ({"split_N": np.full(150, "dev")}, "'dev' is none of train"),
        ({"target_NC": np.zeros((150, 2))}, "target_NC has shape"),
        ({"patient_N": np.asarray([{}] * 150, dtype=object)}, "cannot be read"),
        ({"split_N": np.full(150, "train")}, "no test part"),
    ]
    for number, (change, words) in enumerate(broken):
        with pytest.raises(ConfigError, match=words):
            make_page([evaluated(f"bad-{number}", **change)], FEW)
    whole = (one / "predictions.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    lone = (tmp_path / "array.npy").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:2000] + b"x" * 50 + whole[2050:], lone):
        folder = evaluated(f"half-{len(content)}")
        (folder / "predictions.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"predictions\.npz cannot be read.*evaluate again"):
            make_page([folder], FEW)
    with pytest.raises(ConfigError, match="another question"):
        make_page([one, evaluated("others", labels_C=np.asarray(["a", "b", "c"]))], FEW)
    with pytest.raises(ConfigError, match=r"holds no predictions\.npz"):
        make_page([tmp_path / "nowhere"], FEW)
    with pytest.raises(ConfigError, match="2 different names"):
        make_page([one, evaluated("two")], Options(names=("a",), examples=0))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report([one], one / "run.json" / "x.html", FEW)


def listen(page: Any) -> tuple[list[str], list[str]]:
    """Return lists that get what the page says in its console, and what it asks for."""
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    return errors, requests


def test_the_page_in_a_real_browser(evaluated: Evaluated, tmp_path: Path) -> None:
    """Offline: no error, no request, nothing wider than the screen, tables sort, print shows all. Takes 10 s."""
    settings = {"task": {"kind": "ptb-xl"}, "encoder": "a/very/long/path" * 12}
    folders = [evaluated("one", settings=settings), evaluated("two", seed=3, settings={**settings, "seed": 1})]
    out = write_report(folders, tmp_path / "report.html", Options(draws=40))
    with browser() as opened:
        for width, scheme in ((390, "dark"), (1280, "light")):
            context = opened.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
            page = context.new_page()
            errors, requests = listen(page)
            page.goto(out.as_uri())
            assert errors == []
            assert [url for url in requests if not url.startswith("data:")] == [out.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) == (scheme == "dark")
            # What is drawn lies within what shows it.
            cut = page.evaluate(
                """[...document.querySelectorAll("svg text")].filter((text) => {
                  const own = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
                  return own.left < all.left - 2 || own.right > all.right + 2;
                }).map((text) => text.textContent)"""
            )
            assert cut == []
            if width == 1280:  # on a desk, the figures and differences of two evaluations need no scrolling
                over = "[...document.querySelectorAll('#results .scroll')].map((at) => at.scrollWidth - at.clientWidth)"
                assert page.evaluate(over) == [0, 0]
            button = page.locator("#labels thead button").nth(1)
            counts = "[...document.querySelectorAll('#labels tbody tr')].map((row) => Number(row.cells[1].textContent))"
            before = page.evaluate(counts)
            button.click()
            assert page.evaluate(counts) == sorted(before, reverse=True)
            button.click()
            assert page.evaluate(counts) == sorted(before)
            assert page.locator("#labels th[aria-sort=ascending]").count() == 1
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            assert page.locator("details[open]").count() == page.locator("details").count() == 2
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert len(page.screenshot(full_page=True)) > 20_000
            assert errors == []
            context.close()
