"""Arrays whose files say nothing of themselves: what is told of them, and recordings made of the two.

What is told comes, first found first taken, from `e0001.json` beside `e0001.npy`, from `dataset.json` in the same
folder, and from the options:

    {"rate_hz": 500, "unit": "mV", "leads": ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"], "age": 63, "sex": "F"}

Both may also say `microvolt_per_count`, `axes` ("leads,samples") and `variable`; other entries are passed over.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfm import config
from ecgfm.databases._fields import age_years, sex_of
from ecgfm.errors import ConfigError, LeadError, RecordError, SignalError
from ecgfm.files.base import Axes, Recording, Told
from ecgfm.leads import positions
from ecgfm.record import MISSING, Sex
from ecgfm.signal.units import millivolt_per

DATASET = "dataset.json"
COUNTS = "counts"
SHOWN = 10
"""How many names of arrays a message lists."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is needed of an array."""

    rate_hz: float
    leads: tuple[str, ...]
    unit: str
    factor: float
    """What one of the array's numbers is in `unit`."""
    axes: Axes
    variable: str | None
    age: float | None
    sex: Sex | None


def facts(path: Path, told: Told) -> Facts:
    """Return what is told of a file, checked.

    Raises:
        RecordError: `not-told`: rate, leads or unit are not known; `told-wrong`: they cannot be meant.
    """
    entries: dict[str, Any] = {}
    for source in (path.with_suffix(".json"), path.with_name(DATASET)):
        if source.is_file():
            entries = {**_entries(source), **entries}
    told = replace(told, **{name: entries[name] for name in Told.__annotations__ if name in entries})
    for name, option in (("rate_hz", "--rate-hz 500"), ("leads", "--leads I,II,V1,..."), ("unit", "--unit mV")):
        if getattr(told, name) is None:
            raise RecordError(
                "not-told",
                f"{path} does not say its {name}, which is never guessed: give {option}, or write {name} into "
                f"{path.with_suffix('.json').name} or {DATASET} beside it",
            )
    assert told.rate_hz is not None and told.leads is not None and told.unit is not None
    unit, factor = _unit(path, told.unit, told.microvolt_per_count)
    try:
        positions(told.leads)
    except LeadError as error:
        raise RecordError("told-wrong", f"{path}: {error}") from error
    if not (told.rate_hz > 0 and math.isfinite(told.rate_hz)):
        raise RecordError("told-wrong", f"{path}: rate_hz is {told.rate_hz}, expected samples per second")
    if told.axes not in get_args(Axes):
        raise RecordError("told-wrong", f"{path}: axes {told.axes!r} is none of {', '.join(get_args(Axes))}")
    return Facts(
        rate_hz=told.rate_hz,
        leads=told.leads,
        unit=unit,
        factor=factor,
        axes=told.axes,
        variable=told.variable,
        age=age_years(str(entries.get("age", ""))),
        sex=sex_of(str(entries.get("sex", ""))),
    )


