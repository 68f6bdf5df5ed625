"""From a database's counts to the form that shards hold: twelve leads, one rate, one scale, int16.

Where nothing has to be computed (every lead there, one gain, no offset, the rate as wanted) the counts
are kept bit for bit. Otherwise the signal is computed in float64 and quantised once, with a step small
enough that the error stays within half a microvolt.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import LeadError, RecordError
from ecgfm.leads import LEADS, arrange, derivable
from ecgfm.record import MISSING, Record
from ecgfm.signal.quality import Bounds, check
from ecgfm.signal.resample import resample

STEPS_MICROVOLT = (0.25, 0.5, 1.0)
"""Quantisation steps that are tried, finest first: the error is half a step, so at most 0.5 microvolt."""
LARGEST_COUNT = 32_767


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """Twelve leads in canonical order as int16; a sample is `count * microvolt_per_count`."""

    counts_LT: NDArray[np.int16]
    microvolt_per_count: float
    rate_hz: float
    derived: tuple[str, ...]
    """Leads that were computed from I and II."""


def canonical(record: Record, *, rate_hz: float | None, min_s: float, bounds: Bounds) -> Canonical:
    """Return the record in canonical form.

    Args:
        record: As a database gave it.
        rate_hz: Rate wanted; None keeps the record's own.
        min_s: Shortest recording that is kept, in seconds.
        bounds: Amplitudes that are believed.

    Raises:
        RecordError: With the reasons of `quality.check`, or `too-short`, `lead-missing`, `not-int16`.
    """
    seconds = record.counts_LT.shape[1] / record.rate_hz
    if seconds < min_s:
        raise RecordError("too-short", f"{seconds:.3g} s, wanted are at least {min_s:g} s")
    try:
        derived = derivable(record.leads)
    except LeadError as error:
        raise RecordError("lead-missing", str(error)) from error
    signal_LT = (record.counts_LT - record.offset_counts[:, None]) * (record.microvolt_per_count[:, None] * 1e-3)
    signal_LT[record.counts_LT == MISSING] = np.nan
    signal_LT = arrange(signal_LT, record.leads)
    check(signal_LT, LEADS, bounds)
    wanted_hz = record.rate_hz if rate_hz is None else rate_hz
    exact = _exact_counts(record, bool(derived)) if wanted_hz == record.rate_hz else None
    if exact is not None:
        counts_LT, step = exact
    else:
        signal_LT = resample(signal_LT, record.rate_hz, wanted_hz)
        counts_LT, step = quantise(signal_LT * 1e3)
    return Canonical(counts_LT=counts_LT, microvolt_per_count=step, rate_hz=wanted_hz, derived=derived)


def quantise(signal_LT: NDArray[np.float64]) -> tuple[NDArray[np.int16], float]:
    """Return counts and the microvolt of one count, for a signal in microvolt.

    Raises:
        RecordError: `not-int16`: no step up to 1 microvolt holds the largest value.
    """
    largest = float(np.abs(signal_LT).max())
    for step in STEPS_MICROVOLT:
        if largest <= step * LARGEST_COUNT:
            return np.rint(signal_LT / step).astype(np.int16), step
    raise RecordError(
        "not-int16", f"{largest / 1e3:.3g} mV does not fit into int16 with a step of {STEPS_MICROVOLT[-1]:g} microvolt"
    )


def _exact_counts(record: Record, derives: bool) -> tuple[NDArray[np.int16], float] | None:
    """Return the record's own counts in canonical order, or None when they cannot be kept as they are."""
    # Only the twelve leads count: PTB's Frank leads may have another gain.
    index = arrange(np.arange(len(record.leads))[:, None], record.leads)[:, 0] if not derives else None
    if index is None:
        return None
    step = record.microvolt_per_count[index]
    shifted = record.counts_LT[index].astype(np.int32) - record.offset_counts[index][:, None]
    if (step != step[0]).any() or np.abs(shifted).max() > LARGEST_COUNT:
        return None
    return shifted.astype(np.int16), float(step[0])
