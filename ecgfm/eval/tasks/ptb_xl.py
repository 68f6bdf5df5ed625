"""The six tasks of PTB-XL, made as its public benchmark makes them, and the superclasses as a single label.

Strodthoff et al. 2021, https://doi.org/10.1109/JBHI.2020.3022989; https://github.com/helme/ecg_ptbxl_benchmarking
(`compute_label_aggregations` and `select_data` of its utils.py). As there:

- every statement of a record counts, whatever its likelihood, 0 as well;
- statements are said as themselves (all, diagnostic, form, rhythm), as subclasses or as superclasses;
- labels that no more than `min_records` records of all folds have are dropped (0 in the published numbers), and then
  records without any label of the task, in training and in testing;
- labels are in alphabetical order; folds 1 to 8 train, 9 validates, 10 tests.

Where we differ: the benchmark has no minimum for the task diagnostic, which at 0 makes no difference. Its published
numbers are of PTB-XL 1.0.1, with 38 records more than 1.0.3 (21,837 and 21,799).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import PUBLISHED, Examples, Task, build, frequent, multi_hot, read_facts
from ecgfm.labels import scp
from ecgfm.shards.reader import Shards

PARTS = {**dict.fromkeys(range(1, 9), PUBLISHED["train"]), 9: PUBLISHED["val"], 10: PUBLISHED["test"]}


class PtbXl(Task):
    """Statements of PTB-XL; see the module."""

    title = "Statements of PTB-XL"
    source = "Strodthoff et al. 2021, https://doi.org/10.1109/JBHI.2020.3022989"
    databases = ("ptb-xl",)
    at_least_one = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the tasks of PTB-XL."""

        statements: Literal["all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm"] = "all"
        """Which of the six tasks."""

        min_records: int = 0
        """A label needs more records than this, over all folds; 0 as in the published numbers."""

        single_label: bool = False
        """Only records with exactly one label of the task, which then exclude each other; meant for superdiagnostic."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.min_records < 0:
                raise ConfigError(f"--task.min-records {self.min_records}: give 0 or more")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records that have a label of the task; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        scheme = "scp" if config.statements == "all" else f"scp-{config.statements}"
        known = scp.task_labels(config.statements)
        # A statement that the table of 71 lacks is no label: of `all` the benchmark would take it, but there is none.
        codes = [
            [code for code in labels.get(scheme, ()) if code in known] if asked else []
            for asked, labels in zip(mine, facts.labels, strict=True)
        ]
        labels = frequent(codes, config.min_records)
        target_NC = multi_hot(codes, labels)
        number_N = target_NC.sum(axis=1)
        foldless = np.asarray([fold not in PARTS for fold in facts.fold])
        if (mine & foldless).any():
            first = int(np.flatnonzero(mine & foldless)[0])
            raise ConfigError(f"record {facts.record[first]} of ptb-xl has fold {facts.fold[first]}: convert it again")
        keep = mine & (number_N == 1 if config.single_label else number_N > 0)
        return build(
            self,
            config,
            facts,
            kind="multiclass" if config.single_label else "multilabel",
            labels=labels,
            target_NC=target_NC,
            keep_N=keep,
            left_out={
                "of other databases": int((~mine).sum()),
                "without a label of the task": int((mine & (number_N == 0)).sum()),
                "with several labels": int((mine & (number_N > 1)).sum()) if config.single_label else 0,
            },
            split_N=np.asarray([PARTS.get(fold or 0, "") for fold in facts.fold]),
            folds_N=np.asarray([fold or 0 for fold in facts.fold], dtype=np.int64),
        )
