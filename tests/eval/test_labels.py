"""Labels that cannot be probed are refused, with what could be meant."""

from __future__ import annotations

import pytest

from ecgfm.errors import ConfigError
from ecgfm.eval.labels import Labelled, target


def labelled() -> Labelled:
    """Forty records of twenty patients; the last two say nothing in the scheme."""
    labels: list[dict[str, list[str]]] = []
    for number in range(40):
        codes = ["Rhythm: Sinus" if number < 20 else "Rhythm: AF"]
        codes += ["rare"] if number < 4 else []
        labels.append({"ludb": [*codes, "all"]} if number < 38 else {"other": ["x"]})
    return Labelled(patients=tuple(f"p{number // 2}" for number in range(40)), labels=tuple(labels))


def test_a_code_may_hold_colons_and_records_without_the_scheme_are_left_out() -> None:
    found = target(labelled(), "ludb:Rhythm: Sinus", 2)
    assert found.positive_N.sum() == 20 and len(found.index_N) == 38 and found.unknown == 2
    assert found.patients[:3] == ("p0", "p0", "p1")


def test_counts_are_of_records_and_patients() -> None:
    assert labelled().counts()["ludb:rare"] == (4, 2)
    assert next(iter(labelled().counts())) == "ludb:all"


@pytest.mark.parametrize(
    ("label", "folds", "message"),
    [
        ("ludb:Rhythm: sinuss", 2, "did you mean 'ludb:Rhythm: Sinus' \\(20\\)"),
        ("AF", 2, "did you mean 'ludb:Rhythm: AF'"),
        ("zzzz:qqqq", 2, "most frequent are 'ludb:all' \\(38\\)"),
        ("ludb:all", 2, "all 38 records .* no contrast"),
        ("ludb:rare", 2, "2 patients with it are too few for --folds 2, which need 2 in each: give another label"),
        ("ludb:Rhythm: AF", 5, "9 patients with it are too few for --folds 5.*give --folds 4"),
    ],
)
def test_a_label_that_cannot_be_probed_is_refused(label: str, folds: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(labelled(), label, folds)
