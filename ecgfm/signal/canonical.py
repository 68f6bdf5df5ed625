"""From a database's numbers to the form that shards hold: twelve leads, one rate, one scale, int16.

Where nothing has to be computed (every lead there, one gain, the rate as wanted, no filter, no sample missing) the
counts are kept bit for bit. Otherwise the signal is computed in float64 and each segment quantised once, with a
step small enough that the error stays within half a microvolt.

The order is: gaps are filled, the whole recording is filtered, resampled, and cut into segments; so no segment
begins with a filter's transient. What a segment is worth is measured on what is written (`ecgfm.signal.flags`),
which recording it is on what was published (`ecgfm.signal.fingerprint`).

Shapes: L leads, T samples.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError, LeadError, RecordError, SignalError
from ecgfm.leads import LEADS, arrange, derivable, positions
from ecgfm.record import MISSING, Record
from ecgfm.signal import gaps
from ecgfm.signal.fingerprint import fingerprint
from ecgfm.signal.flags import Assessment, Thresholds, all_leads_flat, assess, implausible_gain
from ecgfm.signal.highpass import highpass
from ecgfm.signal.resample import RATES_HZ, resample
from ecgfm.signal.segments import cut

STEPS_MICROVOLT = (0.25, 0.5, 1.0)
"""Quantisation steps that are tried, finest first: the error is half a step, so at most 0.5 microvolt."""
LARGEST_COUNT = 32_767
HIGHEST_HIGHPASS_HZ = 5.0
INTERPOLATED = "interpolated"
"""Flag of a segment in which missing samples were filled."""
_ONE_GAIN = np.ones(len(LEADS))


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is done to a signal on its way into shards; the manifest repeats it."""

    rate_hz: float | None = 500.0
    """Rate of the shards; None keeps each record's own."""
    highpass_hz: float | Literal["database"] | None = None
    """Corner of the high-pass filter (Butterworth of order 4, zero phase); None filters nothing, and `database` is for
    the writer of shards, which puts what the database needs."""
    max_gap_s: float = 0.1
    """Longest run of missing samples that is filled by linear interpolation; a longer one refuses the segment. A tenth
    of a second is about the length of a QRS complex, none of which may be made up."""
    min_s: float = 10.0
    """Shortest recording, and shortest segment, that is kept."""
    segment_s: float | None = 60.0
    """Longer recordings are cut into segments of this length; None cuts nothing."""
    refuse: tuple[str, ...] = ()
    """Quality flags that refuse a segment instead of being noted beside it."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    """When a quality flag is raised."""

    def __post_init__(self) -> None:
        if self.segment_s is not None and self.segment_s < self.min_s:
            raise ConfigError(f"--segment-s {self.segment_s:g} is shorter than --min-s {self.min_s:g}: nothing is kept")
        if isinstance(self.highpass_hz, float) and not 0 < self.highpass_hz <= HIGHEST_HIGHPASS_HZ:
            raise ConfigError(
                f"--highpass-hz {self.highpass_hz:g} must be above 0 and at most {HIGHEST_HIGHPASS_HZ:g}: above, it "
                "takes the T wave away"
            )


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Twelve leads in canonical order as int16; a sample is `count * microvolt_per_count`."""

    counts_LT: NDArray[np.int16]
    microvolt_per_count: float
    start_s: float
    assessment: Assessment
    flags: dict[str, tuple[str, ...]]
    """Leads by quality flag."""
    content: str
    """Fingerprint of the source signal; empty when it tells nothing."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A segment that is left out."""

    start_s: float
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """A recording in canonical form."""

    rate_hz: float
    derived: tuple[str, ...]
    """Leads that were computed from I and II."""
    segments: tuple[Segment, ...]
    """At least one."""
    refused: tuple[Refusal, ...]
    cut_s: float
    """Seconds at the end that were too short for a segment."""


