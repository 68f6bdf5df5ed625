"""Labels that follow from published ones, against counts and records of the databases."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ecgfm.databases.base import load_database
from ecgfm.labels import chapman, derived, shared, unknown
from ecgfm.labels.scp import statements
from ecgfm.labels.snomed import EQUIVALENT, abbreviation_of, code_of

# scp_codes and heart_axis of PTB-XL 1.0.3, whose records are HR06000 to HR06004 of the Challenge.
PTB_XL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "HR06000": (("NORM", "NT_", "SR"), ()),
    "HR06001": (("NST_", "SR"), ("MID",)),
    "HR06002": (("NORM", "IRBBB", "SBRAD"), ()),
    "HR06003": (("NORM", "STACH"), ("MID",)),
    "HR06004": (("NORM", "SR"), ()),
}
SCP_SCHEMES = {"scp-diagnostic", "scp-subdiagnostic", "scp-superdiagnostic", "scp-form", "scp-rhythm"}


def counts(ecg_data: Path) -> list[dict[str, str]]:
    """Return the rows of the Challenge's tables: a code and how many records of each cohort bear it."""
    rows = []
    for name in ("dx_mapping_scored.csv", "dx_mapping_unscored.csv"):
        with (ecg_data / "challenge-2021/dx" / name).open(encoding="utf-8", newline="") as file:
            rows += [{**row, "scored": str(name == "dx_mapping_scored.csv")} for row in csv.DictReader(file)]
    return rows


@pytest.mark.parametrize("least", [84, 100, 118])
def test_the_shared_labels_are_the_frequent_classes_of_both_databases(ecg_data: Path, least: int) -> None:
    found: dict[str, tuple[int, int]] = {}
    for row in counts(ecg_data):
        if row["scored"] == "True":
            code = next((pair[0] for pair in EQUIVALENT if row["SNOMEDCTCode"] in pair), row["SNOMEDCTCode"])
            ptb_xl, georgia = found.get(code, (0, 0))
            found[code] = (ptb_xl + int(row["PTB_XL"]), georgia + int(row["Georgia"]))
    frequent = {abbreviation_of(code) for code, numbers in found.items() if min(numbers) >= least}
    assert frequent == set(shared.SHARED18)
    assert len(shared.SHARED18) == 18


def test_both_copies_of_a_ptb_xl_record_share_its_labels(ecg_data: Path) -> None:
    database = load_database("challenge-ptb-xl")
    for ref in database.refs(ecg_data / "challenge-2021/training/ptb-xl"):
        statements_of_it, axis = PTB_XL[ref.record]
        theirs = derived(database.read(ref).labels, "challenge-ptb-xl")["shared18"]
        ours = derived({"scp": statements_of_it, "heart-axis": axis}, "ptb-xl")["shared18"]
        assert set(ours) == set(theirs) != set()
        assert len(ours) == len(set(ours))


def test_every_shared_label_can_come_of_either_vocabulary() -> None:
    labels = set(shared.SHARED18)
    assert {*shared.FROM_SCP.values(), *shared.FROM_HEART_AXIS.values()} == labels
    assert set(shared.from_snomed().values()) == labels
    assert shared.FROM_SCP.keys() <= statements().keys()


def test_ptb_xl_shares_no_label_before_its_axis_is_known() -> None:
    labels = {"scp": ("LAFB", "SR")}
    assert "shared18" not in derived(labels, "ptb-xl")
    assert derived({**labels, "heart-axis": ("ALAD",)}, "ptb-xl")["shared18"] == ("LAnFB", "NSR", "LAD")
    assert derived({**labels, "heart-axis": ("AXL",)}, "ptb-xl")["shared18"] == ("LAnFB", "NSR")


def test_equivalent_codes_give_one_class() -> None:
    for pair in EQUIVALENT:
        first, second = (derived({"snomed": (code,)}, "georgia")["challenge"] for code in pair)
        assert first == second == (abbreviation_of(pair[0]),)
        assert derived({"snomed": pair}, "georgia")["challenge"] == first


