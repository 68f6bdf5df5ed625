"""Age and sex as the databases write them: many spellings of a value, many of "not known"."""

from __future__ import annotations

import math

from ecgfm.record import Sex

_SEX: dict[str, Sex] = {"f": "female", "female": "female", "m": "male", "male": "male"}


def age_years(text: str) -> float | None:
    """Return an age in years; None for an empty field, "Unknown", "NaN" and negative numbers such as -1."""
    try:
        age = float(text)
    except ValueError:
        return None
    return age if math.isfinite(age) and age >= 0 else None


def sex_of(text: str) -> Sex | None:
    """Return the sex written in any case, in full or as one letter; None for anything else."""
    return _SEX.get(text.strip().lower())
