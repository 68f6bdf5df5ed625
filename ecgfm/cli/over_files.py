"""Files in, a table out: reading beside computing, refusals listed, and what is done kept after Ctrl-C.

A thread reads and checks the files ahead while the model computes. Neighbouring recordings of one rate, lead order and
unit go to the model together, as many as give `--batch-size` windows.

Shapes: R recordings, L leads, T samples, C columns.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Shown

from ecgfm.cli.commands import OverFiles
from ecgfm.cli.tables import Table, Values, open_table
from ecgfm.errors import ConfigError, EcgfmError, LeadError, RecordError, SignalError
from ecgfm.files.base import Recording, Told, find, read_recordings
from ecgfm.hub.fetch import whole
from ecgfm.hub.preprocessor import ECGPreprocessor
from ecgfm.progress import RecordBar
from ecgfm.signal.gaps import fill, longest_gap

REFUSED = ".refused.jsonl"
AHEAD = 16
"""Recordings that are read before they are needed."""
SHOWN = 5
"""Refused files that the screen names for each reason; the list beside the table has all."""


@dataclass(kw_only=True)
class Batch:
    """Recordings of one rate, lead order and unit."""

    rate_hz: float
    leads: tuple[str, ...]
    unit: str
    files: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    signals: list[NDArray[np.float64]] = field(default_factory=list)
    seconds: float = 0.0

    def takes(self, recording: Recording) -> bool:
        """Tell whether a recording is like these."""
        return (self.rate_hz, self.leads, self.unit) == (recording.rate_hz, recording.leads, recording.unit)

    def add(self, file: Path, recording: Recording) -> None:
        """Add a recording."""
        self.files.append(str(file))
        self.records.append(recording.name)
        self.signals.append(recording.signal_LT)
        self.seconds += recording.signal_LT.shape[1] / recording.rate_hz


@dataclass(frozen=True, kw_only=True)
class Model:
    """What computes rows."""

    compute: Callable[[Batch], Values]
    """Returns values_RC."""
    preprocessor: ECGPreprocessor
    columns: tuple[str, ...]
    what: str
    """What the values are."""
    about: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file or recording that has no row."""

    file: str
    record: str | None
    reason: str
    message: str


def over_files(settings: OverFiles, model: Model) -> None:
    """Write a row for each recording of the files, and say what was refused.

    Raises:
        ConfigError: All were refused, or any with --strict; or the table cannot be written, or a package is missing.
        KeyboardInterrupt: Ctrl-C was pressed; what was done by then is written.
    """
    console = Console(stderr=True)
    files = find(settings.files)
    if not files:
        raise ConfigError(f"{', '.join(settings.files)} holds no recording in a format that is read; see --help")
    work = _Work(settings, model, files, console)
    listed = settings.out.with_name(settings.out.name + REFUSED)
    try:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        listed.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(whole(settings.out))
            with open_table(temporary, settings.out.suffix, model.columns, model.what, model.about) as table:
                work.run(table)
            work.write_refusals(listed)
            if not table.rows:
                work.report(listed)
                if work.stopped:
                    raise KeyboardInterrupt
                raise ConfigError(f"all {len(work.refusals)} were refused, {settings.out} is not written")
    except OSError as error:
        raise ConfigError(f"--out {settings.out} cannot be written: {error.strerror or error}") from error
    work.report(listed)
    console.print(
        f"wrote {settings.out}: {table.rows:,} rows of {len(model.columns)} {model.what}",
        highlight=False,
        soft_wrap=True,
    )
    if work.stopped:
        console.print(f"stopped: {work.done:,} of {len(files):,} files are done", highlight=False)
        raise KeyboardInterrupt
    if settings.strict and work.refusals:
        raise ConfigError(f"{len(work.refusals)} were refused, and --strict allows none; see {listed}")


