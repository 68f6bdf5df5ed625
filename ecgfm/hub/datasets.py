"""Recordings as a torch Dataset: arrays, WFDB files, or shards, each brought to a signal contract.

    preprocessor = ECGPreprocessor.from_pretrained("someone/ecg-jepa-vit-s")
    dataset = ECGDataset.from_arrays(signals, rate_hz=500, leads=leads, unit="mV", targets=y, preprocessor=preprocessor)
    for windows_BLT, target_BC in torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True):
        loss = classifier.loss(windows_BLT, target_BC)

Windows are what `ECGClassifier.forward` takes: millivolt, not normalised, which the model does on its own device.

Shapes: N records, L leads, T samples, C targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from ecgfm.errors import ConfigError, LeadError, SignalError
from ecgfm.hub.preprocessor import ECGPreprocessor
from ecgfm.hub.recordings import Signal, check_leads, recordings
from ecgfm.leads import LEADS
from ecgfm.rng import generator

Crop = Literal["random", "centre", "start"]
Read = Callable[[int], tuple[NDArray[Any], dict[str, Any]]]
"""From the number of a record to its signal_LT, and rate_hz, leads and unit."""


class ECGDataset(Dataset[Any]):
    """One window of each record, drawn anew in each epoch, or always the same.

    Made by `from_arrays`, `from_wfdb` or `from_shards`. An item is window_LT, float32, or with targets the pair of it
    and target_C, float32, with NaN where the answer is not known.

    Args:
        read: Gives a record.
        names: Of the records.
        preprocessor: The signal contract.
        targets: Shape (N,) or (N, C).
        window_s: Seconds of a window; the contract's by default.
        crop: Where a window lies in a record that is longer: at random, in the centre, or at the start.
        seed: Of random windows, which depend on (seed, epoch, number of the record) alone.
        keep: Keep prepared records in memory: each is read, filtered and resampled only once.

    Raises:
        ConfigError: There is no record, or not one target for each.
    """

    def __init__(
        self,
        read: Read,
        names: Sequence[str],
        preprocessor: ECGPreprocessor,
        *,
        targets: ArrayLike | None = None,
        window_s: float | None = None,
        crop: Crop = "random",
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        if not names:
            raise ConfigError("there is no record")
        if not isinstance(preprocessor, ECGPreprocessor):
            raise ConfigError(
                f"preprocessor must be an ECGPreprocessor, got {type(preprocessor).__name__}: give "
                "encoder.preprocessor, or ECGPreprocessor.from_pretrained(...)"
            )
        if crop not in ("random", "centre", "start"):
            raise ConfigError(f"crop {crop!r} is none of random, centre, start")
        self.names = tuple(names)
        self.preprocessor = preprocessor
        self.epoch = 0
        self.target_NC = None if targets is None else _targets(targets, len(names))
        self._read = read
        self._window = preprocessor.window_samples(None if window_s is None else preprocessor.samples(window_s))
        self._crop = crop
        self._seed = seed
        self._kept: dict[int, NDArray[np.float32]] | None = {} if keep else None

    @classmethod
    def from_arrays(
        cls,
        signals: Signal,
        *,
        rate_hz: float,
        leads: Sequence[str],
        unit: str,
        preprocessor: ECGPreprocessor,
        targets: ArrayLike | None = None,
        **options: Any,
    ) -> Self:
        """Return a dataset of arrays in memory.

        Args:
            signals: (N, L, T), or a list of (L, T) of any lengths; nothing is copied.
            rate_hz: Their sampling rate.
            leads: Their lead names, in any order and case.
            unit: mV, uV or V.
            preprocessor: The signal contract.
            targets: Shape (N,) or (N, C).
            options: window_s, crop, seed, keep.

        Raises:
            SignalError: The signals' shapes do not fit the lead names.
            ConfigError: There is not one target for each record.
        """
        names_of_leads = check_leads(leads)
        records = recordings(signals, len(names_of_leads))
        how = {"rate_hz": rate_hz, "leads": names_of_leads, "unit": unit}
        names = [f"record {number} of {len(records)}" for number in range(len(records))]
        return cls(_Arrays(records, how), names, preprocessor, targets=targets, **options)

    @classmethod
    def from_wfdb(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        preprocessor: ECGPreprocessor,
        targets: ArrayLike | Mapping[str, ArrayLike] | None = None,
        **options: Any,
    ) -> Self:
        """Return a dataset of WFDB records; rate, leads and unit come from their headers. Needs the package wfdb.

        Args:
            paths: A folder, of which all headers at any depth are taken in the order of their paths, or the records,
                with or without `.hea`.
            preprocessor: The signal contract.
            targets: Shape (N,) or (N, C) in the same order; or by record name, which may have more: a dict, or a
                pandas Series or DataFrame by its index.
            options: window_s, crop, seed, keep.

        Raises:
            SignalError: There is no header; on reading, a record is not the ECG that its header says.
            ConfigError: A record has no target.
        """
        headers = _headers(paths)
        names = [header.stem for header in headers]
        if isinstance(targets, Mapping) or hasattr(targets, "iloc"):
            # A column of a table goes by its index: taken in its order, labels would land on other records.
            by_name = {str(name): row for name, row in _rows(targets)}
            missing = [name for name in names if name not in by_name]
            if missing:
                raise ConfigError(
                    f"{len(missing)} records have no target, the first is {missing[0]}: leave them out, let the names "
                    "(of a table: its index) be those of the records, or give an array in the order of the paths"
                )
            targets = [by_name[name] for name in names]
        return cls(_Files(headers), names, preprocessor, targets=targets, **options)

    @classmethod
    def from_shards(
        cls,
        folders: str | Path | Sequence[str | Path],
        *,
        preprocessor: ECGPreprocessor,
        index: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:
        """Return a dataset of the records of shards that `tools/convert.py` wrote.

        Args:
            folders: One or more folders of shards.
            preprocessor: The signal contract.
            index: Which records, by their number in the folders' order; all by default.
            targets: Shape (N,) or (N, C), one row for each record of `index`.
            labels: In the place of targets: `scheme:code` for each of C columns, 1 where the record has the label, 0
                where it has others of the scheme only, NaN where it says nothing in the scheme.
            options: window_s, crop, seed, keep.

        Raises:
            ShardError: The shards are missing or damaged.
            ConfigError: Targets and labels are both given, or do not fit; or no record has a label.
        """
        from ecgfm.shards.reader import Shards  # imports no more than torch users have, but is not needed to embed

        shards = Shards([folders] if isinstance(folders, str | Path) else folders)
        chosen = np.arange(len(shards)) if index is None else np.asarray(index, dtype=np.int64)
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(shards):
            raise ConfigError(f"index must be 0 to {len(shards) - 1}, got {chosen.min()} to {chosen.max()}")
        if labels is not None:
            if targets is not None:
                raise ConfigError("targets and labels both say what is to be told; give one of them")
            targets = _labelled([shards.about(int(number))["labels"] for number in chosen], labels)
        names = [shards.name(int(number)) for number in chosen]
        return cls(_OfShards(shards, chosen), names, preprocessor, targets=targets, **options)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Any:
        """Return window_LT, or it and target_C.

        Raises:
            SignalError: The record is not an ECG, or shorter than a window; the message has its name.
            LeadError: It lacks a lead; likewise.
        """
        number = range(len(self))[number]
        ready = self.record(number)
        spare = ready.shape[1] - self._window
        if spare < 0:
            seconds = ready.shape[1] / self.preprocessor.contract.rate_hz
            raise SignalError(
                f"{self.names[number]} has {seconds:.4g} s and a window "
                f"{self._window / self.preprocessor.contract.rate_hz:.4g} s; give a shorter window_s, or leave it out"
            )
        start = {"start": 0, "centre": spare // 2}.get(self._crop)
        if start is None:
            start = int(generator(self._seed, "crop", self.epoch, number).integers(spare + 1))
        window_LT = torch.from_numpy(ready[:, start : start + self._window].copy())
        return window_LT if self.target_NC is None else (window_LT, torch.from_numpy(self.target_NC[number]))

    def record(self, number: int) -> NDArray[np.float32]:
        """Return a record in millivolt with the contract's leads, filter and rate, shape (L, T), at its own length.

        Raises:
            SignalError: It is not an ECG; the message has its name.
            LeadError: It lacks a lead; likewise.
        """
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        signal, how = self._read(number)
        try:
            (ready,) = self.preprocessor(signal, **how)
        except (SignalError, LeadError) as error:
            raise type(error)(f"{self.names[number]}: {error}") from error
        if self._kept is not None:
            self._kept[number] = ready
        return ready

    def set_epoch(self, epoch: int) -> None:
        """Draw the random windows of another epoch; worker processes must start after it."""
        self.epoch = epoch


class _Arrays:
    """Reads arrays; a class and no closure, so that worker processes of a DataLoader can be spawned."""

    def __init__(self, records: list[NDArray[Any]], how: dict[str, Any]) -> None:
        self.records, self.how = records, how

    def __call__(self, number: int) -> tuple[NDArray[Any], dict[str, Any]]:
        return self.records[number], self.how


class _Files:
    def __init__(self, headers: list[Path]) -> None:
        self.headers = headers

    def __call__(self, number: int) -> tuple[NDArray[Any], dict[str, Any]]:
        from ecgfm.files import read_recording  # wfdb is heavy, and not needed for arrays

        recording = read_recording(self.headers[number])
        return recording.signal_LT, {
            "rate_hz": recording.rate_hz,
            "leads": recording.leads,
            "unit": recording.unit,
        }


class _OfShards:
    def __init__(self, shards: Any, index: NDArray[np.int64]) -> None:
        self.folders, self.index, self.shards = shards.folders, index, shards

    def __call__(self, number: int) -> tuple[NDArray[Any], dict[str, Any]]:
        if self.shards is None:  # a spawned worker opens its own memory maps
            from ecgfm.shards.reader import Shards

            self.shards = Shards(self.folders)
        sample = self.shards.sample(int(self.index[number]))
        return sample.signal_LT, {"rate_hz": sample.rate_hz, "leads": LEADS, "unit": "mV"}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shards": None}


def _rows(targets: Any) -> Iterable[tuple[Any, Any]]:
    """Return names and targets of a dict, or of a pandas Series or DataFrame."""
    return targets.items() if isinstance(targets, Mapping) else zip(targets.index, targets.to_numpy(), strict=True)


def _targets(targets: ArrayLike, number: int) -> NDArray[np.float32]:
    try:
        array = np.asarray(targets, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"targets must be numbers, 1 and 0 for yes and no, NaN for unknown: {error}") from error
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != number:
        raise ConfigError(f"targets have shape {array.shape}; {number} records need ({number},) or ({number}, C)")
    return array


def _headers(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, str | Path):
        if Path(paths).is_dir():
            found = sorted(Path(paths).rglob("*.hea"))
            if not found:
                raise SignalError(f"{paths} holds no WFDB header (*.hea), at any depth")
            return found
        paths = [paths]
    headers = [path if (path := Path(name)).suffix == ".hea" else path.with_name(path.name + ".hea") for name in paths]
    for header in headers:
        if not header.is_file():
            raise SignalError(f"{header} does not exist; give records, with or without .hea, or a folder")
    return headers


def _labelled(records: Sequence[Mapping[str, Sequence[str]]], labels: Sequence[str]) -> NDArray[np.float32]:
    target_NC = np.full((len(records), len(labels)), np.nan, dtype=np.float32)
    for column, label in enumerate(labels):
        scheme, _, code = label.partition(":")
        for row, known in enumerate(records):
            if scheme in known:
                target_NC[row, column] = code in known[scheme]
        if not np.nansum(target_NC[:, column]):
            schemes = sorted({name for known in records for name in known})
            raise ConfigError(f"no record has the label {label!r}; give scheme:code, of {', '.join(schemes) or 'none'}")
    return target_NC
