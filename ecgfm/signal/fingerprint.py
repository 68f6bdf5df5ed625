"""A recording's fingerprint: 366 bits that stay nearly the same in every packaging of one recording.

The same recording is published in several databases, with other gains (PTB's copy in the Challenge 2021 halves the
counts and rounds), lead orders, rates, number types and filters, so that hashes of the bytes say nothing. The idea
of taking signs of differences between the energies of neighbouring bins is that of audio fingerprints (Haitsma and
Kalker 2002, "A highly robust audio fingerprinting system"); ours takes means instead of energies.

Three sums of leads (`SUMS`) are averaged over bins of 80 ms in the first 10 s, and the bits are the signs of the third
differences between neighbouring bins. Why so:

- Signs forget any gain that the leads share; averages forget rounding, noise and the sampling rate. A bin of 80 ms is
  four periods of 50 Hz, which cancel.
- A third difference forgets an offset, and nearly forgets the baseline, so that a high-pass filter changes few bits.
- Each sum holds limb leads and chest leads, so that a dead lead empties none. Mixed signs leave less of what all hearts
  share than plain sums do.
- A sample stands for the time from half a sample before it to half a sample after, so that bins hold the same time at
  every rate.
- A rhythm as regular as a clock gives bits that repeat with every beat, and says little more in 10 s than in one beat.
  Such recordings must agree better: in more bits than each agrees with itself a few beats later (`allowed_bits`).

Measured on the 1,046 real recordings at hand (LUDB, Challenge 2011 and 2021, PTB, PTB-XL, CPSC 2018, CODE-15), 55 of
which give no fingerprint (they are flat). Bits that differ, of the 366 in use, between a recording and a changed
copy of itself, for the 853 of them that are 10 s long, have no flat lead and were not judged unacceptable:

    changed by                                   median   99 %   most   missed at 36 bits
    counts halved and rounded                         1      8     13   none
    rounded to 5 microvolt                            0     12     22   none
    float32 in millivolt                              0      1      1   none
    resampled to 100 Hz; there and back            3; 2 13; 10 21; 13   none
    resampled to 250 Hz by Fourier transform          1      4      6   none
    high-pass 0.5 Hz, zero phase                      0      4     27   none
    band-pass 0.5 to 40 Hz, zero phase                2     11     28   none
    low-pass 40 Hz; notch at 50 Hz                 2; 0  11; 1  19; 2   none
    high-pass 0.5 Hz, one way (phase distorted)      16     29     54   0.4 %
    white noise of 5 microvolt in each lead           6     24     38   0.1 %
    white noise of 20 microvolt in each lead         23     62     70   20 %

The two packagings of PTB's s0010_re, the one genuine pair, differ in 1 bit.

Strangers: over all 490,545 pairs the mean is 183 with a standard deviation of 12, and the closest pair differs in 86
bits. With one of each pair rotated in time in 59 steps of 20 ms (43 million pairs, which meet each other's phase) one
pair in a million differs in 90 bits or fewer, and the closest, two tachycardias like clockwork, in 63; without such
rhythms in 80. Among a million made of these recordings with random starts, speeds (0.7 to 1.4) and weights of the
leads, 37 of the 5e11 pairs are of different recordings and called the same, 413 without `allowed_bits`. So some 1e-10
of the pairs of strangers match: less than one between a million records and the 4,400 that PTB-XL holds out, and some
tens in a million among each other. A million real records were not at hand.

Shapes: L leads, T samples, C sums of leads, K bins, N fingerprints.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import LeadError, SignalError
from ecgfm.leads import positions
from ecgfm.record import MISSING, Counts

BYTES = 48
SAME_BITS = 36
"""Two fingerprints that differ in so many bits or fewer are of one recording, unless its rhythm is a clock's."""
BIN_S = 0.08
BINS = 125
LEAST_BITS = 183
"""Signs that a signal must give; with fewer (flat, or shorter than some 5 s) there is nothing to tell it by."""

SUMS: tuple[dict[str, float], ...] = (
    {"I": 1, "II": -1, "V1": 1, "V2": -1, "V3": 1},
    {"I": 1, "II": 1, "V4": 1, "V5": -1, "V6": 1},
    {"I": 1, "V1": 1, "V3": -1, "V4": 1, "V6": -1},
)
"""Weights of the leads in each of the C sums."""

# The bits of one sum, padded with zeros to whole bytes; the lags, in bins, at which a rhythm may repeat (0.3 to 2.4 s).
_SUM_BITS = 8 * BYTES // len(SUMS)
_LAGS = range(4, 31)
# Differences below this share of the largest value are what floats make of 0.
_ROUNDING = 1e-9