class _Work:
    """The loop, and what it has to tell at its end."""

    def __init__(self, settings: OverFiles, model: Model, files: list[Path], console: Console) -> None:
        self.refusals: list[Refusal] = []
        self.done = 0
        self.stopped = False
        self._settings, self._model, self._files, self._console = settings, model, files, console
        contract = model.preprocessor.contract
        self._enough_s = settings.batch_size * contract.window_samples / contract.rate_hz

    def run(self, table: Table) -> None:
        """Add a row for each recording; Ctrl-C ends it after the last rows that were computed."""
        reader = _Reader(self._files, self._settings.told(), self._settings.max_gap_s, self._model.preprocessor)
        try:
            with RecordBar(self._model.what, self._console, keep=False) as bar, reader:
                self._loop(table, reader, bar)
        except KeyboardInterrupt:
            self.stopped = True

    def _loop(self, table: Table, reader: _Reader, bar: RecordBar) -> None:
        batch: Batch | None = None
        read = 0
        for item in reader:
            if isinstance(item, Refusal):
                self.refusals.append(item)
            elif item is None:  # a file has ended
                read += 1
                if batch is None:
                    self.done = read
            else:
                file, recording = item
                if batch is not None and not batch.takes(recording):
                    self._compute(batch, table)
                    batch, self.done = None, read
                if batch is None:
                    batch = Batch(rate_hz=recording.rate_hz, leads=recording.leads, unit=recording.unit)
                batch.add(file, recording)
                if batch.seconds >= self._enough_s:
                    self._compute(batch, table)
                    batch, self.done = None, read
            bar.update(self.done, len(self._files))
        if batch is not None:
            self._compute(batch, table)
        self.done = read
        bar.update(self.done, len(self._files))

    def _compute(self, batch: Batch, table: Table) -> None:
        try:
            values_RC = self._model.compute(batch)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{self._settings.device} has no memory for --batch-size {self._settings.batch_size}; give a lower one"
            ) from error
        finite_R = np.isfinite(values_RC).all(axis=1)
        for row in np.flatnonzero(~finite_R):
            message = f"{batch.files[row]}: the model gives values that are not finite"
            self.refusals.append(
                Refusal(file=batch.files[row], record=batch.records[row], reason="not-finite", message=message)
            )
        kept = np.flatnonzero(finite_R)
        table.add([batch.files[row] for row in kept], [batch.records[row] for row in kept], values_RC[kept])

    def write_refusals(self, path: Path) -> None:
        """Write a line for each refusal, if there is any."""
        if not self.refusals:
            return
        with whole(path) as temporary:
            lines = [json.dumps(vars(refusal), ensure_ascii=False) + "\n" for refusal in self.refusals]
            temporary.write_text("".join(lines), encoding="utf-8")

    def report(self, listed: Path) -> None:
        """Print what was refused, by reason."""
        if not self.refusals:
            return
        counts = Counter(refusal.reason for refusal in self.refusals)
        shown = Shown("reason", "number", "the first", title=f"refused: {len(self.refusals):,}, all in {listed}")
        for reason, number in counts.most_common():
            some = [refusal.message for refusal in self.refusals if refusal.reason == reason][:SHOWN]
            shown.add_row(reason, f"{number:,}", "\n".join(some))
        self._console.print(shown, markup=False)


Item = tuple[Path, Recording] | Refusal | None


class _Reader:
    """Recordings of files and refusals in order, and None at the end of each file; read in a thread of its own."""

    def __init__(self, files: list[Path], told: Told, max_gap_s: float, preprocessor: ECGPreprocessor) -> None:
        self._files, self._told, self._max_gap_s, self._preprocessor = files, told, max_gap_s, preprocessor
        self._queue: queue.Queue[Item | BaseException | type[StopIteration]] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._queue.get()
            if item is StopIteration:
                return
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]  # StopIteration was the only class

    def _run(self) -> None:
        try:
            for item in self._items():
                if not self._put(item):
                    return
            self._put(StopIteration)
        except BaseException as error:  # raised again where it is taken from the queue
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def _items(self) -> Iterator[Item]:
        for file in self._files:
            try:
                for recording in read_recordings(file, self._told):
                    yield self._checked(file, recording)
            except RecordError as error:
                yield Refusal(file=str(file), record=None, reason=error.reason, message=error.message)
            yield None

    def _checked(self, file: Path, recording: Recording) -> Item:
        """Return a recording without gaps that the model will take, or why it will not."""
        try:
            ready = filled(recording, self._max_gap_s)
            # What the model does again in its own time: one bad recording must not spoil a batch.
            self._preprocessor([ready.signal_LT], rate_hz=ready.rate_hz, leads=ready.leads, unit=ready.unit)
        except (RecordError, LeadError, SignalError) as error:
            reason = error.reason if isinstance(error, RecordError) else _reason(error)
            message = str(error).replace("the signal", f"{file} {recording.name}", 1)
            message = message if str(file) in message else f"{file} {recording.name}: {message}"
            return Refusal(file=str(file), record=recording.name, reason=reason, message=message)
        return file, ready


def filled(recording: Recording, max_gap_s: float) -> Recording:
    """Return a recording whose missing samples lie on straight lines.

    Raises:
        RecordError: `gap`: a lead lacks samples for longer than that.
    """
    missing_LT = np.isnan(recording.signal_LT)
    if not missing_LT.any():
        return recording
    samples, lead = longest_gap(missing_LT, 0, missing_LT.shape[1])
    if samples > max_gap_s * recording.rate_hz:
        raise RecordError(
            "gap",
            f"lead {recording.leads[lead]} lacks {samples / recording.rate_hz:.3g} s in one piece, --max-gap-s is "
            f"{max_gap_s:g}",
        )
    return replace(recording, signal_LT=fill(recording.signal_LT))


def _reason(error: EcgfmError) -> str:
    return "leads" if isinstance(error, LeadError) else "signal"
