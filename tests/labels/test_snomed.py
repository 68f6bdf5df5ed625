"""SNOMED codes, against the published tables."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from ecgfm.errors import ConfigError
from ecgfm.labels.snomed import (
    EQUIVALENT,
    abbreviation_of,
    code_of,
    diagnoses,
    diagnosis,
    name_of,
    scored_classes,
)


def published(ecg_data: Path, name: str) -> list[dict[str, str]]:
    with (ecg_data / "challenge-2021/dx" / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_every_code_of_the_challenge_is_there_as_published(ecg_data: Path) -> None:
    for file, scored, number in (("dx_mapping_scored.csv", True, 30), ("dx_mapping_unscored.csv", False, 103)):
        table = published(ecg_data, file)
        assert len(table) == number
        for row in table:
            found = diagnosis(row["SNOMEDCTCode"])
            assert (found.abbreviation, found.scored) == (row["Abbreviation"], scored)
            assert found.name == " ".join(row["Dx"].split())
            assert code_of(row["Abbreviation"]) == row["SNOMEDCTCode"]
    assert sum(one.scored for one in diagnoses().values()) == 30


def test_every_acronym_of_chapman_gives_its_code(ecg_data: Path) -> None:
    table = published(ecg_data, "ConditionNames_SNOMED-CT.csv")
    for row in table:
        assert code_of(row["AcronymName"], chapman=True) == row["Snomed_CT"]
    assert sum(len(one.chapman) for one in diagnoses().values()) == len(table) == 63
    assert {row["Snomed_CT"] for row in table} <= diagnoses().keys()


def test_no_code_is_of_our_own(ecg_data: Path) -> None:
    files = (("dx_mapping_scored.csv", "SNOMEDCTCode"), ("dx_mapping_unscored.csv", "SNOMEDCTCode"),
             ("ConditionNames_SNOMED-CT.csv", "Snomed_CT"))  # fmt: skip
    assert {row[column] for file, column in files for row in published(ecg_data, file)} == diagnoses().keys()
    assert len(diagnoses()) == 137


def test_equivalent_codes_are_those_of_the_weights(ecg_data: Path) -> None:
    header = (ecg_data / "challenge-2021/dx/weights.csv").read_text().splitlines()[0].split(",")[1:]
    assert {tuple(name.split("|")) for name in header if "|" in name} == set(EQUIVALENT)
    classes = scored_classes()
    assert len(header) == len(set(classes.values())) == 26
    for name in header:
        assert len({classes[code] for code in name.split("|")}) == 1
        assert diagnosis(name.split("|")[0]).abbreviation == classes[name.split("|")[0]]
    assert {code for name in header for code in name.split("|")} == classes.keys()


def test_avnrt_alone_has_two_codes() -> None:
    counts = Counter(one.abbreviation for one in diagnoses().values())
    assert {name: count for name, count in counts.items() if count > 1} == {"AVNRT": 2}
    assert abbreviation_of("233896004") == abbreviation_of("251166008") == "AVNRT"
    assert code_of("AVNRT") == "251166008"


def test_atrial_flutter_is_af_in_chapman_only() -> None:
    assert name_of(code_of("AF")) == "atrial fibrillation"
    assert name_of(code_of("AF", chapman=True)) == "atrial flutter"


@pytest.mark.parametrize(
    ("word", "chapman", "hint"),
    [
        ("ST", False, r"427084000 \(STach, in Chapman ST: sinus tachycardia\)"),
        ("stach", False, r"427084000 \(STach"),
        ("LAnFB", True, r"445118002 \(LAnFB: left anterior fascicular block\)"),
        ("qqqqqqq", False, "lists all"),
    ],
)
def test_an_unknown_abbreviation_is_refused_with_near_ones(word: str, chapman: bool, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"'{word}' is no .*{hint}"):
        code_of(word, chapman=chapman)


def test_an_unknown_code_is_refused_with_near_ones() -> None:
    for look_up in (abbreviation_of, name_of):
        with pytest.raises(ConfigError, match=r"'16488900' is not .*164889003 \(AF"):
            look_up("16488900")
    with pytest.raises(ConfigError, match=r"'' is not .*lists all"):
        abbreviation_of("")
