"""Any labels that the shards carry, as `scheme:code` or whole sets of them.

A label is unknown in records that say nothing in its scheme, and in a database none of whose records has it; see
`ecgfm.data.labels`. Published parts are kept; other patients are parted by seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfm.data.labels import LabelTable, label_names
from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Examples, Task, build, read_facts
from ecgfm.shards.reader import Shards


class Labels(Task):
    """Labels of your choice; see the module."""

    title = "Labels of the shards"
    source = "the databases of the shards"

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of a task of chosen labels."""

        labels: tuple[str, ...] = ("challenge",)
        """Labels as `scheme:code`, or sets: challenge, shared18, scp, scp-superdiagnostic, chapman-rhythm, sex, ..."""

        exclusive: bool = False
        """Only records with exactly one of the labels, which then exclude each other."""

        min_records: int = 0
        """A label needs more records than this; labels of fewer are dropped."""

        def __post_init__(self) -> None:
            super().__post_init__()
            label_names(self.labels)
            if self.min_records < 0:
                raise ConfigError(f"--task.min-records {self.min_records}: give 0 or more")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records in which a label is known; see `Task.examples`."""
        names = label_names(config.labels)
        table = LabelTable(shards, names)
        every = np.arange(len(shards))
        for index in every.tolist():
            table.learn(index)
        target_NC = table.rows(every).numpy().astype(np.float64)
        used = np.flatnonzero((target_NC == 1).sum(axis=0) > config.min_records)
        if not len(used):
            raise ConfigError(f"--task.min-records {config.min_records}: no label has more records than this")
        target_NC = target_NC[:, used]
        known: NDArray[np.bool_] = np.isfinite(target_NC).sum(axis=1) > 0
        left_out = {"without any of the labels known": int((~known).sum())}
        keep: NDArray[np.bool_] = known
        if config.exclusive:
            keep = np.equal((target_NC == 1).sum(axis=1), 1)
            left_out["with none of the labels or several"] = int((known & ~keep).sum())
            target_NC = np.nan_to_num(target_NC, nan=0.0)
        schemes = {names[column].partition(":")[0] for column in used}
        # One scheme's codes need no scheme before them.
        labels = [names[column].partition(":")[2] if len(schemes) == 1 else names[column] for column in used]
        return build(
            self,
            config,
            read_facts(shards),
            kind="multiclass" if config.exclusive else "multilabel",
            labels=labels,
            target_NC=target_NC,
            keep_N=keep,
            left_out=left_out,
        )
