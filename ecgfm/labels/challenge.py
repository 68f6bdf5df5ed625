"""Weights of the Challenge 2021's score: what an answer is worth for a record of another diagnosis.

Source of `challenge_weights.csv`: `weights.csv` of the PhysioNet/CinC Challenge 2021 (Reyna et al. 2021,
https://doi.org/10.13026/34va-7q14, CC BY 4.0), unchanged. Rows are diagnoses, columns are answers; diagnoses that the
Challenge scores as one share a row, their codes parted by `|`. The score itself is in `ecgfm.eval.weighted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from ecgfm.labels._tables import rows
from ecgfm.labels.snomed import scored_classes

NORMAL = "NSR"
"""The class of the answer that scores 0: sinus rhythm for every record."""


@lru_cache(maxsize=1)
def weights() -> Mapping[str, Mapping[str, float]]:
    """Return the weight of each answer for each diagnosis, by the abbreviations of the 26 scored classes."""
    names = scored_classes()

    def named(codes: str) -> str:
        found = {names[code] for code in codes.split("|")}
        assert len(found) == 1, f"{codes} are not one class"
        return found.pop()

    table = {
        named(row[""]): MappingProxyType({named(codes): float(value) for codes, value in row.items() if codes})
        for row in rows("challenge_weights.csv")
    }
    assert table.keys() == set(names.values())
    return MappingProxyType(table)