def fingerprint(
    counts_LT: Counts, leads: Sequence[str], microvolt_per_count_L: NDArray[np.float64], rate_hz: float
) -> str:
    """Return what a recording, or a segment of one, can be recognised by.

    Only the first 10 s count. It is taken from the source's own counts, before any filter or resampling.

    Args:
        counts_LT: Shape (L, T); `MISSING` or NaN where there is no sample.
        leads: L names in any case and order; I, II and V1 to V6 must be there.
        microvolt_per_count_L: Shape (L,). Only the leads' ratios matter.
        rate_hz: Samples per second.

    Returns:
        64 characters (base64), or none where there is too little signal to tell it by: flat, short, or so slowly
        sampled that a bin has no sample.

    Raises:
        LeadError: A lead is named twice, or one of the eight is missing.
    """
    if rate_hz * BIN_S < 1:
        return ""
    counts_LT = counts_LT[:, : math.ceil(BINS * BIN_S * rate_hz) + 1]
    edges = _edges(rate_hz, counts_LT.shape[1])
    bins = len(edges[0]) - 1
    if bins < 4:
        return ""
    weights_CL = _weights(tuple(leads)) * microvolt_per_count_L
    complete = counts_LT.dtype != np.int16 or counts_LT.min() != MISSING
    samples_LT = counts_LT.astype(np.float64, copy=False) if complete else _interpolated(counts_LT)
    mean_CK = _means(weights_CL @ samples_LT, *edges)
    largest = np.abs(mean_CK).max()
    # Floats are not searched: a missing one makes its bin NaN, whatever its lead's weight.
    if not math.isfinite(largest):
        mean_CK = _means(weights_CL @ _interpolated(counts_LT), *edges)
        largest = np.abs(mean_CK).max()
    change_CK = mean_CK
    for _ in range(3):
        change_CK = change_CK[:, 1:] - change_CK[:, :-1]
    rounding = _ROUNDING * largest
    if np.count_nonzero(np.abs(change_CK) > rounding) < LEAST_BITS:
        return ""
    bits = np.zeros((len(SUMS), _SUM_BITS), dtype=bool)
    np.greater(change_CK, rounding, out=bits[:, : bins - 3])
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def to_bytes(fingerprints: Sequence[str]) -> NDArray[np.uint8]:
    """Return fingerprints as an array of shape (N, 48); none of them may be empty.

    Raises:
        SignalError: One is not what `fingerprint` returns.
    """
    # 48 bytes are 64 characters without padding, so that all can be decoded in one go.
    wrong = next((text for text in fingerprints if len(text) != 4 * BYTES // 3), None)
    try:
        content = base64.b64decode("".join(fingerprints), validate=True)
    except binascii.Error as error:
        raise SignalError(f"a fingerprint is not base64: {error}; convert again") from error
    if wrong is not None:
        raise SignalError(
            f"a fingerprint has {len(wrong)} characters, expected {4 * BYTES // 3}: {wrong!r}; convert again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(len(fingerprints), BYTES)


def allowed_bits(fingerprints_NB: NDArray[np.uint8], most: int = SAME_BITS) -> NDArray[np.int64]:
    """Return in how many bits each may differ from another of the same recording, shape (N,).

    That is `most`, or fewer where the fingerprint nearly equals itself a few beats later: two strangers with one
    clockwork rhythm may agree as well as that.
    """
    bits = np.unpackbits(fingerprints_NB, axis=1).reshape(len(fingerprints_NB), len(SUMS), _SUM_BITS)[:, :, : BINS - 3]
    least = np.full(len(bits), float(most))
    for lag in _LAGS:
        differ = np.count_nonzero(bits[:, :, lag:] != bits[:, :, :-lag], axis=(1, 2))
        least = np.minimum(least, differ * (BINS - 3) / (BINS - 3 - lag))
    return np.asarray(np.floor(least), dtype=np.int64)


def _means(sums_CT: NDArray[np.float64], starts: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums over each bin, shape (C, K), which are means times one number.

    Edge k is `shares[k]` within sample `starts[k]`, so a bin loses that much of its first sample and gains as much of
    the one behind it.
    """
    whole_CK = np.add.reduceat(sums_CT[:, : starts[-1]], starts[:-1], axis=1)
    # Where the signal ends at the last edge, its last sample goes on.
    part_CK = sums_CT.take(starts, axis=1, mode="clip") * shares
    return np.asarray(whole_CK - part_CK[:, :-1] + part_CK[:, 1:])


@lru_cache(maxsize=64)
def _edges(rate_hz: float, samples: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the sample in which each of the K + 1 edges lies, and how far within it.

    The bins are those that the signal fills, but for the half sample that 10 s lack at the end.
    """
    edges = np.arange(BINS + 1) * (BIN_S * rate_hz) + 0.5
    starts = np.floor(edges).astype(np.int64)
    filled = starts <= samples
    return starts[filled], (edges - starts)[filled]


@lru_cache(maxsize=64)
def _weights(leads: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the weights of the leads as they are ordered, shape (C, L)."""
    found = positions(leads)
    weights_CL = np.zeros((len(SUMS), len(leads)))
    for row, weights in zip(weights_CL, SUMS, strict=True):
        for lead, weight in weights.items():
            if lead not in found:
                raise LeadError(f"lead {lead} is missing among {list(leads)}: a fingerprint needs I, II and V1 to V6")
            row[found[lead]] = weight
    return weights_CL


def _interpolated(counts_LT: Counts) -> NDArray[np.float64]:
    """Return the signal with its gaps closed by straight lines, as other packagings may have them closed."""
    samples_LT = counts_LT.astype(np.float64)
    missing_LT = counts_LT == MISSING if counts_LT.dtype == np.int16 else ~np.isfinite(samples_LT)
    place = np.arange(counts_LT.shape[1])
    for row, missing in zip(samples_LT, missing_LT, strict=True):
        if missing.all():
            row[:] = 0.0
        elif missing.any():
            row[missing] = np.interp(place[missing], place[~missing], row[~missing])
    return samples_LT
