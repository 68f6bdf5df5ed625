"""Signals of a task's records as the encoder's contract demands them, crops for training, windows for prediction.

A record is prepared as `ECGClassifier.predict_proba` would prepare it, by the same code, and held in memory where it
fits. Which records and which crops a step sees is a function of (seed, step) alone: the order is a permutation for each
epoch, steps follow each other across its end, and a record's crop belongs to (seed, epoch, record).

Shapes: N records of the task, B crops or windows, L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError, LeadError, SignalError
from ecgfm.eval.finetune_config import Input
from ecgfm.hub.preprocessor import ECGPreprocessor
from ecgfm.leads import LEADS
from ecgfm.rng import generator
from ecgfm.shards.reader import Shards
from ecgfm.signal.resample import resample

Progress = Callable[[int, int], None]
LISTED = 3


class Signals:
    """Prepared records by their place among the examples.

    Args:
        shards: The records.
        index_N: Those of the task.
        preprocessor: Of the encoder.
        study: What is done to the signal besides.
        memory_gb: How much of them to hold; what does not fit is prepared each time.
    """

    def __init__(
        self,
        shards: Shards,
        index_N: NDArray[np.int64],
        preprocessor: ECGPreprocessor,
        study: Input,
        memory_gb: float,
    ) -> None:
        self._shards, self._index_N = shards, index_N
        self._preprocessor, self._study = preprocessor, study
        self._room = memory_gb * 1e9
        self._held: dict[int, NDArray[np.float32]] = {}
        self.samples_N = np.zeros(len(index_N), dtype=np.int64)
        """T of each record at the contract's rate; 0 of one that is refused."""
        self.refused: dict[int, str] = {}
        """Reasons by place, of records that the preprocessor does not take."""

    def prepare(self, progress: Progress = lambda done, total: None) -> None:
        """Look at every record once.

        Raises:
            ConfigError: More than half of the records are refused.
        """
        total = len(self._index_N)
        progress(0, total)
        for place in range(total):
            try:
                signal = self._make(place)
            except (SignalError, LeadError) as error:
                self.refused[place] = str(error)
                continue
            # Windows are whole patches; what is shorter than one has no token.
            if signal.shape[1] < self._preprocessor.patch_samples:
                self.refused[place] = f"{self.name(place)}: {signal.shape[1]} samples are less than a patch"
                continue
            self.samples_N[place] = signal.shape[1]
            if self._room >= signal.nbytes:
                self._room -= signal.nbytes
                self._held[place] = signal
            progress(place + 1, total)
        if 2 * len(self.refused) > total:
            raise ConfigError(
                f"{len(self.refused)} of {total} records are not what the encoder takes; the first: "
                f"{next(iter(self.refused.values()))}"
            )

    def name(self, place: int) -> str:
        """Return the record's name."""
        return self._shards.name(int(self._index_N[place]))

    def __getitem__(self, place: int) -> NDArray[np.float32]:
        """Return a record in millivolt, shape (L, T)."""
        return self._held[place] if place in self._held else self._make(place)

    def _make(self, place: int) -> NDArray[np.float32]:
        sample = self._shards.sample(int(self._index_N[place]))
        try:
            (signal,) = self._preprocessor(sample.signal_LT, rate_hz=sample.rate_hz, leads=LEADS, unit="mV")
        except (SignalError, LeadError) as error:
            raise SignalError(f"{sample.record}: {error}") from error
        rate, lower = self._preprocessor.contract.rate_hz, self._study.rate_hz
        if lower is None or self._study.native_rate or lower >= rate:
            return signal
        samples = signal.shape[1]
        back = resample(resample(signal, rate, lower), lower, rate)
        return back[:, :samples].astype(np.float32)


class Crops:
    """What each training step sees.

    Args:
        place_N: Places of the training part.
        samples_N: T of those records.
        crop: Samples of a crop; shorter records are left out.
        batch_size: Crops of a step.
        seed: Of order and crops.

    Raises:
        ConfigError: All records are shorter.
    """

    def __init__(
        self, place_N: NDArray[np.int64], samples_N: NDArray[np.int64], *, crop: int, batch_size: int, seed: int
    ) -> None:
        long = samples_N >= crop
        if not long.any():
            raise ConfigError(
                f"all {len(place_N)} training records are shorter than a crop ({crop} samples); give a shorter --crop-s"
            )
        self.place_N, self._room_N = place_N[long], samples_N[long] - crop
        self.crop = crop
        self.too_short = int((~long).sum())
        """Records that are left out."""
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        """Return the records of an epoch."""
        return len(self.place_N)

    @property
    def fixed(self) -> bool:
        """Whether a record is the same in all epochs, because it is as long as a crop."""
        return not self._room_N.any()

    def step(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return place_B and start_B, the records and where their crops begin, of a step counted from 0."""
        position_B = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epoch_B, within_B = np.divmod(position_B, len(self))
        place_B, start_B = np.empty_like(position_B), np.empty_like(position_B)
        for epoch in np.unique(epoch_B).tolist():
            rows = np.flatnonzero(epoch_B == epoch)
            number = generator(self._seed, "fine-tuning order", epoch).permutation(len(self))[within_B[rows]]
            uniform = generator(self._seed, "fine-tuning crops", epoch).random(len(self))[number]
            place_B[rows] = self.place_N[number]
            start_B[rows] = (uniform * (self._room_N[number] + 1)).astype(np.int64)
        return place_B, start_B


def crops(signals: Signals, place_B: NDArray[np.int64], start_B: NDArray[np.int64], crop: int) -> NDArray[np.float32]:
    """Return signal_BLT of crops, in millivolt."""
    pairs = zip(place_B.tolist(), start_B.tolist(), strict=True)
    return np.stack([signals[place][:, start : start + crop] for place, start in pairs])


def ahead(
    make: Callable[[int], tuple[NDArray[np.int64], NDArray[np.float32]]], first: int, last: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (step, place_B, signal_BLT) of steps `first` to `last` - 1, each made while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="crops") as pool:
        waiting = pool.submit(make, first)
        for step in range(first, last):
            ready = waiting.result()
            if step + 1 < last:
                waiting = pool.submit(make, step + 1)
            yield step, *ready


def windows(
    signals: Signals,
    places: NDArray[np.int64],
    preprocessor: ECGPreprocessor,
    *,
    length: int | None,
    stride: int | None,
    batch_size: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield (row_B, signal_BLT) of all windows; row_B counts `places`. Windows of a batch have one length."""
    waiting: dict[int, list[tuple[int, NDArray[np.float32]]]] = {}

    def batch(items: list[tuple[int, NDArray[np.float32]]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return np.asarray([row for row, _ in items]), np.stack([window for _, window in items])

    for row, place in enumerate(places.tolist()):
        signal = signals[place]
        for start, stop in preprocessor.places(signal.shape[1], length=length, stride=stride):
            items = waiting.setdefault(stop - start, [])
            items.append((row, signal[:, start:stop]))
            if len(items) >= batch_size:
                yield batch(waiting.pop(stop - start))
    for items in waiting.values():
        yield batch(items)
