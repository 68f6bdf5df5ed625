"""The twelve standard leads: names, canonical order, and what can be derived from what.

Leads are matched by name, never by position: MIMIC-IV-ECG stores aVR, aVF, aVL, and PTB writes lower
case. The limb-lead identities are Einthoven's (III = II - I) and Goldberger's (aVR = -(I + II) / 2,
aVL = I - II / 2, aVF = II - I / 2).

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import LeadError

LEADS: tuple[str, ...] = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""Canonical names in canonical order."""

# Each derived lead as weights of (I, II).
DERIVED: dict[str, tuple[float, float]] = {
    "III": (-1.0, 1.0),
    "aVR": (-0.5, -0.5),
    "aVL": (1.0, -0.5),
    "aVF": (-0.5, 1.0),
}

_CANONICAL = {name.lower(): name for name in LEADS}


def canonical_name(name: str) -> str | None:
    """Return the canonical spelling of a lead's name, or None when it is not one of the twelve."""
    return _CANONICAL.get(name.strip().lower())


def positions(names: Sequence[str]) -> dict[str, int]:
    """Return where each standard lead stands in `names`; other leads (vx, ...) are passed over.

    Raises:
        LeadError: A standard lead is named twice.
    """
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        canonical = canonical_name(name)
        if canonical is None:
            continue
        if canonical in found:
            raise LeadError(
                f"lead {canonical} is named twice, at positions {found[canonical]} and {index} of {list(names)}"
            )
        found[canonical] = index
    return found


def derivable(names: Sequence[str], wanted: Sequence[str] = LEADS) -> tuple[str, ...]:
    """Return the canonical leads among `wanted` that `names` lacks and that I and II give.

    Raises:
        LeadError: A lead is named twice, or one is missing that cannot be derived.
    """
    found = positions(names)
    missing = [lead for lead in wanted if lead not in found]
    hopeless = [lead for lead in missing if lead not in DERIVED or not {"I", "II"} <= found.keys()]
    if hopeless:
        raise LeadError(
            f"missing {', '.join(hopeless)} among the leads {list(names)}; III, aVR, aVL and aVF can be derived "
            "from I and II, nothing else can: give the missing leads under their standard names"
        )
    return tuple(missing)


def arrange(signal: NDArray[Any], names: Sequence[str], wanted: Sequence[str] = LEADS) -> NDArray[Any]:
    """Return some leads in their order, by default the twelve in the canonical one.

    Args:
        signal: Shape (..., L, T), all leads in one unit.
        names: L lead names in any case and order.
        wanted: Canonical names of W leads.

    Returns:
        Shape (..., W, T). The input's dtype when every lead is there, else float64.

    Raises:
        LeadError: `names` does not fit the signal, or a lead is missing that cannot be derived.
    """
    if signal.ndim < 2 or signal.shape[-2] != len(names):
        raise LeadError(f"{len(names)} lead names for a signal of shape {signal.shape}; expected (..., leads, samples)")
    missing = derivable(names, wanted)
    found = positions(names)
    if not missing:
        return signal[..., [found[lead] for lead in wanted], :]
    one, two = (signal[..., found[lead], :].astype(np.float64) for lead in ("I", "II"))
    rows = [
        signal[..., found[lead], :] if lead in found else DERIVED[lead][0] * one + DERIVED[lead][1] * two
        for lead in wanted
    ]
    return np.stack(rows, axis=-2).astype(np.float64)
