"""Units of voltage. Every float outside this file is millivolt."""

from __future__ import annotations

from typing import Literal, get_args

from ecgfm.errors import SignalError

Unit = Literal["mV", "uV", "V"]

MILLIVOLT_PER: dict[str, float] = {"mV": 1.0, "uV": 1e-3, "V": 1e3}

# WFDB headers and users spell units in any case. "MV" is left out on purpose: it could be megavolt only
# on paper, but it is also how some tools write microvolt.
_SPELLINGS = {"mv": "mV", "uv": "uV", "v": "V", "\u00b5v": "uV", "\u03bcv": "uV", "millivolt": "mV", "microvolt": "uV"}


def millivolt_per(unit: str) -> float:
    """Return how many millivolt one `unit` is.

    Raises:
        SignalError: The unit is not one of mV, uV, V. It is never guessed.
    """
    canonical = _SPELLINGS.get(unit.strip().lower())
    if canonical is None or unit.strip() == "MV":
        raise SignalError(f"unit {unit!r} is not known; give one of {', '.join(get_args(Unit))}")
    return MILLIVOLT_PER[canonical]