def test_codes_that_are_not_scored_give_no_class() -> None:
    found = derived({"snomed": (code_of("LVH"), "1", code_of("SB"), code_of("RAD"))}, "georgia")
    assert found == {"challenge": ("SB", "RAD"), "shared18": ("SB",)}


def test_statements_give_every_task_without_repeats() -> None:
    found = derived({"scp": ("IMI", "ILMI", "NDT", "ABQRS", "SR")}, "ptb-xl")
    assert found == {
        "scp-diagnostic": ("IMI", "ILMI", "NDT"),
        "scp-subdiagnostic": ("IMI", "STTC"),
        "scp-superdiagnostic": ("MI", "STTC"),
        "scp-form": ("NDT", "ABQRS"),
        "scp-rhythm": ("SR",),
    }


def test_negative_and_not_labelled_differ() -> None:
    assert derived({"snomed": ()}, "georgia") == {"challenge": (), "shared18": ()}
    assert derived({"scp": ()}, "ptb-xl") == dict.fromkeys(SCP_SCHEMES, ())
    assert derived({}, "georgia") == {}
    assert derived({"code15": ("AF",)}, "code-15") == {}


def test_a_published_scheme_is_not_replaced() -> None:
    labels = {"snomed": (code_of("SB"),), "challenge": ("mine",), "chapman-rhythm": ("mine",)}
    assert derived(labels, "chapman-shaoxing") == {"shared18": ("SB",)}


def test_unknown_codes_are_listed_and_change_nothing() -> None:
    labels = {"snomed": ("123", code_of("SB"), "x"), "scp": ("SR", "NEW"), "report": ("normal",)}
    assert unknown(labels) == {"snomed": ("123", "x"), "scp": ("NEW",)}
    assert unknown({"snomed": (code_of("LVH"),), "scp": ()}) == {}
    known = {"snomed": (code_of("SB"),), "scp": ("SR",)}
    assert derived(labels, "georgia") == derived(known, "georgia")


def test_every_code_of_the_real_records_is_known(ecg_data: Path) -> None:
    for name in ("georgia", "ningbo", "challenge-ptb-xl", "ptb"):
        database = load_database(name)
        for ref in database.refs(ecg_data / "challenge-2021"):
            assert unknown(database.read(ref).labels) == {}


def test_rhythms_of_chapman_add_up_to_its_records(ecg_data: Path) -> None:
    groups: dict[str, int] = {}
    for row in counts(ecg_data):
        group = chapman.RHYTHM.get(row["SNOMEDCTCode"])
        if group:
            groups[group] = groups.get(group, 0) + int(row["Chapman_Shaoxing"])
    assert groups == {"AFIB": 2225, "GSVT": 2307, "SB": 3889, "SR": 1826}
    assert sum(groups.values()) == 10_247


def test_rhythms_of_chapman_have_the_codes_of_their_acronyms() -> None:
    names = {
        "AFIB": ("AFIB", "AF"),
        "GSVT": ("SVT", "AT", "ST", "AVNRT", "AVRT"),
        "SB": ("SB",),
        "SR": ("SR", "SA"),
    }
    authors = {code_of(name, chapman=True): group for group, all_names in names.items() for name in all_names}
    challenge = {code_of("SAAWR"): "GSVT", code_of("AVNRT"): "GSVT"}
    assert authors | challenge == chapman.RHYTHM


@pytest.mark.parametrize(
    ("abbreviations", "group"),
    [
        (("AFL", "TAb"), ("AFIB",)),
        (("AF", "AFL"), ("AFIB",)),
        (("STach", "SVT"), ("GSVT",)),
        (("SA",), ("SR",)),
        (("SB", "WAP"), ("SB",)),
        (("SB", "AF"), None),
        (("TAb",), None),
        ((), None),
    ],
)
def test_chapman_has_one_rhythm_or_none(abbreviations: tuple[str, ...], group: tuple[str, ...] | None) -> None:
    labels = {"snomed": tuple(map(code_of, abbreviations))}
    assert derived(labels, "chapman-shaoxing").get("chapman-rhythm") == group
    assert "chapman-rhythm" not in derived(labels, "ningbo")
