"""From a user's arrays to the signal that an encoder's contract demands, or a refusal with the fix.

Everything that can be told from the array is checked before the encoder sees it: shape, lead names,
unit, rate, missing samples, flat signals and amplitudes that no heart has in the unit given.

Shapes: B records, L leads as given, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.errors import LeadError, SignalError
from ecgfm.leads import arrange
from ecgfm.signal.contract import SignalContract
from ecgfm.signal.highpass import highpass
from ecgfm.signal.resample import RATES_HZ, resample
from ecgfm.signal.units import MILLIVOLT_PER, millivolt_per

Signal = NDArray[Any] | Tensor | Sequence[NDArray[Any]] | Sequence[Tensor]
"""(L, T), (B, L, T), or a list of (L, T) of any lengths; integers are converted."""

SHORTEST_S = 1.0
MEDIAN_LEAD_MV = (0.02, 30.0)
"""Believed median over the leads of the peak to peak; a wrong unit is off by a factor of 1000."""


def recordings(signal: Signal, num_leads: int) -> list[NDArray[Any]]:
    """Return the records of `signal`, each (L, T), without copying them.

    Raises:
        SignalError: There is none, or the shape is not one of those above.
    """
    if isinstance(signal, np.ndarray) and signal.dtype == object and signal.ndim == 1:
        signal = list(signal)  # how NumPy, and what cuts folds out of arrays, holds records of different lengths
    if isinstance(signal, Sequence):
        if not len(signal):
            raise SignalError("the list of signals is empty; give at least one (leads, samples) array")
        if all(np.ndim(item) == 2 for item in signal):
            items = [_array(item) for item in signal]
            for index, item in enumerate(items):
                _check_shape(item.shape, num_leads, f"signal {index} of the list has")
            return items
        shapes = sorted({np.shape(item) for item in signal})
        if any(len(shape) != 1 for shape in shapes) or len(shapes) > 1:
            raise SignalError(f"a list of signals must hold (leads, samples) arrays, got shapes {shapes[:3]}")
        raise SignalError(
            f"a list of {len(signal)} arrays of shape {shapes[0]} could be leads or records; "
            "give np.stack(...) of one record's leads, or a list of (leads, samples) arrays"
        )
    array = _array(signal)
    if array.ndim not in (2, 3):
        raise SignalError(f"signal has shape {array.shape}; expected (leads, samples) or (batch, leads, samples)")
    if array.ndim == 3 and array.shape[0] == 0:
        raise SignalError(f"the batch is empty: signal has shape {array.shape}")
    _check_shape(array.shape, num_leads, "signal has")
    return [array] if array.ndim == 2 else list(array)


def to_contract(
    signal_LT: NDArray[Any], *, rate_hz: float, leads: Sequence[str], unit: str, contract: SignalContract, name: str
) -> NDArray[np.float32]:
    """Return one record in millivolt, with the contract's leads in its order and at its rate.

    Args:
        signal_LT: As the user has it.
        rate_hz: Its sampling rate.
        leads: Its lead names, in any case and order. Leads that the contract does not name are passed over.
        unit: mV, uV or V.
        contract: What the encoder demands.
        name: What to call the record in a message.

    Raises:
        LeadError: A lead is missing that cannot be derived, or named twice.
        SignalError: The signal cannot be what it is said to be.
    """
    factor = millivolt_per(unit)
    check_rate(rate_hz)
    signal_LT = _real(signal_LT, leads, name)
    seconds = signal_LT.shape[-1] / rate_hz
    if seconds < SHORTEST_S:
        raise SignalError(
            f"{name} is {seconds:.3g} s long ({signal_LT.shape[-1]} samples at {rate_hz:g} Hz); "
            f"the encoder needs at least {SHORTEST_S:g} s"
        )
    try:
        chosen = arrange(signal_LT, leads, contract.leads) * factor
    except LeadError as error:
        raise LeadError(
            f"{name}: {error}. The encoder takes {', '.join(contract.leads)}, and no lead is made up: give recordings "
            "that have them, or an encoder that was trained on yours"
        ) from error
    _check_amplitude(chosen, factor, unit, name)
    if contract.highpass_hz is not None:
        chosen = highpass(chosen, rate_hz, contract.highpass_hz)
    return resample(chosen, rate_hz, contract.rate_hz).astype(np.float32)


def peak_to_peak_mv(signal_LT: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return shape (L,): the span between the 0.1 and 99.9 percentile of each lead."""
    # A partial sort of 2 places: np.percentile interpolates, which is four times slower and no better here.
    samples = signal_LT.shape[-1]
    low, high = round(0.001 * (samples - 1)), round(0.999 * (samples - 1))
    ordered = np.partition(signal_LT, (low, high), axis=-1)
    return np.asarray(ordered[..., high] - ordered[..., low], dtype=np.float64)


