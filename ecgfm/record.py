"""One ECG recording as a database gives it: numbers with their scale, lead names and labels.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MISSING = np.int16(-32768)
"""The count that WFDB format 16 writes where there is no sample."""

Sex = Literal["female", "male"]


Counts = NDArray[np.int16] | NDArray[np.float32] | NDArray[np.float64]


# slots: a database of a million records has as many of these in memory.
@dataclass(frozen=True, kw_only=True, slots=True)
class RecordRef:
    """Where a record is, found without reading any signal."""

    record: str
    """Name of the record, unique within its database."""
    file: str
    """The header or file to read; as text, which takes a fifth of the memory of a `Path`."""
    index: int = 0
    """Which record of a file that holds several. Records are read in the order of file and index."""
    split: str = "all"
    """Which shards it goes to: `all`; the published `train`, `val`, `test`; or `unknown`, when the database has
    held-out records and this copy does not say which. Pretraining reads `all` and `train` only."""
    info: Mapping[str, str] = field(default_factory=dict)
    """What the database's tables say of it and `read` needs, as text."""

    @property
    def path(self) -> Path:
        """The header or file to read."""
        return Path(self.file)

    @property
    def folder(self) -> str:
        """Where it lies; as text, since making a `Path` is a tenth of the time that reading a header takes."""
        return self.file.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One recording in its native rate, lead order and counts.

    A sample's value is `(count - offset_counts) * microvolt_per_count`. Where there is no sample the count is
    `MISSING`, or NaN in a record of floats.
    """

    record: str
    database: str
    counts_LT: Counts
    """Shape (L, T), C-contiguous. int16 as a converter gave them, or float32 or float64 where the database publishes
    no counts; those of a database in millivolt have 1000 microvolt per count."""
    leads: tuple[str, ...]
    """L names as published."""
    microvolt_per_count: NDArray[np.float64]
    """Shape (L,)."""
    offset_counts: NDArray[np.int64]
    """Shape (L,): the count that stands for 0 V."""
    rate_hz: float
    patient: str | None = None
    """None where the database does not say; the record then counts as a patient of its own."""
    age: float | None = None
    """Years."""
    sex: Sex | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Codes as published, by scheme: {"snomed": ("426783006",)}."""
    fold: int | None = None
    mended: tuple[str, ...] = ()
    """Names of the rules that changed what the files say, as the manifest records them."""

    def __post_init__(self) -> None:
        shape = (len(self.leads),)
        assert self.counts_LT.ndim == 2 and self.counts_LT.dtype in (np.int16, np.float32, np.float64), self.record
        assert self.counts_LT.shape[0] == len(self.leads), self.record
        assert self.microvolt_per_count.shape == shape and self.offset_counts.shape == shape, self.record