def chosen(path: Path, shapes: Mapping[str, tuple[int, ...]], known: Facts) -> str:
    """Return the name of the array that is the signal: the one that was told, or the only one that fits the leads.

    Raises:
        RecordError: `array-unknown`: there is none, or several fit.
    """
    there = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:SHOWN]) or "none"
    if known.variable is not None:
        if known.variable in shapes:
            return known.variable
        raise RecordError("array-unknown", f"{path} has no array {known.variable!r} (it has: {there})")
    axis = -2 if known.axes == "leads,samples" else -1
    fitting = [
        name
        for name, shape in shapes.items()
        if len(shape) in (2, 3) and shape[axis] == len(known.leads) and min(shape)
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise RecordError(
        "array-unknown",
        f"{path} has {len(fitting) or 'no'} arrays of {len(known.leads)} leads along the axes {known.axes} (it has: "
        f"{there}): name the signal with --variable, or correct --leads or --axes",
    )


def recordings_of(array: Any, path: Path, known: Facts, *, what: str = "") -> Iterator[Recording]:
    """Yield a recording, or with three axes one for each entry of the first.

    Args:
        array: A NumPy array, or what gives one by index.
        path: Its file.
        known: What is told of it.
        what: Its name in the file.

    Raises:
        RecordError: `array-unreadable`: it holds no real numbers; `array-mismatch`: its shape is not what is told.
    """
    words = f"{path} {what}".strip()
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise RecordError("array-unreadable", f"{words} holds {array.dtype}; save integers or floats up to 64 bits")
    _check_shape(words, tuple(array.shape), known)
    several = len(array.shape) == 3
    for number in range(array.shape[0] if several else 1):
        one = np.asarray(array[number] if several else array[...])
        yield Recording(
            signal_LT=_signal(one if known.axes == "leads,samples" else one.T, known.factor),
            rate_hz=known.rate_hz,
            leads=known.leads,
            unit=known.unit,
            name=f"{path.stem}[{number}]" if several else path.stem,
            age=known.age,
            sex=known.sex,
        )


def _check_shape(words: str, shape: tuple[int, ...], known: Facts) -> None:
    if len(shape) not in (2, 3):
        raise RecordError(
            "array-mismatch",
            f"{words} has the shape {shape}; expected ({known.axes}) of a recording, or (recordings,{known.axes})",
        )
    axis, other = (-2, -1) if known.axes == "leads,samples" else (-1, -2)
    if shape[axis] != len(known.leads):
        turned = "samples,leads" if known.axes == "leads,samples" else "leads,samples"
        fix = f"give --axes {turned}" if shape[other] == len(known.leads) else f"name {shape[axis]} leads"
        raise RecordError(
            "array-mismatch", f"{words} has the shape {shape}, and {len(known.leads)} leads are named: {fix}"
        )
    if not min(shape):
        raise RecordError("array-mismatch", f"{words} has the shape {shape}: it is empty")


def _signal(values_LT: NDArray[Any], factor: float) -> NDArray[np.float64]:
    signal_LT = values_LT.astype(np.float64) * factor
    if values_LT.dtype == np.int16:  # the mark that WFDB made common; in wider integers it is a value like others
        signal_LT[values_LT == MISSING] = np.nan
    return np.ascontiguousarray(signal_LT)


def _unit(path: Path, unit: str, microvolt_per_count: float | None) -> tuple[str, float]:
    if unit.lower() == COUNTS:
        if microvolt_per_count is None or not (microvolt_per_count > 0 and math.isfinite(microvolt_per_count)):
            raise RecordError(
                "not-told",
                f"{path}: the unit counts needs --microvolt-per-count above 0, as the device's manual says, got "
                f"{microvolt_per_count}",
            )
        return "uV", microvolt_per_count
    if microvolt_per_count is not None:
        raise RecordError(
            "told-wrong", f"{path}: unit {unit!r} and microvolt_per_count are both told; give one, or the unit counts"
        )
    try:
        millivolt_per(unit)
    except SignalError as error:
        raise RecordError("told-wrong", f"{path}: {error}, or counts") from error
    return unit, 1.0


def _entries(source: Path) -> dict[str, Any]:
    """Return what a JSON file tells, of the types that it must have."""
    try:
        content = config.read_json(source)
    except ConfigError as error:
        raise RecordError("told-wrong", str(error)) from error
    if not isinstance(content, dict):
        raise RecordError("told-wrong", f"{source} is no JSON object")
    for name in ("rate_hz", "microvolt_per_count"):
        value = content.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise RecordError("told-wrong", f"{source}: {name} is {value!r}, expected a number")
    for name in ("unit", "variable"):
        if not isinstance(content.get(name), str | None):
            raise RecordError("told-wrong", f"{source}: {name} is {content[name]!r}, expected a text")
    for name in ("leads", "axes"):
        value = content.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            if not (name == "axes" and isinstance(value, str)):
                raise RecordError("told-wrong", f'{source}: {name} is {value!r}, expected a list such as ["I", "II"]')
            continue
        content[name] = tuple(value) if name == "leads" else ",".join(value)
    return {name: value for name, value in content.items() if value is not None}
