"""Units of voltage."""

from __future__ import annotations

import pytest

from ecgfm.errors import SignalError
from ecgfm.signal.units import millivolt_per


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("mV", 1.0), ("mv", 1.0), (" mV ", 1.0), ("uV", 1e-3), ("UV", 1e-3), ("\u00b5V", 1e-3), ("\u03bcV", 1e-3),
        ("V", 1e3), ("v", 1e3), ("millivolt", 1.0), ("microvolt", 1e-3),
    ],
)  # fmt: skip
def test_spellings(unit: str, factor: float) -> None:
    assert millivolt_per(unit) == factor


@pytest.mark.parametrize("unit", ["MV", " MV", "", "nV", "counts", "NU", "mmHg"])
def test_an_unknown_unit_is_refused_and_never_guessed(unit: str) -> None:
    with pytest.raises(SignalError, match="is not known; give one of mV, uV, V"):
        millivolt_per(unit)
