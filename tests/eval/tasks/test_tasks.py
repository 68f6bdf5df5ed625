"""Every task: what holds for all of them, and what each one asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm import config, parts
from ecgfm.errors import ConfigError
from ecgfm.eval.tasks import age, chapman_rhythm, cpsc_2018, georgia, labels, ludb_rhythm
from ecgfm.eval.tasks.base import Examples, Task, load_task, task_examples, task_of
from ecgfm.labels.shared import SHARED18
from tests.eval.tasks.conftest import Make

TASKS = parts.names("ecgfm.eval.tasks")
# SNOMED codes: sinus rhythm, atrial fibrillation, sinus bradycardia, complete right bundle branch block, and the
# Challenge's other code for the last one.
NSR, AF, SB, CRBBB, RBBB = "426783006", "164889003", "426177001", "713427006", "59118001"


def records(number: int, labels: dict[str, list[list[str]]], **more: Any) -> list[dict[str, Any]]:
    """Return records that go round the given codes; two records a patient."""
    return [
        {
            "labels": {scheme: codes[n % len(codes)] for scheme, codes in labels.items()},
            "patient": f"p{n // 2}",
            **{name: values[n % len(values)] for name, values in more.items()},
        }
        for n in range(number)
    ]


@dataclass(frozen=True)
class Case:
    """Records that a task can be asked of."""

    database: str
    records: list[dict[str, Any]]
    settings: dict[str, Any]


def case(name: str, folder: Path) -> Case:
    number = 120
    rhythm = {"snomed": [[NSR], [AF], [SB], [NSR, CRBBB], [RBBB]]}
    if name == "table":
        path = folder / "labels.csv"
        path.write_text("record,ill\n" + "".join(f"r{n},{n % 3 % 2}\n" for n in range(number)), encoding="utf-8")
        return Case("wfdb-folder", records(number, {}), {"table": path, "columns": ("ill",)})
    cases = {
        "age": Case("georgia", records(number, {}, age=[20.0, None, 45.0, 70.0, 90.0]), {}),
        "chapman_rhythm": Case("chapman-shaoxing", records(number, rhythm), {}),
        "chapman_sex": Case(
            "chapman-shaoxing", records(number, {}, sex=["female", "male", "male", None, "female"]), {}
        ),
        "cinc2011_quality": Case(
            "cinc2011-set-a", records(number, {"quality": [["acceptable"], ["unacceptable"], ["acceptable"]]}), {}
        ),
        "cpsc_2018": Case("cpsc-2018", records(number, rhythm), {}),
        "georgia": Case("georgia", records(number, rhythm), {}),
        "labels": Case("georgia", records(number, rhythm), {"labels": ("snomed:" + NSR, "snomed:" + AF)}),
        "ludb_rhythm": Case(
            "ludb", records(number, {"ludb": [["Rhythm: Sinus rhythm", "x"], ["Rhythm: Sinus bradycardia"]]}), {}
        ),
        "ptb_xl": Case(
            "ptb-xl",
            [
                {**each, "fold": n // 2 % 10 + 1}
                for n, each in enumerate(records(number, {"scp": [["NORM", "SR"], ["IMI"], ["AFIB", "LVH"], []]}))
            ],
            {},
        ),
    }
    return cases[name]


def examples(name: str, folder: Path, told: Make, **more: Any) -> Examples:
    given = case(name, folder)
    return task_examples(
        told(given.records, given.database), type(load_task(name)).Config(**{**given.settings, **more})
    )


@pytest.mark.parametrize("name", TASKS)
def test_targets_are_of_the_kind_and_every_part_has_records(name: str, tmp_path: Path, told: Make) -> None:
    got = examples(name, tmp_path, told)
    assert len(got.index_N) > 50 and (np.diff(got.index_N) > 0).all()
    known = ~np.isnan(got.target_NC)
    assert known.any(axis=1).all()
    if got.kind != "regression":
        assert np.isin(got.target_NC[known], (0.0, 1.0)).all()
    if got.kind == "multiclass":
        assert (got.target_NC.sum(axis=1) == 1).all()
    for split, counts in got.counts().items():
        assert counts["records"] == len(got.part(split)) > 0
    asked = case(name, tmp_path)
    assert len(got.index_N) + sum(got.left_out.values()) == len(asked.records)


@pytest.mark.parametrize("name", TASKS)
def test_parts_share_no_patient_and_follow_the_seed_unless_published(name: str, tmp_path: Path, told: Make) -> None:
    one, same, other = (examples(name, tmp_path, told, seed=seed) for seed in (0, 0, 1))
    assert (one.split_N == same.split_N).all()
    owner = dict(zip(one.patients, one.split_N.tolist()))
    assert [owner[patient] for patient in one.patients] == one.split_N.tolist()
    published = one.folds is not None
    assert (one.split_N == other.split_N).all() == published
    assert (one.split_N == examples(name, tmp_path, told, rotation=1).split_N).all() == published


@pytest.mark.parametrize("name", TASKS)
def test_a_label_share_keeps_validation_and_test_whole(name: str, tmp_path: Path, told: Make) -> None:
    whole, half, tenth = (examples(name, tmp_path, told, label_share=share) for share in (1.0, 0.5, 0.1))
    for split in ("validation", "test"):
        assert len(whole.part(split)) == len(half.part(split)) == len(tenth.part(split))
    inside = [set(each.index_N[each.part("train")].tolist()) for each in (tenth, half, whole)]
    assert inside[0] < inside[1] < inside[2]
    assert tenth.left_out["outside of the label share"] == len(inside[2]) - len(inside[0])


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_written_with_their_task_and_come_back(name: str, tmp_path: Path) -> None:
    settings = type(load_task(name)).Config(**case(name, tmp_path).settings)
    written = config.to_dict(settings)
    assert written["kind"] == name and config.from_dict(Task.Config, json.loads(json.dumps(written))) == settings
    assert task_of(settings).name() == name and load_task(name).title and load_task(name).source
    for change in ({"num_folds": 2}, {"rotation": 10}, {"label_share": 0.0}):
        with pytest.raises(ConfigError):
            type(load_task(name)).Config(**change)


@pytest.mark.parametrize("name", [name for name in TASKS if load_task(name).databases])
def test_shards_of_other_databases_are_refused_or_left_out(name: str, tmp_path: Path, told: Make) -> None:
    given = case(name, tmp_path)
    settings = type(load_task(name)).Config(**given.settings)
    with pytest.raises(ConfigError, match="the shards hold code-15"):
        task_examples(told(given.records, "code-15"), settings)
    strange = [{**each, "database": "code-15", "record": "x"} for each in given.records[:6]]
    mixed = task_examples(told([*strange, *given.records], given.database), settings)
    assert mixed.left_out["of other databases"] == 6
    np.testing.assert_array_equal(
        mixed.target_NC, task_examples(told(given.records, given.database), settings).target_NC
    )


def test_an_unknown_task_is_answered_with_a_near_one() -> None:
    with pytest.raises(ConfigError, match="did you mean ptb_xl"):
        load_task("ptbxl")


def test_cpsc_has_the_classes_of_both_packagings(told: Make) -> None:
    codes = list(cpsc_2018.SNOMED)
    copy = told(records(90, {"snomed": [[code] for code in codes]}), "cpsc-2018")
    own = told(records(90, {"cpsc2018": [[str(number)] for number in range(1, 10)]}), "cpsc-2018-original")
    settings = cpsc_2018.Cpsc2018.Config()
    one, two = task_examples(copy, settings), task_examples(own, settings)
    np.testing.assert_array_equal(one.target_NC, two.target_NC)
    assert one.labels == cpsc_2018.CLASSES and (one.target_NC[:9] == np.eye(9)).all()
    eight = task_examples(copy, cpsc_2018.Cpsc2018.Config(normal=False))
    assert eight.labels == cpsc_2018.CLASSES[1:] and (eight.target_NC[0] == 0).all() and len(eight.index_N) == 90


def test_the_codes_of_cpsc_have_the_challenges_counts(ecg_data: Path) -> None:
    counts: dict[str, str] = {}
    for name in ("scored", "unscored"):
        lines = (ecg_data / f"challenge-2021/dx/dx_mapping_{name}.csv").read_text(encoding="utf-8").splitlines()
        counts |= {line.split(",")[1]: line.split(",")[3] for line in lines[1:]}
    wanted = (918, 1221, 722, 236, 1857, 616, 700, 869, 220)
    assert {label: int(counts[code]) for code, label in cpsc_2018.SNOMED.items()} == dict(
        zip(cpsc_2018.CLASSES, wanted, strict=True)
    )


def test_georgia_says_shared_scored_or_own_labels(told: Make) -> None:
    unknown = "999"
    said = records(240, {"snomed": [[NSR], [AF, RBBB], [CRBBB], [unknown], ["164884008"]]})
    del said[7]["labels"]["snomed"]
    shards = told(said, "georgia")

    def ask(**settings: Any) -> Examples:
        return task_examples(shards, georgia.Georgia.Config(**settings))

    shared = ask()
    assert shared.labels == SHARED18 and shared.left_out == {"without diagnoses": 1}
    column = {label: shared.target_NC[:, number] for number, label in enumerate(shared.labels)}
    assert column["CRBBB"].sum() == 48 + 47 and column["NSR"].sum() == 48 and shared.target_NC.sum() == 191
    assert ask(drop_unlabelled=True).left_out == {"without diagnoses": 1, "without one of the labels": 96}
    assert ask(labels="challenge", min_records=47).labels == ("AF", "CRBBB", "NSR")
    assert ask(labels="challenge", min_records=48).labels == ("CRBBB",)
    assert ask(labels="own", min_records=47).labels == (unknown, "AF", "NSR", "RBBB", "VEB")


def test_chapman_leaves_out_records_of_no_group_or_several(told: Make) -> None:
    said = records(100, {"snomed": [[NSR], [AF], [SB], [CRBBB], [AF, SB]]})
    got = task_examples(told(said, "chapman-shaoxing"), chapman_rhythm.ChapmanRhythm.Config())
    assert got.labels == ("AFIB", "GSVT", "SB", "SR") and got.left_out == {"of no rhythm group or several": 40}
    assert got.target_NC.sum(axis=0).tolist() == [20, 0, 20, 20]


def test_rhythms_of_ludb_are_those_of_its_headers(ecg_data: Path, told: Make) -> None:
    said = []
    for path in sorted((ecg_data / "ludb/data").glob("*.hea"), key=lambda path: int(path.stem)):
        statements = path.read_text(encoding="utf-8").split("#<diagnoses>:")[1].splitlines()
        codes = [line.strip("# ").rstrip(". ") for line in statements if line.strip("# ")]
        said.append({"record": path.stem, "patient": path.stem, "labels": {"ludb": codes}})
    shards = told(said, "ludb")
    got = task_examples(shards, ludb_rhythm.LudbRhythm.Config())
    assert dict(zip(got.labels, got.target_NC.sum(axis=0).tolist(), strict=True)) == {
        "Atrial fibrillation": 15, "Sinus bradycardia": 25, "Sinus rhythm": 143,
    }  # fmt: skip
    assert got.left_out == {"of a rare rhythm": 17}
    assert all(got.target_NC[got.part(split)].any(axis=0).all() for split in ("train", "validation", "test"))
    binary = task_examples(shards, ludb_rhythm.LudbRhythm.Config(binary=True))
    assert len(binary.index_N) == 200 and binary.target_NC.sum() == 57 and binary.kind == "multilabel"


def test_ages_are_years_and_the_young_can_be_left_out(told: Make) -> None:
    shards = told(records(100, {}, age=[10.0, 40.0, None, 80.0]), "georgia")
    got = task_examples(shards, age.Age.Config(youngest=18.0))
    assert got.kind == "regression" and set(got.target_NC[:, 0]) == {40.0, 80.0}
    assert got.left_out == {"of unknown age": 25, "too young": 25}


def test_any_labels_may_be_chosen(told: Make) -> None:
    shards = told(records(120, {"snomed": [[NSR], [AF], [SB], [AF, SB]]}), "georgia")
    names = (f"snomed:{NSR}", f"snomed:{AF}", f"snomed:{SB}")
    got = task_examples(shards, labels.Labels.Config(labels=names))
    assert got.labels == (NSR, AF, SB) and got.target_NC.sum(axis=0).tolist() == [30, 60, 60]
    apart = task_examples(shards, labels.Labels.Config(labels=names, exclusive=True))
    assert apart.kind == "multiclass" and apart.left_out == {"with none of the labels or several": 30}
    few = task_examples(shards, labels.Labels.Config(labels=names, min_records=30))
    assert few.labels == (AF, SB)
    with pytest.raises(ConfigError, match="no record of the shards has the label snomed:1"):
        task_examples(shards, labels.Labels.Config(labels=("snomed:1",)))


def test_published_parts_are_kept_and_validation_is_carved_where_it_is_missing(told: Make) -> None:
    said = records(200, {"snomed": [[NSR], [AF]]}, split=["train"])
    for number in range(150, 200):
        said[number]["split"] = "test"
    got = task_examples(told(said, "georgia"), labels.Labels.Config(labels=(f"snomed:{AF}",)))
    assert (got.part("test") == np.arange(150, 200)).all()
    assert 10 <= len(got.part("validation")) <= 20
    rotated = task_examples(told(said, "georgia"), labels.Labels.Config(labels=(f"snomed:{AF}",), rotation=2))
    assert (rotated.split_N == got.split_N).all()
    said[150]["split"] = "train"
    with pytest.raises(ConfigError, match="georgia patient p75 is in"):
        task_examples(told(said, "georgia"), labels.Labels.Config(labels=(f"snomed:{AF}",)))