def canonical(record: Record, policy: Policy) -> Canonical:
    """Return the record in canonical form.

    Args:
        record: As a database gave it.
        policy: What is done to it.

    Raises:
        RecordError: `implausible-rate`, `too-short`, `lead-missing`, `lead-doubled`, `not-computable`; or no segment
            could be kept, with the reason of the first: `samples-missing`, `not-int16`, `all-leads-flat`,
            `implausible-amplitude`, or a flag of `policy.refuse`.
    """
    assert policy.highpass_hz != "database", "the writer puts the database's own filter"
    source_samples = record.counts_LT.shape[1]
    if not RATES_HZ[0] <= record.rate_hz <= RATES_HZ[1]:
        raise RecordError(
            "implausible-rate",
            f"{record.rate_hz:g} samples a second; believed are {RATES_HZ[0]:g} to {RATES_HZ[1]:g}: check the header",
        )
    # Up to a sample short is as long as rounding lets it be, at 257.3 Hz or so; segments are cut likewise.
    if source_samples <= policy.min_s * record.rate_hz - 1:
        seconds = source_samples / record.rate_hz
        raise RecordError("too-short", f"{seconds:.6g} s, wanted are at least {policy.min_s:g} s")
    derived, order = _layout(record.leads)
    missing_LT = _missing(record, order)
    rate_hz = record.rate_hz if policy.rate_hz is None else policy.rate_hz
    exact = None
    if rate_hz == record.rate_hz and policy.highpass_hz is None and missing_LT is None and not derived:
        exact = _exact_counts(record, order)
    try:
        signal_LT = None if exact else _computed(record, missing_LT, rate_hz, policy.highpass_hz)
    except SignalError as error:  # a rate without a ratio, say: the record is at fault, and the others are not
        raise RecordError("not-computable", str(error)) from error
    samples = source_samples if signal_LT is None else signal_LT.shape[1]
    spans = cut(samples, rate_hz, segment_s=policy.segment_s, min_s=policy.min_s)
    segments: list[Segment] = []
    refused: list[Refusal] = []
    for start, stop in spans:
        source = slice(round(start / rate_hz * record.rate_hz), round(stop / rate_hz * record.rate_hz))
        try:
            filled = () if missing_LT is None else _filled(missing_LT, source, record, policy.max_gap_s)
            if exact:
                counts_LT, step = exact[0][:, start:stop], exact[1]
            else:
                assert signal_LT is not None
                counts_LT, step = quantise(signal_LT[:, start:stop] * 1e3)
            segments.append(
                _segment(record, counts_LT, step, start / rate_hz, source, filled, rate_hz, policy, exact is not None)
            )
        except RecordError as error:
            refused.append(Refusal(start_s=start / rate_hz, reason=error.reason, message=error.message))
    if not segments:
        raise RecordError(refused[0].reason, refused[0].message)
    return Canonical(
        rate_hz=rate_hz,
        derived=derived,
        segments=tuple(segments),
        refused=tuple(refused),
        cut_s=(samples - spans[-1][1]) / rate_hz,
    )


@functools.lru_cache(maxsize=256)
def _layout(leads: tuple[str, ...]) -> tuple[tuple[str, ...], list[int]]:
    """Return the leads that must be derived, and where the others are, in canonical order; the same for a database.

    Raises:
        RecordError: `lead-missing`, `lead-doubled`.
    """
    reason = "lead-doubled"
    try:
        places = positions(leads)
        reason = "lead-missing"
        derived = derivable(leads)
    except LeadError as error:
        raise RecordError(reason, str(error)) from error
    return derived, [places[lead] for lead in LEADS if lead in places]


def quantise(signal_LT: NDArray[np.float64]) -> tuple[NDArray[np.int16], float]:
    """Return counts and the microvolt of one count, for a signal in microvolt.

    Raises:
        RecordError: `not-int16`: no step up to 1 microvolt holds the largest value.
    """
    largest = max(float(signal_LT.max()), -float(signal_LT.min()))
    for step in STEPS_MICROVOLT:
        if largest <= step * LARGEST_COUNT:
            scaled_LT = signal_LT / step
            return np.rint(scaled_LT, out=scaled_LT).astype(np.int16), step
    raise RecordError(
        "not-int16", f"{largest / 1e3:.3g} mV does not fit into int16 with a step of {STEPS_MICROVOLT[-1]:g} microvolt"
    )


