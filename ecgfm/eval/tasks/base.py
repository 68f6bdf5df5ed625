"""What a task is: which records of shards it asks, what is true of them, and how they are parted.

A task is a file of this folder with one class. No signal is read here.

Shapes: N records, C classes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ecgfm import parts
from ecgfm.errors import ConfigError
from ecgfm.eval.labels import patient_of
from ecgfm.eval.metrics import Kind
from ecgfm.eval.splits import SPLITS, TEST, TRAIN, VALIDATION, check_apart, label_share, parts_of, seeded_folds
from ecgfm.shards.reader import Shards

PUBLISHED = {"train": TRAIN, "val": VALIDATION, "test": TEST}
"""Parts as shards name them."""
LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of all records of the shards, in their order."""

    database: tuple[str, ...]
    record: tuple[str, ...]
    patients: tuple[str, ...]
    """With the database before it; a record without a patient is a patient of its own."""
    labels: tuple[dict[str, list[str]], ...]
    """Codes by scheme."""
    age: tuple[float | None, ...]
    sex: tuple[str | None, ...]
    fold: tuple[int | None, ...]
    """Published folds."""
    split: tuple[str, ...]
    """As the shards name it: `all`, `train`, `val`, `test` or `unknown`."""


def read_facts(shards: Shards) -> Facts:
    """Return what the shards say about all their records."""
    about = [shards.about(index) for index in range(len(shards))]
    columns: dict[str, Any] = {
        name: tuple(each[name] for each in about) for name in ("database", "record", "labels", "age", "sex", "fold")
    }
    return Facts(patients=tuple(map(patient_of, about)), split=tuple(shards.split_of.tolist()), **columns)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The records of a task and what is true of them."""

    kind: Kind
    labels: tuple[str, ...]
    """C names."""
    index_N: NDArray[np.int64]
    """Records of the shards."""
    target_NC: NDArray[np.float64]
    """1, 0, or NaN where it is unknown; of `multiclass` one 1 a row; of `regression` numbers."""
    patients: tuple[str, ...]
    split_N: NDArray[np.str_]
    """`train`, `validation` or `test`."""
    folds: NDArray[np.int64] | None = None
    """Published folds; None where there are none."""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """Records of the shards that the task does not ask, by reason."""

    def __post_init__(self) -> None:
        number = len(self.index_N)
        assert self.target_NC.shape == (number, len(self.labels)) and self.target_NC.dtype == np.float64
        assert len(self.patients) == len(self.split_N) == number and set(self.split_N) <= set(SPLITS)

    def part(self, split: str) -> NDArray[np.int64]:
        """Return the places (not the records' numbers) of a part: `train`, `validation` or `test`."""
        return np.flatnonzero(self.split_N == split)

    def subset(self, keep_N: NDArray[np.bool_] | NDArray[np.int64], why: str = "") -> Examples:
        """Return some of the examples; those that go are counted under `why`."""
        place = np.arange(len(self.index_N))[keep_N]
        gone = {why: len(self.index_N) - len(place)} if why and len(place) < len(self.index_N) else {}
        return dataclasses.replace(
            self,
            index_N=self.index_N[place],
            target_NC=self.target_NC[place],
            patients=tuple(self.patients[number] for number in place),
            split_N=self.split_N[place],
            folds=None if self.folds is None else self.folds[place],
            left_out={**self.left_out, **gone},
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return records, patients, and records that have each label, by part."""
        out: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            place = self.part(split)
            known = self.target_NC[place] == 1 if self.kind != "regression" else ~np.isnan(self.target_NC[place])
            out[split] = {
                "records": len(place),
                "patients": len({self.patients[number] for number in place}),
                **dict(zip(self.labels, map(int, known.sum(axis=0)), strict=True)),
            }
        return out


class Task(abc.ABC):
    """A question to the records of some database."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings that all tasks share; each task nests its own."""

        seed: int = 0
        """Of folds that are not published, and of the patients of a label share."""

        num_folds: int = 10
        """Folds to part the patients into, where none are published: the last is the test part, the one before it
        validation."""

        rotation: int = 0
        """Tests another fold: 0 the last one, 1 the one before it, and so on. Published folds do not rotate."""

        label_share: float = 1.0
        """Share of the training part's patients that are kept: 0.1 for 10 %. The shares of one seed are nested."""

        def __post_init__(self) -> None:
            if self.num_folds < 3:
                raise ConfigError(f"--task.num-folds {self.num_folds}: three or more are needed")
            if not 0 <= self.rotation < self.num_folds:
                raise ConfigError(f"--task.rotation {self.rotation}: give 0 to {self.num_folds - 1}")
            if not 0.0 < self.label_share <= 1.0:
                raise ConfigError(f"--task.label-share {self.label_share}: give a share above 0, up to 1")

    title: ClassVar[str]
    """What is asked, in a line."""
    source: ClassVar[str]
    """Where task and labels come from."""
    databases: ClassVar[tuple[str, ...]] = ()
    """Databases that it asks; empty for any."""
    at_least_one: ClassVar[bool] = False
    """Whether its benchmark answers the likeliest label where none reaches its threshold; see `metrics.evaluate`."""

    @abc.abstractmethod
    def examples(self, shards: Shards, config: Any) -> Examples:
        """Return the task's records.

        Args:
            shards: Records; those of other databases are left out.
            config: Of this task.

        Raises:
            ConfigError: No record can answer, or a part would be empty.
        """

    @classmethod
    def name(cls) -> str:
        """Return the task's name, that of its file."""
        return parts.kind_of(cls)

    def chosen(self, facts: Facts) -> NDArray[np.bool_]:
        """Return which records are of the task's databases.

        Raises:
            ConfigError: None is.
        """
        mine = np.asarray([not self.databases or name in self.databases for name in facts.database])
        if not mine.any():
            raise ConfigError(
                f"task {self.name()} needs records of {' or '.join(self.databases)}, the shards hold "
                f"{', '.join(sorted(set(facts.database)))}: give its shards, or another --task"
            )
        return mine


def load_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    return parts.load("ecgfm.eval.tasks", name, Task)()  # type: ignore[type-abstract]


def task_of(config: Task.Config) -> Task:
    """Return the task that settings belong to."""
    return load_task(parts.kind_of(type(config)))


def task_examples(shards: Shards, config: Task.Config) -> Examples:
    """Return the examples of settings, with their label share; see `Task.examples`."""
    return task_of(config).examples(shards, config)


def build(
    task: Task,
    config: Task.Config,
    facts: Facts,
    *,
    kind: Kind,
    labels: Sequence[str],
    target_NC: NDArray[np.float64],
    keep_N: NDArray[np.bool_],
    left_out: dict[str, int] | None = None,
    split_N: NDArray[np.str_] | None = None,
    folds_N: NDArray[np.int64] | None = None,
) -> Examples:
    """Return examples with parts and label share.

    Args:
        task: For messages.
        config: Its settings.
        facts: Of all records.
        kind: Of the targets.
        labels: C names.
        target_NC: Of all records, those that are not kept as well.
        keep_N: Records that the task asks.
        left_out: Why others are not kept, in numbers.
        split_N: Published parts of all records; an empty word where there is none. Without them those of the shards.
        folds_N: Published folds of all records.

    Raises:
        ConfigError: No record is kept, a part is empty, or parts share a patient.
    """
    index = np.flatnonzero(keep_N)
    if not len(index):
        raise ConfigError(f"task {task.name()}: no record can answer ({_listed(left_out or {})})")
    patients = tuple(facts.patients[number] for number in index)
    given = split_N if split_N is not None else np.asarray([PUBLISHED.get(split, "") for split in facts.split])
    split = _complete(given[index], target_NC[index], patients, config, regression=kind == "regression")
    examples = Examples(
        kind=kind,
        labels=tuple(labels),
        index_N=index,
        target_NC=target_NC[index],
        patients=patients,
        split_N=split,
        folds=None if folds_N is None else folds_N[index],
        left_out={why: number for why, number in (left_out or {}).items() if number},
    )
    check_apart(split, patients, f"task {task.name()}")
    for name in SPLITS:
        if not len(examples.part(name)):
            raise ConfigError(f"task {task.name()}: no record is in the {name} part ({_listed(examples.left_out)})")
    if config.label_share < 1.0:
        kept = label_share(split, patients, share=config.label_share, seed=config.seed)
        examples = examples.subset(kept, "outside of the label share")
    return examples


def multi_hot(codes: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.float64]:
    """Return target_NC of each record's codes; codes that are no label are passed over."""
    column = {label: number for number, label in enumerate(labels)}
    target_NC = np.zeros((len(codes), len(labels)))
    for row, each in enumerate(codes):
        for code in each:
            if code in column:
                target_NC[row, column[code]] = 1.0
    return target_NC


def frequent(codes: Sequence[Sequence[str]], more_than: int) -> tuple[str, ...]:
    """Return the codes that more than so many records have, sorted."""
    counts = Counter(code for each in codes for code in set(each))
    return tuple(sorted(code for code, number in counts.items() if number > more_than))


def _complete(
    split_N: NDArray[np.str_],
    target_NC: NDArray[np.float64],
    patients: tuple[str, ...],
    config: Task.Config,
    *,
    regression: bool,
) -> NDArray[np.str_]:
    """Return parts for the records that have none, and a validation part where only train and test are published."""
    split = split_N.astype("<U10")
    names = np.asarray(patients)
    for chosen, carve in ((split == "", False), (split == TRAIN, True)):
        place = np.flatnonzero(chosen)
        if not len(place) or (carve and ((split == VALIDATION).any() or not (split == TEST).any())):
            continue
        fold_N = seeded_folds(
            target_NC[place], names[place].tolist(), folds=config.num_folds, seed=config.seed, regression=regression
        )
        if carve:
            split[place[fold_N == config.num_folds]] = VALIDATION
        else:
            split[place] = parts_of(fold_N, folds=config.num_folds, rotation=config.rotation)
    return split


def _listed(left_out: dict[str, int]) -> str:
    return ", ".join(f"{number} {why}" for why, number in left_out.items()) or "nothing was left out"
