"""Your own labels, from a CSV file with a row for each record: one or many labels, classes, or numbers.

```
record,patient,lvef,split
0001,p17,35,train
0002,p18,,test
```

- `--task.targets multilabel` (the default): each column is a label; 1, 0, yes, no, true, false, or nothing where it is
  unknown.
- `--task.targets multiclass`: one column with a word for each class; records without a word are left out.
- `--task.targets regression`: columns of numbers; nothing where it is unknown.
- `--task.at-most 40`: a column of numbers becomes one label, `lvef<=40`: left-ventricular systolic dysfunction, say, as
  Nakamoto et al. 2021 and others define it by the ejection fraction.

Records are named as in the shards; their manifest lists them. A recording that was cut into segments gives all of them
its label. Rows whose record is not in the shards are counted.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.eval.splits import TEST, TRAIN, VALIDATION
from ecgfm.eval.tasks.base import Examples, Facts, Task, build, read_facts
from ecgfm.shards.reader import Shards

WORDS = {"1": 1.0, "0": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}
UNKNOWN = ("", "nan", "na", "none", "null")
PARTS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
Row = dict[str, str]


class Table(Task):
    """Labels from a CSV file; see the module."""

    title = "Labels from a table"
    source = "the table"

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of a task from a CSV file."""

        table: Path = Path("labels.csv")
        """The CSV file, with a header."""

        columns: tuple[str, ...] = ("label",)
        """Columns to predict."""

        targets: Literal["multilabel", "multiclass", "regression"] = "multilabel"
        """What the columns hold; see above."""

        at_most: float | None = None
        """Makes a label of one column of numbers: those up to this one are positive."""

        record_column: str = "record"
        """Column with the record's name."""

        patient_column: str | None = None
        """Column with the patient, where the shards do not know it."""

        split_column: str | None = None
        """Column with the part: train, validation or test. Without it the shards' parts count, or seeded folds."""

        database: str | None = None
        """Only records of this database; needed where two databases of the shards name a record alike."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.columns or len(set(self.columns)) < len(self.columns):
                raise ConfigError(f"--task.columns {' '.join(self.columns)}: name each column once, and one at least")
            if len(self.columns) > 1 and (self.targets == "multiclass" or self.at_most is not None):
                raise ConfigError(f"--task.columns {' '.join(self.columns)}: multiclass and at-most take one column")
            if self.at_most is not None and (self.targets != "multilabel" or not math.isfinite(self.at_most)):
                raise ConfigError(f"--task.at-most {self.at_most}: give a number, and --task.targets multilabel")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records of the table; see `Task.examples`.

        Raises:
            ConfigError: The table cannot be read, lacks a column, holds a value of another kind or a record twice.
        """
        facts = read_facts(shards)
        rows = _read(config)
        row_of = _matched(facts, rows, config)
        found = np.asarray([row is not None for row in row_of])
        labels, target_NC = _targets([row or {} for row in row_of], config)
        known = ~np.isnan(target_NC).all(axis=1)
        in_shards = set(facts.record)
        left_out = {
            "not in the table": int((~found).sum()),
            "unknown in the table": int((found & ~known).sum()),
            "of the table, not in the shards": len(rows.keys() - in_shards),
        }
        if config.patient_column is not None:
            patients = [
                f"{facts.database[index]} patient {row[config.patient_column]}"
                if row and row[config.patient_column]
                else facts.patients[index]
                for index, row in enumerate(row_of)
            ]
            facts = replace(facts, patients=tuple(patients))

        return build(
            self,
            config,
            facts,
            kind=config.targets,
            labels=labels,
            target_NC=target_NC,
            keep_N=found & known,
            left_out=left_out,
            split_N=None if config.split_column is None else _parts(row_of, config),
        )


def _read(config: Table.Config) -> dict[str, Row]:
    """Return rows by record."""
    table = config.table
    needed = [config.record_column, *config.columns, *filter(None, (config.patient_column, config.split_column))]
    rows: dict[str, Row] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in needed if name not in header]
            if missing:
                raise ConfigError(f"{table} has no column {', '.join(missing)}; it has {', '.join(header) or 'none'}")
            for row in reader:
                record = row[config.record_column].strip()
                if record in rows:
                    raise ConfigError(f"{table} line {reader.line_num}: record {record} stands in it twice")
                rows[record] = {name: row[name].strip() for name in needed}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--task.table {table} cannot be read: {error}") from error
    return rows


def _matched(facts: Facts, rows: dict[str, Row], config: Table.Config) -> list[Row | None]:
    """Return each record's row."""
    asked = [config.database in (None, name) for name in facts.database]
    if not any(asked):
        raise ConfigError(
            f"--task.database {config.database}: the shards hold {', '.join(sorted(set(facts.database)))}"
        )
    row_of = [rows.get(record) if here else None for record, here in zip(facts.record, asked, strict=True)]
    owner: dict[str, str] = {}
    for record, database, row in zip(facts.record, facts.database, row_of, strict=True):
        if row is not None and owner.setdefault(record, database) != database:
            raise ConfigError(
                f"record {record} is in {owner[record]} and in {database}: say which one with --task.database"
            )
    if not owner:
        raise ConfigError(
            f"no record of {config.table} is in the shards: it names {', '.join(list(rows)[:3]) or 'none'}, the shards "
            f"{', '.join(facts.record[:3])}; is --task.record-column {config.record_column} the right one?"
        )
    return row_of


def _targets(rows: list[Row], config: Table.Config) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return labels and target_NC; NaN where nothing is said."""
    if config.targets == "multiclass":
        words = [row.get(config.columns[0], "") for row in rows]
        labels = tuple(sorted({word for word in words if word.lower() not in UNKNOWN}))
        if len(labels) < 2:
            raise ConfigError(f"{config.table}: column {config.columns[0]} has {len(labels)} class; two are needed")
        column = {label: number for number, label in enumerate(labels)}
        target_NC = np.full((len(rows), len(labels)), np.nan)
        for place, word in enumerate(words):
            if word in column:
                target_NC[place] = np.eye(len(labels))[column[word]]
        return labels, target_NC
    numbers = config.targets == "regression" or config.at_most is not None
    target_NC = np.asarray(
        [[_value(row, name, numbers, config) for name in config.columns] for row in rows], dtype=np.float64
    )
    if config.at_most is None:
        return config.columns, target_NC
    positive = np.where(np.isnan(target_NC), np.nan, target_NC <= config.at_most)
    return (f"{config.columns[0]}<={config.at_most:g}",), positive


def _value(row: Row, name: str, number: bool, config: Table.Config) -> float:
    word = row.get(name, "").lower()
    if word in UNKNOWN:
        return math.nan
    value = WORDS.get(word) if not number else _number(word)
    if value is None:
        wanted = "a number" if number else "1, 0, yes, no, true or false"
        raise ConfigError(
            f"{config.table}: record {row[config.record_column]} has {name} {row[name]!r}, not {wanted} or nothing"
        )
    return value


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _parts(row_of: list[Row | None], config: Table.Config) -> NDArray[np.str_]:
    """Return published parts."""
    assert config.split_column is not None
    parts = []
    for row in row_of:
        word = row[config.split_column].lower() if row else ""
        if row and word not in PARTS:
            raise ConfigError(
                f"{config.table}: record {row[config.record_column]} has {config.split_column} {word!r}, expected "
                "train, validation or test"
            )
        parts.append(PARTS.get(word, ""))
    return np.asarray(parts)
