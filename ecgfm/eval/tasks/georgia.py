"""Diagnoses of the Georgia database: the 18 labels that PTB-XL has too, the Challenge's 26 classes, or all its own.

Verma, Dige and Gill 2021 transfer from PTB-XL to Georgia over 18 shared labels; see `ecgfm.labels.shared` for which
these are and what is doubtful about them. Georgia states no patients: each record is a patient of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Examples, Task, build, frequent, multi_hot, read_facts
from ecgfm.labels.shared import SHARED18
from ecgfm.labels.snomed import diagnoses, scored_classes
from ecgfm.shards.reader import Shards


class Georgia(Task):
    """Diagnoses of Georgia; see the module."""

    title = "Diagnoses of the Georgia 12-lead ECG database"
    source = "Perez Alday et al. 2020, https://doi.org/10.1088/1361-6579/abc960; Verma, Dige and Gill 2021"
    databases = ("georgia",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the diagnoses of Georgia."""

        labels: Literal["shared18", "challenge", "own"] = "shared18"
        """The 18 labels shared with PTB-XL, the Challenge 2021's 26 classes, or all codes that it bears."""

        min_records: int = 50
        """Of `challenge` and `own`: a label needs more records than this."""

        drop_unlabelled: bool = False
        """Leave out records that have none of the labels; they are negative otherwise."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.min_records < 0:
                raise ConfigError(f"--task.min-records {self.min_records}: give 0 or more")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records that have diagnoses; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        said = mine & np.asarray(["snomed" in labels for labels in facts.labels])
        names: Mapping[str, str] = scored_classes()
        if config.labels == "own":
            names = {code: one.abbreviation for code, one in diagnoses().items()}
        codes = [
            [names.get(code, code) for code in labels.get("snomed", ()) if config.labels == "own" or code in names]
            if asked
            else []
            for asked, labels in zip(mine, facts.labels, strict=True)
        ]
        labels = SHARED18 if config.labels == "shared18" else frequent(codes, config.min_records)
        target_NC = multi_hot(codes, labels)
        empty = target_NC.sum(axis=1) == 0
        keep = said & ~empty if config.drop_unlabelled else said
        return build(
            self,
            config,
            facts,
            kind="multilabel",
            labels=labels,
            target_NC=target_NC,
            keep_N=keep,
            left_out={
                "of other databases": int((~mine).sum()),
                "without diagnoses": int((mine & ~said).sum()),
                "without one of the labels": int((said & ~keep).sum()),
            },
        )
