"""Tables of a row a recording: file, record, and a column for each feature or label. Parquet, CSV or .npz.

Rows are written as they come, except to .npz, which is written at the end.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError

FIRST = ("file", "record")
ROWS_OF_A_GROUP = 4096
Values = NDArray[np.float32]


class Table(ABC):
    """A file that takes rows. Use as a context; on leaving it the file is whole, also after an error.

    Args:
        path: The file.
        columns: Names of the values.
        what: What the values are: features, probabilities, values.
        about: What is written of the table itself, where the format has a place for it.
    """

    def __init__(self, path: Path, columns: Sequence[str], what: str, about: Mapping[str, str]) -> None:
        self.path, self.columns, self.what, self.about = path, tuple(columns), what, dict(about)
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, files: Sequence[str], records: Sequence[str], values_RC: Values) -> None:
        """Add a row for each recording."""
        assert len(files) == len(records) == len(values_RC) and values_RC.shape[1] == len(self.columns)
        self.rows += len(files)
        self._add(files, records, values_RC)

    @abstractmethod
    def _add(self, files: Sequence[str], records: Sequence[str], values_RC: Values) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Write what is left and close the file."""


class Csv(Table):
    """Comma-separated, with nine digits, from which a float32 is read back exactly."""

    def __init__(self, path: Path, columns: Sequence[str], what: str, about: Mapping[str, str]) -> None:
        super().__init__(path, columns, what, about)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow((*FIRST, *self.columns))

    def _add(self, files: Sequence[str], records: Sequence[str], values_RC: Values) -> None:
        for file, record, row in zip(files, records, values_RC.tolist(), strict=True):
            self._writer.writerow((file, record, *(f"{value:.9g}" for value in row)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Parquet(Table):
    """Apache Parquet: texts and float32; `about` is the schema's metadata."""

    def __init__(self, path: Path, columns: Sequence[str], what: str, about: Mapping[str, str]) -> None:
        super().__init__(path, columns, what, about)
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise ConfigError("a .parquet needs pyarrow: pip install 'ecgfm[files]', or write .csv or .npz") from error
        texts = [pyarrow.field(name, pyarrow.string()) for name in FIRST]
        numbers = [pyarrow.field(name, pyarrow.float32()) for name in self.columns]
        self._schema = pyarrow.schema(texts + numbers, metadata=self.about)
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._arrow = pyarrow
        self._waiting: list[tuple[Sequence[str], Sequence[str], Values]] = []
        self._waiting_rows = 0

    def _add(self, files: Sequence[str], records: Sequence[str], values_RC: Values) -> None:
        self._waiting.append((files, records, values_RC))
        self._waiting_rows += len(files)
        if self._waiting_rows >= ROWS_OF_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        files = [file for some, _, _ in self._waiting for file in some]
        records = [record for _, some, _ in self._waiting for record in some]
        values_RC = np.concatenate([values for _, _, values in self._waiting])
        # Contiguous columns: arrow takes them without a copy.
        columns: list[Any] = [files, records, *np.ascontiguousarray(values_RC.T)]
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))
        self._waiting, self._waiting_rows = [], 0

    def close(self) -> None:
        """Write what is left and the footer, without which the file could not be read."""
        try:
            if self._waiting:
                self._flush()
        finally:
            self._writer.close()


class Npz(Table):
    """NumPy: `files`, `records`, the values under what they are, `columns`, and `about` as JSON."""

    def __init__(self, path: Path, columns: Sequence[str], what: str, about: Mapping[str, str]) -> None:
        super().__init__(path, columns, what, about)
        self._parts: list[tuple[Sequence[str], Sequence[str], Values]] = []

    def _add(self, files: Sequence[str], records: Sequence[str], values_RC: Values) -> None:
        self._parts.append((files, records, values_RC))

    def close(self) -> None:
        """Write the file."""
        none = np.zeros((0, len(self.columns)), dtype=np.float32)
        arrays = {
            "files": np.array([file for some, _, _ in self._parts for file in some], dtype=np.str_),
            "records": np.array([record for _, some, _ in self._parts for record in some], dtype=np.str_),
            self.what: np.concatenate([none, *(values for _, _, values in self._parts)]),
            "columns": np.array(self.columns, dtype=np.str_),
            "about": np.array(json.dumps(self.about)),
        }
        with self.path.open("wb") as file:  # given a path, savez would add its own ending to a temporary name
            np.savez(file, allow_pickle=False, **arrays)


ENDINGS: dict[str, type[Table]] = {".parquet": Parquet, ".csv": Csv, ".npz": Npz}


def open_table(path: Path, ending: str, columns: Sequence[str], what: str, about: Mapping[str, str]) -> Table:
    """Return an empty table.

    Args:
        path: The file.
        ending: Which kind: that of the name which the file will have.
        columns: Names of the values.
        what: What they are.
        about: Of the table itself.

    Raises:
        ConfigError: A column has the name of another, or a package is missing.
    """
    names = (*FIRST, *columns)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"a column of the table would be called {doubled[0]!r} twice; write .npz, which keeps apart")
    return ENDINGS[ending.lower()](path, columns, what, about)
