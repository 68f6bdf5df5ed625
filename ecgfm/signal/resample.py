"""Polyphase resampling by a rational factor, with anti-aliasing.

The same filter as `scipy.signal.resample_poly` (a windowed sinc of 10 zero crossings a side at the lower
of the two rates, Kaiser 5.0), in NumPy alone so that an encoder can be used without SciPy. The edges
continue with the first and last sample instead of falling to zero: an ECG with an offset would
otherwise begin and end with a step.

Shapes: T samples in, U samples out.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ecgfm.errors import SignalError

BLOCK_OUTPUTS = 64
ZERO_CROSSINGS = 10
KAISER_BETA = 5.0
# 257 Hz to 500 Hz needs 500/257; anything finer than this is a typing error and not a rate.
LARGEST_FACTOR = 10_000

RATES_HZ = (50.0, 10_000.0)
"""Rates that recorders have; 0.5 is usually a rate in kHz."""


def ratio(from_hz: float, to_hz: float) -> Fraction:
    """Return `to_hz / from_hz` as an exact fraction.

    Raises:
        SignalError: A rate is not positive and finite, or the ratio is not a fraction of whole numbers
            up to 10,000.
    """
    if not (1e-3 < from_hz < 1e6 and 1e-3 < to_hz < 1e6):
        raise SignalError(f"cannot resample from {from_hz} Hz to {to_hz} Hz; rates are in Hz, above 0")
    exact = Fraction(to_hz).limit_denominator(1_000_000) / Fraction(from_hz).limit_denominator(1_000_000)
    if max(exact.numerator, exact.denominator) > LARGEST_FACTOR:
        raise SignalError(f"cannot resample from {from_hz} Hz to {to_hz} Hz: the ratio {exact} is too fine; round it")
    return exact


def resampled_length(samples: int, from_hz: float, to_hz: float) -> int:
    """Return the number of samples that `resample` gives: ceil(T * to / from)."""
    exact = ratio(from_hz, to_hz)
    return -(-samples * exact.numerator // exact.denominator)


def resample(signal: NDArray[np.floating], from_hz: float, to_hz: float) -> NDArray[np.float64]:
    """Return `signal` at another rate.

    Args:
        signal: Shape (..., T).
        from_hz: Its sampling rate.
        to_hz: The rate wanted.

    Returns:
        Shape (..., ceil(T * to_hz / from_hz)), float64; sample k is at time k / to_hz.
    """
    signal = np.asarray(signal).astype(np.float64)
    exact = ratio(from_hz, to_hz)
    up, down = exact.numerator, exact.denominator
    if up == down:
        return signal.astype(np.float64, copy=False)
    weights_KB, reach, step = _block(up, down)
    reached, outputs = weights_KB.shape
    samples = resampled_length(signal.shape[-1], from_hz, to_hz)
    blocks = -(-samples // outputs)
    # Ahead and behind, the first and the last sample go on.
    behind = max((blocks - 1) * step + reached - reach - signal.shape[-1], 0)
    rows = signal.reshape(-1, signal.shape[-1])
    out = np.empty((len(rows), samples))
    padded = np.empty(reach + rows.shape[-1] + behind)
    frames = sliding_window_view(padded, reached)[::step][:blocks]
    for row, result in zip(rows, out, strict=True):
        padded[:reach] = row[0]
        padded[reach : reach + len(row)] = row
        padded[reach + len(row) :] = row[-1]
        result[:] = (np.ascontiguousarray(frames) @ weights_KB).ravel()[:samples]
    return out.reshape(*signal.shape[:-1], samples)


@lru_cache(maxsize=32)
def _block(up: int, down: int) -> tuple[NDArray[np.float64], int, int]:
    """Return the filter as a matrix that makes a block of outputs of the inputs that they reach.

    The pattern of `up` outputs repeats after `down` inputs; short patterns are put together to some 64 outputs, where
    the matrix product is fastest: six times as fast as tap by tap.

    Returns:
        Weights of shape (inputs, outputs), how many inputs lie before the place of the first output, and inputs from
        one block to the next.
    """
    phases_PK = _phases(up, down)
    taps = phases_PK.shape[1]
    repeats = max(1, BLOCK_OUTPUTS // up)
    place = np.arange(up * repeats) * down
    weights_KB = np.zeros((taps + (up * repeats - 1) * down // up, up * repeats))
    for output, (phase, start) in enumerate(zip(place % up, place // up, strict=True)):
        weights_KB[start : start + taps, output] = phases_PK[phase]
    return weights_KB, taps // 2, down * repeats


@lru_cache(maxsize=32)
def _phases(up: int, down: int) -> NDArray[np.float64]:
    """Return the filter cut into `up` phases, shape (up, taps), each summing to 1.

    Tap k of phase p weighs the input sample at distance (k - taps // 2) from the output's place.
    """
    slower = max(up, down)
    half = ZERO_CROSSINGS * slower
    times = np.arange(-half, half + 1)
    kernel = np.sinc(times / slower) * np.kaiser(2 * half + 1, KAISER_BETA)
    kernel /= kernel.sum()
    reach = -(-half // up)
    # The output at fine place p, relative to the input sample before it, is sum_k x[k] h[p - k * up].
    offsets = np.arange(-reach, reach + 1)
    index_PK = np.arange(up)[:, None] - offsets[None, :] * up + half
    inside = (index_PK >= 0) & (index_PK <= 2 * half)
    phases_PK = np.where(inside, kernel[np.clip(index_PK, 0, 2 * half)], 0.0) * up
    # A constant must stay constant: the phases of a finite filter sum to 1 only within some 1e-3.
    return np.asarray(phases_PK / phases_PK.sum(axis=1, keepdims=True))
