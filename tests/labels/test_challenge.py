"""The Challenge's weights are the published ones, for the classes that the label maps give."""

from __future__ import annotations

import csv
from pathlib import Path

from ecgfm.labels import challenge
from ecgfm.labels.snomed import EQUIVALENT, scored_classes


def test_weights_are_of_the_scored_classes_symmetric_and_1_on_the_diagonal() -> None:
    table = challenge.weights()
    assert len(table) == 26 and table.keys() == set(scored_classes().values()) and challenge.NORMAL in table
    for row, answers in table.items():
        assert answers[row] == 1.0 and answers.keys() == table.keys()
        assert all(table[column][row] == value for column, value in answers.items())
        assert all(0.0 < value <= 0.5 for column, value in answers.items() if column != row)


def test_weights_are_those_published(ecg_data: Path) -> None:
    published = (ecg_data / "challenge-2021/dx/weights.csv").read_text(encoding="utf-8")
    with (Path(challenge.__file__).parent / "challenge_weights.csv").open(encoding="utf-8", newline="") as file:
        assert file.read() == published
    rows = list(csv.reader(published.splitlines()))
    names = scored_classes()
    assert [tuple(code.split("|")) for code in rows[0] if "|" in code] == list(EQUIVALENT)
    for row in rows[1:]:
        for code, value in zip(rows[0][1:], row[1:], strict=True):
            assert challenge.weights()[names[row[0].split("|")[-1]]][names[code.split("|")[0]]] == float(value)
