"""What is wrong with a segment: flags by lead, from exact sums, in some 110 microseconds a record.

A flag refuses nothing: it is written beside the sample, so that training can leave it out. Two verdicts refuse what
cannot be an ECG: `implausible_gain` and `all_leads_flat`. The sums behind the flags are returned as well, for the
database's statistics.

How it is made cheap (12 leads of 5,000 samples, one thread, microseconds): extremes of windows of two seconds 23,
counts as float64 9, sums 7, sums of squares 8, limb-lead identities 14 (72 where they fail, 310 with the search for a
swap), power line 24 (86 where every lead has one), the flags by lead 5: as plain numbers, a comparison of twelve takes
less than NumPy's call. Percentiles would cost 460: amplitudes are medians over windows instead, which one artefact does
not move either. Sums of products of int16 stay below 2^53 up to 8 million samples, so float64 adds them exactly, in any
order and on any number of threads.

Records with a flag, with the thresholds as they stand; a sample of those that fired was looked at, lead by lead:

| | LUDB | six others* | Ningbo | 2011 acceptable | 2011 unacceptable |
|---|---|---|---|---|---|
| records | 200 | 36 | 10 | 619 | 179 |
| flat-lead | 0 | 0 | 2 | 6 | 110 |
| dead-lead | 0 | 0 | 0 | 9 | 104 |
| saturated-lead | 0 | 0 | 0 | 8 | 36 |
| implausible-amplitude | 0 | 0 | 0 | 30 | 63 |
| powerline | 0 | 0 | 2 | 14 | 11 |
| limb-leads-disagree | 0 | 0 | 0 | 0 (619) | 0 (124) |
| lead-swap | 0 | 0 | 0 | 0 (619) | 0 (106) |
| any of them | 0 | 0 | 4 | 48 | 154 |
| refused | 0 | 0 | 0 | 0 | 57 |

*Georgia, CPSC 2018, CODE-15, PTB, PTB-XL, and PTB-XL of the Challenge 2021. "2011" is set A of the Challenge 2011,
judged by people. In brackets as its headers name the leads: in every acceptable record aVL and aVF stand in each
other's place; the other numbers are with the two exchanged. Accepted leads that are flagged are dead for some seconds,
saturated or under a burst of 50 mV; the 25 unacceptable records without a flag are noisy, wander or have small waves,
for which there is no flag here. With the gains of LUDB's headers, which scale each lead by itself, the limb leads
disagree in 195 of 200.

What is measured is what is written. Resampling blurs a rail and a high-pass filter bends it, so that `saturated-lead`
and `dead-lead` miss there what they find in counts as published.

Shapes: L leads (twelve, in canonical order), T samples, W windows, n samples of a window, F line frequencies,
K below, at and above a line.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError, SignalError
from ecgfm.leads import LEADS
from ecgfm.signal.limb_leads import LIMB_LEADS, limb_leads

LEAD_FLAGS = ("flat-lead", "dead-lead", "saturated-lead", "implausible-amplitude", "powerline")
FLAGS = (*LEAD_FLAGS, "limb-leads-disagree", "lead-swap")
NEIGHBOUR_HZ = 3.0
"""How far from a line frequency its neighbours are: outside the window's own width of 1 Hz a side, and outside the
drift of a power grid."""

MOVING_COUNTS = 50.0
"""Published leads that span as much hold a signal, whatever their gain says: converters of ECGs have counts of 5
microvolt or less."""

Flags = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a flag is raised. Amplitudes are peak to peak in a window, as the median over the windows."""

    window_s: float = 2.0
    """Length of the windows: each holds a beat down to 30 a minute."""
    flat_mv: float = 0.005
    """`flat-lead`: amplitude up to this, or up to one count. Noise alone is larger in a lead that is connected."""
    dead_mv: float = 1.0
    """`dead-lead`: flat, and this far from 0."""
    rail_mv: float = 15.0
    """`dead-lead`: this far from 0, flat or not: at a rail, or an electrode without contact. The level is the middle
    between highest and lowest value, as the median over the windows."""
    saturated_mv: float = 3.0
    """`saturated-lead`: the lead's highest or lowest value is at least this far from 0. Below, a value that repeats is
    the step of the converter."""
    saturated_run_s: float = 0.008
    """`saturated-lead`: how long the extreme value is kept (at least three samples) to count as saturated."""
    saturated_band: float = 0.005
    """`saturated-lead`: how near the extreme value counts as the same, as a share of the lead's span: rails are noisy,
    and resampling ripples. Of 3 mV it is 15 microvolt: an R peak passes through within two milliseconds."""
    saturated_share: float = 0.01
    """`saturated-lead`: share of the samples that is kept so. LUDB holds values up to 60 ms, share 0.006."""
    lead_mv: tuple[float, float] = (0.03, 12.0)
    """`implausible-amplitude`: lowest and highest amplitude of a lead that is not flat. A paced QRS reaches 10 mV."""
    excursion_mv: float = 30.0
    """`implausible-amplitude`: highest less lowest value of the whole segment. One burst of 80 mV in a second weighs
    more in a database's standard deviation than a thousand records."""
    median_lead_mv: tuple[float, float] = (0.05, 20.0)
    """Refused outside: median amplitude over the leads that are not flat. A gain that lies is off by 1000 or so."""
    limb_mv: float = 0.02
    """`limb-leads-disagree`: root mean square that an identity may miss by, whatever the amplitude: four times what
    rounding to counts of 5 microvolt gives."""
    limb_share: float = 0.1
    """`limb-leads-disagree`: and as a share of the root mean square of the limb leads."""
    line_hz: tuple[float, ...] = (50.0, 60.0)
    """`powerline`: frequencies of power grids."""
    line_mv: float = 0.05
    """`powerline`: lowest amplitude (half of peak to peak) of the line."""
    line_ratio: float = 3.0
    """`powerline`: how much larger than 3 Hz to either side: a QRS has 50 Hz in it, but not that alone."""

    def __post_init__(self) -> None:
        for name in ("lead_mv", "median_lead_mv"):
            low, high = getattr(self, name)
            if not 0.0 <= low < high:
                raise ConfigError(f"thresholds.{name} needs 0 <= low < high, got {low} {high}")
        if not self.window_s > 0.0:
            raise ConfigError(f"thresholds.window_s is in seconds, above 0; got {self.window_s}")


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Flags of a segment and the numbers behind them."""

    flags: Flags
    """The leads by flag, in canonical order; only flags that are raised."""
    swap: dict[str, str]
    """Where `lead-swap` is raised: what each of its leads really is, `-` before a lead that is inverted."""
    sum_L: NDArray[np.float64]
    """Sum of the counts, exact."""
    sum_square_L: NDArray[np.float64]
    """Sum of the squared counts, exact."""
    peak_to_peak_mv_L: NDArray[np.float64]
    """Highest less lowest value of a window, median over the windows."""
    excursion_mv_L: NDArray[np.float64]
    """Highest less lowest value of the segment."""
    level_mv_L: NDArray[np.float64]
    """Middle between highest and lowest value of a window, median over the windows."""
    line_mv_LF: NDArray[np.float64]
    """Amplitude at each of `Thresholds.line_hz`, root mean square over the windows; 0 where the rate or the length is
    too low for it."""


def assess(
    counts_LT: NDArray[np.int16],
    microvolt_per_count: float,
    rate_hz: float,
    thresholds: Thresholds,
    values_LT: NDArray[np.float64] | None = None,
) -> Assessment:
    """Return the flags of a segment, and its sums.

    Args:
        counts_LT: Shape (12, T), canonical order, every sample there.
        microvolt_per_count: Of every lead.
        rate_hz: Samples per second.
        thresholds: When a flag is raised.
        values_LT: The same counts as float64, where the caller has them.

    Raises:
        SignalError: The array is not twelve leads of int16.
    """
    if counts_LT.dtype != np.int16 or counts_LT.ndim != 2 or len(counts_LT) != len(LEADS) or counts_LT.shape[1] < 1:
        raise SignalError(f"expected int16 of shape (12, samples), got {counts_LT.dtype} of shape {counts_LT.shape}")
    if values_LT is None:
        values_LT = counts_LT.astype(np.float64)
    mv = microvolt_per_count * 1e-3
    extremes = _extremes(counts_LT, max(1, round(thresholds.window_s * rate_hz)), mv)
    raised = _by_lead(counts_LT, extremes, mv, rate_hz, thresholds)
    limbs = limb_leads(
        counts_LT[:6],
        values_LT[:6],
        largest=max(*extremes.highest[:6], *(-lowest for lowest in extremes.lowest[:6])),
        tolerance=thresholds.limb_mv / mv,
        share=thresholds.limb_share,
        any_flat=any(lead in raised["flat-lead"] for lead in LIMB_LEADS),
    )
    line_mv_LF, raised["powerline"] = _power_line(values_LT, mv, rate_hz, thresholds)
    raised["limb-leads-disagree"] = limbs.disagree
    raised["lead-swap"] = tuple(limbs.swap)
    return Assessment(
        flags={flag: tuple(leads) for flag, leads in raised.items() if leads},
        swap=limbs.swap,
        sum_L=values_LT @ _ones(values_LT.shape[1]),
        sum_square_L=np.vecdot(values_LT, values_LT),
        peak_to_peak_mv_L=extremes.peak_to_peak_mv_L,
        excursion_mv_L=extremes.excursion_mv_L,
        level_mv_L=extremes.level_mv_L,
        line_mv_LF=line_mv_LF,
    )


def implausible_gain(
    assessment: Assessment, thresholds: Thresholds, published_LT: NDArray[np.floating | np.integer] | None = None
) -> str | None:
    """Say why a segment's amplitude is none that a heart has, so that its gain must be wrong, or return None.

    It is the median over the leads that are not flat. Ask this before `all_leads_flat`: a gain that lies by a million
    makes every lead flat.

    Args:
        assessment: Of the segment.
        thresholds: Those of the assessment.
        published_LT: The same segment in the database's own counts: only they tell a signal that the gain has
            made 0 from electrodes that were not connected. Floats are not asked: they are in mV.
    """
    flat = assessment.flags.get("flat-lead", ())
    span_mv = assessment.peak_to_peak_mv_L.tolist()
    if len(flat) == len(LEADS):
        if published_LT is None or published_LT.dtype != np.int16:
            return None
        moves = float(np.median(published_LT.max(axis=1).astype(np.float64) - published_LT.min(axis=1)))
        moves_mv = statistics.median(assessment.excursion_mv_L.tolist())
        if moves < MOVING_COUNTS or moves_mv > thresholds.flat_mv:
            return None
        return f"the leads move by {moves:g} counts and by {moves_mv:.3g} mV: the gain in the header is wrong"
    low, high = thresholds.median_lead_mv
    median = statistics.median(span for lead, span in zip(LEADS, span_mv, strict=True) if lead not in flat)
    if low <= median <= high:
        return None
    return (
        f"median peak to peak over the leads is {median:.3g} mV, believed are {low:g} to {high:g} mV: "
        "the gain in the header is probably wrong"
    )


def all_leads_flat(assessment: Assessment) -> str | None:
    """Say why a segment in which every lead is flat or dead is no ECG, or return None."""
    silent = {*assessment.flags.get("flat-lead", ()), *assessment.flags.get("dead-lead", ())}
    if len(silent) < len(LEADS):
        return None
    farthest = float(np.abs(assessment.level_mv_L).max())
    return f"every lead is flat or at a rail, up to {farthest:.3g} mV from 0: no electrode was connected"


class _Extremes(NamedTuple):
    """How high and low the leads go; see `Assessment`."""

    highest: list[int]
    lowest: list[int]
    excursion_mv_L: NDArray[np.float64]
    peak_to_peak_mv_L: NDArray[np.float64]
    level_mv_L: NDArray[np.float64]


def _extremes(counts_LT: NDArray[np.int16], window: int, mv: float) -> _Extremes:
    """Return the extremes of the segment and the medians of those of its windows."""
    leads, samples = counts_LT.shape
    window = min(window, samples)
    whole = samples // window * window
    windows_LWn = counts_LT[:, :whole].reshape(leads, -1, window)
    highest_LW, lowest_LW = windows_LWn.max(axis=-1), windows_LWn.min(axis=-1)
    highest_L, lowest_L = highest_LW.max(axis=1), lowest_LW.min(axis=1)
    if whole < samples:
        # What is left over counts for the extremes, not for the medians: it may be too short to hold a beat.
        highest_L = np.maximum(highest_L, counts_LT[:, whole:].max(axis=1))
        lowest_L = np.minimum(lowest_L, counts_LT[:, whole:].min(axis=1))
    # Spans, and the doubles of the middles; both in one array, as each call on so few numbers costs the same.
    both_2LW = np.empty((2, *highest_LW.shape))
    np.subtract(highest_LW, lowest_LW, out=both_2LW[0], dtype=np.float64)
    np.add(highest_LW, lowest_LW, out=both_2LW[1], dtype=np.float64)
    span_mv_L, doubled_mv_L = _median(both_2LW) * mv
    return _Extremes(
        highest=highest_L.tolist(),
        lowest=lowest_L.tolist(),
        excursion_mv_L=np.subtract(highest_L, lowest_L, dtype=np.float64) * mv,
        peak_to_peak_mv_L=span_mv_L,
        level_mv_L=0.5 * doubled_mv_L,
    )


def _median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median over the last axis: np.median takes five times as long on arrays as small as these."""
    values.sort(axis=-1)
    count = values.shape[-1]
    return np.asarray(0.5 * (values[..., (count - 1) // 2] + values[..., count // 2]))


def _by_lead(
    counts_LT: NDArray[np.int16], extremes: _Extremes, mv: float, rate_hz: float, thresholds: Thresholds
) -> dict[str, Sequence[str]]:
    """Return the leads of each flag that a lead's extremes decide. Numbers, as arrays of twelve take longer."""
    flat: list[str] = []
    dead: list[str] = []
    saturated: list[str] = []
    implausible: list[str] = []
    flat_mv = max(mv, thresholds.flat_mv)
    low_mv, high_mv = thresholds.lead_mv
    rail = thresholds.saturated_mv / mv
    spans_mv, excursions_mv = extremes.peak_to_peak_mv_L.tolist(), extremes.excursion_mv_L.tolist()
    levels_mv = extremes.level_mv_L.tolist()
    for at, lead in enumerate(LEADS):
        span_mv, far_mv = spans_mv[at], abs(levels_mv[at])
        highest, lowest = extremes.highest[at], extremes.lowest[at]
        is_flat = span_mv <= flat_mv
        if is_flat:
            flat.append(lead)
        if far_mv >= thresholds.rail_mv or (is_flat and far_mv >= thresholds.dead_mv):
            dead.append(lead)
        # Few leads reach far enough from 0 to be looked at.
        if max(highest, -lowest) >= rail and _saturated(counts_LT[at], highest, lowest, rail, rate_hz, thresholds):
            saturated.append(lead)
        if (span_mv < low_mv and not is_flat) or span_mv > high_mv or excursions_mv[at] > thresholds.excursion_mv:
            implausible.append(lead)
    return dict(zip(LEAD_FLAGS, (flat, dead, saturated, implausible), strict=False))


def _saturated(
    counts_T: NDArray[np.int16], highest: int, lowest: int, rail: float, rate_hz: float, thresholds: Thresholds
) -> bool:
    """Say whether a lead stays at its highest or lowest value, beyond `rail`, in counts."""
    # A lead of one value has no rail of its own: it is flat.
    if highest == lowest:
        return False
    shortest = max(3, round(thresholds.saturated_run_s * rate_hz))
    least = max(1.0, thresholds.saturated_share * len(counts_T))
    band = thresholds.saturated_band * (highest - lowest)
    for extreme, at_T in ((highest, counts_T >= highest - band), (-lowest, counts_T <= lowest + band)):
        if extreme >= rail and np.count_nonzero(at_T) >= least:
            edges = np.flatnonzero(np.diff(at_T, prepend=False, append=False))
            lengths = edges[1::2] - edges[::2]
            if lengths[lengths >= shortest].sum() >= least:
                return True
    return False


def _power_line(
    values_LT: NDArray[np.float64], mv: float, rate_hz: float, thresholds: Thresholds
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the amplitude in mV at each line, shape (L, F), and the leads in which one stands out."""
    leads, samples = values_LT.shape
    window = min(samples, max(1, round(thresholds.window_s * rate_hz)))
    used, at_waves, beside_waves = _waves(window, rate_hz, thresholds.line_hz)
    amplitude_LF = np.zeros((leads, len(thresholds.line_hz)))
    if not used:
        return amplitude_LF, []
    windows_LWn = values_LT[:, : samples // window * window].reshape(leads, -1, window)
    amplitude_LF[:, used] = _amplitudes(windows_LWn, at_waves, mv)
    # The neighbours are looked at where there is a line to be compared: in one record in twenty.
    high_L = np.flatnonzero((amplitude_LF >= thresholds.line_mv).any(axis=1))
    if not len(high_L):
        return amplitude_LF, []
    below_HF, above_HF = np.split(_amplitudes(windows_LWn[high_L], beside_waves, mv), 2, axis=1)
    line_HF = amplitude_LF[high_L][:, used]
    stands_out_HF = (line_HF >= thresholds.line_mv) & (
        line_HF >= thresholds.line_ratio * np.maximum(below_HF, above_HF)
    )
    return amplitude_LF, [LEADS[lead] for lead in high_L[stands_out_HF.any(axis=1)]]


def _amplitudes(windows_LWn: NDArray[np.float64], waves_nK: NDArray[np.float64], mv: float) -> NDArray[np.float64]:
    """Return the amplitude in mV of each wave, root mean square over the windows, shape (L, K / 2)."""
    leads, windows, window = windows_LWn.shape
    products = windows_LWn.reshape(leads * windows, window) @ waves_nK
    products *= products
    power = np.add.reduce(products.reshape(leads, 2 * windows, -1), axis=1)
    return np.asarray(np.sqrt(power * (mv * mv / windows)))


@lru_cache(maxsize=8)
def _ones(samples: int) -> NDArray[np.float64]:
    return np.ones(samples)


@lru_cache(maxsize=64)
def _waves(
    window: int, rate_hz: float, line_hz: tuple[float, ...]
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return which line frequencies can be seen, and the waves at them and beside them, shape (n, K).

    Cosines, then sines, each in a Hann window; beside them, first all below, then all above. A wave of amplitude 1
    gives 1 (root of the squares of cosine and sine).
    """
    # One second resolves 2 Hz a side, less than the distance of the neighbours. Above 0.45 of the rate, anti-aliasing
    # filters leave no line to be seen.
    used = [at for at, hz in enumerate(line_hz) if hz + NEIGHBOUR_HZ < 0.45 * rate_hz and window >= rate_hz]
    lines_hz = np.array([line_hz[at] for at in used])
    beside_hz = np.concatenate([lines_hz - NEIGHBOUR_HZ, lines_hz + NEIGHBOUR_HZ])
    return used, _windowed(lines_hz, window, rate_hz), _windowed(beside_hz, window, rate_hz)


def _windowed(hz_K: NDArray[np.float64], window: int, rate_hz: float) -> NDArray[np.float64]:
    """Return cosines, then sines, in a Hann window, shape (n, 2 * frequencies)."""
    hann = np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2
    phase = 2.0 * np.pi * (np.arange(window) / rate_hz)[:, None] * hz_K[None, :]
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1) * (hann * (2.0 / hann.sum()))[:, None]
    # An offset of 80 mV must not leak into the line, not even by 1e-6.
    return np.ascontiguousarray(waves - waves.mean(axis=0))
