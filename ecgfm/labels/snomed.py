"""SNOMED CT codes of ECG diagnoses: abbreviations, names, and which of them the Challenge scores as one.

Source of `snomed.csv`: the tables `dx_mapping_scored.csv` (30 codes) and `dx_mapping_unscored.csv` (103) of the
PhysioNet/CinC Challenge 2021 (Reyna et al. 2021, https://doi.org/10.13026/34va-7q14, CC BY 4.0), and
`ConditionNames_SNOMED-CT.csv`, the acronyms of the Chapman-Shaoxing and Ningbo databases (Zheng et al. 2020,
https://doi.org/10.1038/s41597-020-0386-x), which has four codes that the Challenge lacks. SNOMED CT itself belongs to
SNOMED International; the table holds the codes with these authors' own names, their doubled spaces made single.

The Challenge's abbreviations are distinct, and they are the ones used here. Chapman's acronyms are kept in a column of
their own, because five of them stand for another code: AF (atrial flutter, the Challenge's AFL), STE, VEB, SAAWR and
AVNRT. Of the four codes that the Challenge lacks, AVNRT (233896004) bears the name of the Challenge's AVNRT
(251166008): both have this abbreviation, which gives the Challenge's code when it is looked up. 2AVB2 (28189009) and
the Challenge's IIAVBII (426183003) are both Mobitz type II by their names; no file says that they are equivalent, so
they stay apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from ecgfm.errors import ConfigError
from ecgfm.labels._tables import rows

EQUIVALENT: tuple[tuple[str, str], ...] = (
    ("733534002", "164909002"),
    ("713427006", "59118001"),
    ("284470004", "63593006"),
    ("427172004", "17338001"),
)
"""Pairs of codes that the Challenge scores as one diagnosis (header of its `weights.csv`): CLBBB and LBBB, CRBBB and
RBBB, PAC and SVPB, PVC and VPB. The first gives the class its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """One code and what it is called."""

    code: str
    """SNOMED CT concept, digits."""
    abbreviation: str
    """The Challenge's."""
    name: str
    scored: bool
    """Whether the Challenge 2021 scores it."""
    chapman: tuple[str, ...]
    """Acronyms of the Chapman-Shaoxing and Ningbo databases; several where they tell apart what one code does not."""


@lru_cache(maxsize=1)
def diagnoses() -> Mapping[str, Diagnosis]:
    """Return all diagnoses by code, the scored ones first."""
    found = (
        Diagnosis(
            code=row["code"],
            abbreviation=row["abbreviation"],
            name=row["name"],
            scored=row["scored"] == "1",
            chapman=tuple(filter(None, row["chapman"].split("|"))),
        )
        for row in rows("snomed.csv")
    )
    return MappingProxyType({diagnosis.code: diagnosis for diagnosis in found})


@lru_cache(maxsize=1)
def scored_classes() -> Mapping[str, str]:
    """Return the abbreviation of its class for each of the 30 scored codes; equivalent codes share one of 26."""
    first = {second: first for first, second in EQUIVALENT}
    return MappingProxyType(
        {
            code: diagnoses()[first.get(code, code)].abbreviation
            for code, diagnosis in diagnoses().items()
            if diagnosis.scored
        }
    )


def diagnosis(code: str) -> Diagnosis:
    """Return what is known of a code.

    Raises:
        ConfigError: It is in none of the tables; the message names near ones.
    """
    found = diagnoses().get(code)
    if found is None:
        near = difflib.get_close_matches(code, diagnoses(), n=3, cutoff=0.75)
        raise ConfigError(
            f"{code!r} is not among the {len(diagnoses())} SNOMED CT codes of the Challenge 2021 and of Chapman"
            f"{_listed(near)}"
        )
    return found


def abbreviation_of(code: str) -> str:
    """Return the Challenge's abbreviation of a code; see `diagnosis` for errors."""
    return diagnosis(code).abbreviation


def name_of(code: str) -> str:
    """Return the name of a code; see `diagnosis` for errors."""
    return diagnosis(code).name


def code_of(abbreviation: str, *, chapman: bool = False) -> str:
    """Return the code of an abbreviation, in the spelling of its vocabulary.

    Args:
        abbreviation: Such as `AFL`.
        chapman: Read it as an acronym of Chapman-Shaoxing and Ningbo, where `AF` is atrial flutter.

    Raises:
        ConfigError: The vocabulary has no such abbreviation; the message names near ones.
    """
    codes = _codes(chapman)
    found = codes.get(abbreviation)
    if found is None:
        lower = {known.lower(): code for known, code in codes.items()}
        near = [lower[known] for known in difflib.get_close_matches(abbreviation.lower(), lower, n=3)]
        # The other vocabulary's word is the likeliest fault: ST, say, which is STach in the Challenge.
        near = [code for code in (_codes(not chapman).get(abbreviation),) if code] + near
        whose = "acronym of Chapman" if chapman else "abbreviation of the Challenge 2021"
        raise ConfigError(f"{abbreviation!r} is no {whose}{_listed(list(dict.fromkeys(near)))}")
    return found


@lru_cache(maxsize=2)
def _codes(chapman: bool) -> Mapping[str, str]:
    """Return codes by abbreviation; where two codes have one, the Challenge's, which stands first."""
    codes: dict[str, str] = {}
    for one in diagnoses().values():
        for abbreviation in one.chapman if chapman else (one.abbreviation,):
            codes.setdefault(abbreviation, one.code)
    return codes


def _listed(codes: list[str]) -> str:
    """Return the end of a message that proposes codes, or that says where all of them are."""
    if not codes:
        return "; ecgfm/labels/snomed.csv lists all"
    found = (diagnoses()[code] for code in codes)
    shown = (
        f"{one.code} ({one.abbreviation}{', in Chapman ' + ' '.join(one.chapman) if one.chapman else ''}: {one.name})"
        for one in found
    )
    return f"; did you mean {', '.join(shown)}?"
