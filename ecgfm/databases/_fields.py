"""Age and sex as the databases write them: many spellings of a value, many of "not known"."""

from __future__ import annotations

import math

from ecgfm.record import Sex

HIDDEN_AGE = 300.0
LOWEST_HIDDEN_AGE = 90.0
_SEX: dict[str, Sex] = {"f": "female", "female": "female", "m": "male", "male": "male"}


def age_years(text: str) -> float | None:
    """Return an age in years; None for an empty field, "Unknown", "NaN" and negative numbers such as -1.

    PTB-XL and its copies hide ages above 89 as 300: we give 90, the lowest that it can stand for, so that it counts as
    old and not as unknown. We know of the 300 from users of the full table; no file that this was tried with holds one.
    """
    try:
        age = float(text)
    except ValueError:
        return None
    if age == HIDDEN_AGE:
        return LOWEST_HIDDEN_AGE
    return age if math.isfinite(age) and age >= 0 else None


def sex_of(text: str) -> Sex | None:
    """Return the sex written in any case, in full or as one letter; None for anything else."""
    return _SEX.get(text.strip().lower())
