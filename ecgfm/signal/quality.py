"""Is this an ECG? Checks that refuse a record, with a reason and the value.

The bounds are wide: they catch a wrong gain (off by a factor of 1000 or more), a dead lead and a rail,
not an unusual heart. They are stated in the manifest.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import RecordError


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Amplitudes that are believed, as peak to peak between the 0.1 and 99.9 percentile of a lead."""

    median_lead_mv: tuple[float, float] = (0.05, 20.0)
    """Lowest and highest median over the leads. Voltages in the LUDB, Georgia and Ningbo samples: 0.5-3 mV."""
    largest_lead_mv: float = 30.0
    """Highest of any lead. A paced QRS reaches 10 mV; amplifiers saturate above."""
    largest_offset_mv: float = 15.0
    """Highest median of any lead, either side of 0. A dead lead sits at its amplifier's rail, and two of them in
    600 records are enough to make a database's standard deviation ten times too large."""


def peak_to_peak_mv(signal_LT: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return shape (L,): the span between the 0.1 and 99.9 percentile of each lead."""
    # A partial sort of 2 places: np.percentile interpolates, which is four times slower and no better here.
    samples = signal_LT.shape[-1]
    low, high = round(0.001 * (samples - 1)), round(0.999 * (samples - 1))
    ordered = np.partition(signal_LT, (low, high), axis=-1)
    return np.asarray(ordered[..., high] - ordered[..., low], dtype=np.float64)


def check(signal_LT: NDArray[np.floating], names: Sequence[str], bounds: Bounds) -> None:
    """Refuse a record whose signal cannot be an ECG.

    Args:
        signal_LT: Millivolt; NaN where a sample is missing.
        names: Names of the leads, for the message.
        bounds: What is believed.

    Raises:
        RecordError: `samples-missing`, `lead-all-missing`, `lead-flat`, `implausible-amplitude`,
            `implausible-offset`.
    """
    missing_L = np.isnan(signal_LT).sum(axis=-1)
    if missing_L.any():
        samples = signal_LT.shape[-1]
        empty = [name for name, count in zip(names, missing_L, strict=True) if count == samples]
        if empty:
            raise RecordError("lead-all-missing", f"no sample at all in {', '.join(empty)}")
        worst = int(missing_L.argmax())
        raise RecordError("samples-missing", f"{missing_L[worst]} of {samples} samples missing in {names[worst]}")
    flat = [name for name, row in zip(names, signal_LT, strict=True) if row.min() == row.max()]
    if flat:
        raise RecordError("lead-flat", f"the same value from end to end in {', '.join(flat)}")
    span_L = peak_to_peak_mv(signal_LT)
    median, largest = float(np.median(span_L)), int(span_L.argmax())
    low, high = bounds.median_lead_mv
    if not low <= median <= high:
        raise RecordError(
            "implausible-amplitude",
            f"median peak to peak over the leads is {median:.3g} mV, believed are {low:g} to {high:g} mV: "
            "the gain in the header is probably wrong",
        )
    if span_L[largest] > bounds.largest_lead_mv:
        raise RecordError(
            "implausible-amplitude",
            f"peak to peak of {names[largest]} is {span_L[largest]:.3g} mV, believed is up to "
            f"{bounds.largest_lead_mv:g} mV: saturated, or the gain in the header is wrong",
        )
    median_L = np.median(signal_LT, axis=-1)
    farthest = int(np.abs(median_L).argmax())
    if abs(median_L[farthest]) > bounds.largest_offset_mv:
        raise RecordError(
            "implausible-offset",
            f"the median of {names[farthest]} is {median_L[farthest]:.3g} mV, believed is up to "
            f"{bounds.largest_offset_mv:g} mV either side of 0: a dead lead at its rail",
        )
