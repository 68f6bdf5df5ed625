"""The waves of each morphology, as vectors of the heart's dipole.

The places, widths and directions are ours, chosen by hand so that the leads show what the textbooks describe
(Surawicz et al. 2009, https://doi.org/10.1161/CIRCULATIONAHA.108.191095, for the bundle branch blocks). They are
schematic: good for trying software, not for learning medicine.

Frank axes: X to the left, Y to the feet, Z to the back.

Shapes: W waves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._synthetic_dipole import Waves

Part = Literal["P", "QRS", "ST", "T"]


@dataclass(frozen=True)
class Wave:
    """One Gaussian at an interval of one second."""

    part: Part
    centre_ms: float
    """From the R peak."""
    width_ms: float
    x_mv: float
    y_mv: float
    z_mv: float


_P = (
    Wave("P", -150.0, 17.0, 0.045, 0.080, -0.030),  # right atrium: forwards and down
    Wave("P", -125.0, 18.0, 0.050, 0.050, 0.035),  # left atrium: left and backwards
)
_T = (
    Wave("T", 245.0, 44.0, 0.22, 0.17, -0.15),  # slow rise
    Wave("T", 285.0, 27.0, 0.24, 0.18, -0.14),  # steeper fall
)
_SEPTUM = Wave("QRS", -22.0, 7.5, -0.13, 0.02, -0.28)
_APEX = Wave("QRS", -2.0, 8.5, 1.00, 0.75, -0.10)
_LATERAL_WALL = Wave("QRS", 14.0, 8.5, 0.35, 0.12, 0.72)
_BASE = Wave("QRS", 32.0, 8.0, -0.18, -0.10, 0.22)

NORMAL = (*_P, _SEPTUM, _APEX, _LATERAL_WALL, _BASE, *_T)

# No septal q, two slow summits to the left and back (the notch in I, aVL, V5, V6; QS in V1), T opposed.
LBBB = (
    *(replace(wave, centre_ms=wave.centre_ms - 25.0) for wave in _P),  # QRS begins that much earlier before R
    Wave("QRS", -42.0, 11.0, 0.22, 0.08, -0.04),
    Wave("QRS", -14.0, 15.5, 0.80, 0.32, 0.58),
    Wave("QRS", 22.0, 15.0, 0.66, 0.16, 0.78),
    Wave("QRS", 54.0, 16.0, 0.82, 0.14, 0.52),
    Wave("ST", 130.0, 42.0, -0.07, -0.02, -0.14),
    Wave("T", 255.0, 48.0, -0.22, -0.04, -0.30),
    Wave("T", 300.0, 32.0, -0.16, -0.03, -0.20),
)

# The left ventricle as usual, then the right one late: slowly to the right and forwards (rsR' in V1, wide S in I, V6).
RBBB = (
    *_P,
    _SEPTUM,
    Wave("QRS", -2.0, 8.5, 0.95, 0.70, -0.02),
    Wave("QRS", 14.0, 8.0, 0.30, 0.12, 0.62),
    Wave("QRS", 52.0, 13.0, -0.40, -0.06, -0.55),
    Wave("QRS", 76.0, 15.0, -0.28, -0.04, -0.38),
    Wave("T", 260.0, 46.0, 0.22, 0.15, 0.09),
    Wave("T", 300.0, 29.0, 0.24, 0.16, 0.08),
)

# High voltage to the left and back, ST and T turned away from it ("strain").
LVH = (
    *_P,
    Wave("QRS", -24.0, 8.0, -0.16, 0.02, -0.30),
    Wave("QRS", -2.0, 10.0, 1.85, 0.80, 0.25),
    Wave("QRS", 15.0, 10.0, 0.75, 0.15, 1.25),
    Wave("QRS", 36.0, 9.0, -0.20, -0.10, 0.30),
    Wave("ST", 130.0, 45.0, -0.12, -0.04, -0.08),
    Wave("T", 255.0, 44.0, -0.16, -0.05, -0.20),
    Wave("T", 295.0, 26.0, -0.19, -0.05, -0.14),
)

# Injury of the inferior wall: ST raised in II, III, aVF and lowered in I, aVL, into a tall inferior T; small q there.
INFERIOR_ST_ELEVATION = (
    *_P,
    Wave("QRS", -26.0, 8.0, -0.06, -0.22, -0.18),
    _APEX,
    _LATERAL_WALL,
    _BASE,
    Wave("ST", 85.0, 24.0, -0.08, 0.26, 0.05),
    Wave("ST", 130.0, 32.0, -0.08, 0.26, 0.05),
    Wave("ST", 185.0, 38.0, -0.08, 0.28, 0.02),
    Wave("T", 245.0, 42.0, 0.06, 0.30, -0.08),
    Wave("T", 285.0, 27.0, 0.08, 0.26, -0.08),
)

LOW_VOLTAGE = tuple(
    replace(wave, x_mv=0.36 * wave.x_mv, y_mv=0.36 * wave.y_mv, z_mv=0.36 * wave.z_mv) if wave.part != "P" else wave
    for wave in NORMAL
)

MORPHOLOGIES: dict[str, tuple[Wave, ...]] = {
    "normal": NORMAL,
    "lbbb": LBBB,
    "rbbb": RBBB,
    "lvh": LVH,
    "inferior-st-elevation": INFERIOR_ST_ELEVATION,
    "low-voltage": LOW_VOLTAGE,
}
"""By label."""

# A beat that starts in a ventricle: no P, wide, T opposed. Directions are along X; the patient's focus turns them.
ECTOPIC = (
    Wave("QRS", -42.0, 17.0, 0.55, 0.00, 0.10),
    Wave("QRS", -5.0, 22.0, 1.15, 0.10, 0.00),
    Wave("QRS", 40.0, 20.0, 0.70, 0.00, -0.20),
    Wave("ST", 130.0, 40.0, -0.16, 0.00, 0.00),
    Wave("T", 265.0, 48.0, -0.34, -0.04, 0.00),
    Wave("T", 310.0, 32.0, -0.20, -0.02, 0.00),
)


def as_waves(table: tuple[Wave, ...], scale_W: NDArray[np.float64]) -> Waves:
    """Return a table as arrays, each wave's amplitude multiplied by its scale."""
    peak_mv_W3 = np.array([(wave.x_mv, wave.y_mv, wave.z_mv) for wave in table])
    return Waves(
        centre_s_W=np.array([wave.centre_ms for wave in table]) * 1e-3,
        width_s_W=np.array([wave.width_ms for wave in table]) * 1e-3,
        peak_mv_W3=peak_mv_W3 * scale_W[:, None],
        stretches_W=np.array([wave.part != "QRS" for wave in table]),
    )


def without_p(table: tuple[Wave, ...]) -> tuple[Wave, ...]:
    """Return a table without its P waves."""
    return tuple(wave for wave in table if wave.part != "P")


def with_pr(table: tuple[Wave, ...], later_ms: float) -> tuple[Wave, ...]:
    """Return a table whose P waves come earlier, so that the PR interval is `later_ms` longer."""
    return tuple(replace(w, centre_ms=w.centre_ms - later_ms) if w.part == "P" else w for w in table)