def _least_span(signal_LT: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return shape (L,): a span that `peak_to_peak_mv` is not below, at a sixth of the cost.

    Of k samples beyond a percentile at most k blocks of samples have their extreme there: the extreme after the k
    furthest of all blocks' is within it.
    """
    leads, samples = signal_LT.shape
    beyond = max(samples - 1 - round(0.999 * (samples - 1)), round(0.001 * (samples - 1)))
    size = max(samples // (4 * (beyond + 1)), 1)
    blocks_LKS = signal_LT[:, : samples // size * size].reshape(leads, -1, size)
    highest_LK, lowest_LK = blocks_LKS.max(axis=-1), blocks_LKS.min(axis=-1)
    highest_LK.sort(axis=-1)
    lowest_LK.sort(axis=-1)
    return np.asarray(highest_LK[:, -1 - beyond] - lowest_LK[:, beyond], dtype=np.float64)


def windows(samples: int, window_samples: int, patch_samples: int) -> Iterator[tuple[int, int]]:
    """Yield the [start, stop) of evenly spaced windows that together cover a record.

    A record that is no longer than a window gives one, cut to whole patches.
    """
    window = window_samples // patch_samples * patch_samples
    if samples <= window:
        yield 0, samples // patch_samples * patch_samples
        return
    number = math.ceil(samples / window)
    for index in range(number):
        start = round(index * (samples - window) / (number - 1))
        yield start, start + window


def check_leads(leads: Iterable[str]) -> tuple[str, ...]:
    """Return lead names as a tuple: they may come as a column of a table too.

    Raises:
        LeadError: It is one string, empty, or holds something else.
    """
    if isinstance(leads, str) or not isinstance(leads, Iterable) or not all(isinstance(lead, str) for lead in leads):
        raise LeadError(f"leads must be a list of names such as ['I', 'II', ...], got {leads!r}")
    names = tuple(leads)
    if not names:
        raise LeadError("leads is empty; give the name of each row of the signal")
    return names


def check_rate(rate_hz: float) -> None:
    """Refuse a sampling rate that no ECG recorder has.

    Raises:
        SignalError: It is outside 50 to 10,000 Hz; 0.5 is usually a rate in kHz.
    """
    low, high = RATES_HZ
    if not low <= rate_hz <= high:
        raise SignalError(f"rate_hz {rate_hz} is out of range; give samples per second, {low:g} to {high:g}")


def _array(signal: NDArray[Any] | Tensor) -> NDArray[Any]:
    if isinstance(signal, Tensor):
        tensor = signal.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16
    return np.asarray(signal)


def _check_shape(shape: tuple[int, ...], num_leads: int, what: str) -> None:
    if shape[-2] == num_leads:
        return
    hint = ""
    if shape[-1] == num_leads:
        hint = "; it looks transposed: give signal.swapaxes(-1, -2)"
    elif len(shape) == 3 and shape[0] == num_leads:
        hint = "; the leads seem to come first: give signal.swapaxes(0, 1)"
    raise SignalError(
        f"{what} shape {shape} and {num_leads} lead names; expected (..., {num_leads} leads, samples){hint}"
    )


def _real(signal_LT: NDArray[Any], leads: Sequence[str], name: str) -> NDArray[np.float64]:
    """Return the signal as float64 when it holds nothing but finite numbers."""
    if signal_LT.dtype.kind not in "iuf":
        raise SignalError(f"{name} has dtype {signal_LT.dtype}; give real numbers (integers or floats)")
    signal_LT = signal_LT.astype(np.float64)
    bad_L = (~np.isfinite(signal_LT)).sum(axis=-1)
    if bad_L.any():
        worst = int(bad_L.argmax())
        raise SignalError(
            f"{name} has {int(bad_L.sum())} samples that are NaN or infinite, {int(bad_L[worst])} of them in "
            f"{leads[worst]}; cut them out or interpolate over them"
        )
    return signal_LT


def _check_amplitude(signal_mv: NDArray[np.float64], factor: float, unit: str, name: str) -> None:
    if (signal_mv.max(axis=-1) == signal_mv.min(axis=-1)).all():
        raise SignalError(f"{name} is flat: every lead holds one value from end to end; there is no ECG in it")
    low, high = MEDIAN_LEAD_MV
    if low <= float(np.median(_least_span(signal_mv))) and float(np.median(np.ptp(signal_mv, axis=-1))) <= high:
        return
    median = float(np.median(peak_to_peak_mv(signal_mv)))
    if low <= median <= high:
        return
    fitting = [other for other, scale in MILLIVOLT_PER.items() if low <= median / factor * scale <= high]
    fix = (
        f"unit={fitting[0]!r} would fit" if fitting else "no unit fits: check the gain, and that most leads have signal"
    )
    raise SignalError(
        f"{name} has a median peak to peak over the leads of {median:.3g} mV when read as {unit}; an ECG has "
        f"{low:g} to {high:g} mV: {fix}"
    )