def _segment(
    record: Record,
    counts_LT: NDArray[np.int16],
    step: float,
    start_s: float,
    source: slice,
    filled: tuple[str, ...],
    rate_hz: float,
    policy: Policy,
    exact: bool,
) -> Segment:
    """Return the segment with what it is worth.

    Raises:
        RecordError: `all-leads-flat`, `implausible-amplitude`, or a flag of `policy.refuse`.
    """
    values_LT = counts_LT.astype(np.float64)
    assessment = assess(counts_LT, step, rate_hz, policy.thresholds, values_LT)
    published_LT = record.counts_LT[:, source]
    if message := implausible_gain(assessment, policy.thresholds, published_LT):
        raise RecordError("implausible-amplitude", message)
    if message := all_leads_flat(assessment):
        raise RecordError("all-leads-flat", message)
    flags = dict(assessment.flags)
    if filled:
        flags[INTERPOLATED] = filled
    for flag in policy.refuse:
        if flag in flags:
            raise RecordError(flag, f"{flag}: {', '.join(flags[flag]) or 'the record'}")
    if exact:
        # Of the published counts the fingerprint is the same, but they would have to be made floats once more.
        content = fingerprint(values_LT, LEADS, _ONE_GAIN, record.rate_hz)
    else:
        content = fingerprint(published_LT, record.leads, record.microvolt_per_count, record.rate_hz)
    return Segment(
        counts_LT=counts_LT,
        microvolt_per_count=step,
        start_s=start_s,
        assessment=assessment,
        flags=flags,
        content=content,
    )


def _missing(record: Record, order: list[int]) -> NDArray[np.bool_] | None:
    """Return where the twelve leads have no sample, in the record's own order of leads, or None."""
    counts_LT = record.counts_LT
    if counts_LT.dtype == np.int16:
        if counts_LT.min() != MISSING:
            return None
        missing_LT = counts_LT == MISSING
    else:
        missing_LT = np.isnan(counts_LT)
    others = [index for index in range(len(record.leads)) if index not in order]
    missing_LT[others] = False
    return missing_LT if missing_LT.any() else None


def _filled(missing_LT: NDArray[np.bool_], source: slice, record: Record, max_gap_s: float) -> tuple[str, ...]:
    """Return the leads of a segment in which samples are filled.

    Raises:
        RecordError: `samples-missing`: a run is too long to be made up.
    """
    longest, lead = gaps.longest_gap(missing_LT, source.start, source.stop)
    if longest > max_gap_s * record.rate_hz:
        raise RecordError(
            "samples-missing",
            f"{longest:,} samples in a row ({longest / record.rate_hz:.3g} s) are missing in {record.leads[lead]}, "
            f"filled are at most {max_gap_s:g} s",
        )
    return tuple(record.leads[index] for index in np.flatnonzero(missing_LT[:, source].any(axis=1)))


def _computed(
    record: Record, missing_LT: NDArray[np.bool_] | None, rate_hz: float, highpass_hz: float | None
) -> NDArray[np.float64]:
    """Return the whole recording in millivolt, canonical order, at the rate wanted."""
    # In place, here and in `quantise`: making room for arrays of this size takes as long as the arithmetic.
    signal_LT = record.counts_LT.astype(np.float64)
    signal_LT -= record.offset_counts[:, None]
    signal_LT *= record.microvolt_per_count[:, None] * 1e-3
    if missing_LT is not None:
        signal_LT[missing_LT] = np.nan
        signal_LT = gaps.fill(signal_LT)
    signal_LT = arrange(signal_LT, record.leads)
    if highpass_hz is not None:
        signal_LT = highpass(signal_LT, record.rate_hz, highpass_hz)
    return signal_LT if rate_hz == record.rate_hz else resample(signal_LT, record.rate_hz, rate_hz)


def _exact_counts(record: Record, order: list[int]) -> tuple[NDArray[np.int16], float] | None:
    """Return the record's own counts in canonical order, or None when they cannot be kept as they are."""
    if record.counts_LT.dtype != np.int16:
        return None
    # Only the twelve leads count: PTB's Frank leads may have another gain.
    step_L, offset_L = record.microvolt_per_count.tolist(), record.offset_counts.tolist()
    step = step_L[order[0]]
    if any(step_L[lead] != step for lead in order):
        return None
    in_order = order == list(range(len(record.counts_LT)))
    counts_LT = np.asarray(record.counts_LT if in_order else record.counts_LT[order], dtype=np.int16)
    if any(offset_L[lead] for lead in order):
        shifted = counts_LT.astype(np.int32) - record.offset_counts[order][:, None]
        if np.abs(shifted).max() > LARGEST_COUNT:
            return None
        counts_LT = shifted.astype(np.int16)
    return counts_LT, step
