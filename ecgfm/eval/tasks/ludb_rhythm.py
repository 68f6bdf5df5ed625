"""Rhythm in the Lobachevsky University database: 200 records of 200 patients.

Kalyakulina et al. 2020, https://doi.org/10.1109/ACCESS.2020.3029211; https://doi.org/10.13026/eegm-h675. A statement
`Rhythm: ...` stands in each header: sinus rhythm 143, sinus bradycardia 25, atrial fibrillation 15, sinus arrhythmia 8,
sinus tachycardia 4, atrial flutter 3, irregular sinus rhythm 2. Small: a test part has 20 records, and the interval is
wide. `--task.rotation` tests the other folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Examples, Task, build, frequent, multi_hot, read_facts
from ecgfm.shards.reader import Shards

PREFIX = "Rhythm: "
SINUS = "Sinus rhythm"


class LudbRhythm(Task):
    """Rhythm of LUDB; see the module."""

    title = "Rhythm in the Lobachevsky University database"
    source = "Kalyakulina et al. 2020, https://doi.org/10.1109/ACCESS.2020.3029211"
    databases = ("ludb",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the rhythms of LUDB."""

        binary: bool = False
        """One label, `not sinus rhythm`, of all records: 57 have it."""

        min_records: int = 10
        """Without `binary`: a rhythm needs more records than this; records of rarer ones are left out."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.min_records < 0:
                raise ConfigError(f"--task.min-records {self.min_records}: give 0 or more")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records that state one rhythm; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        rhythms = [
            [code.removeprefix(PREFIX) for code in labels.get("ludb", ()) if asked and code.startswith(PREFIX)]
            for asked, labels in zip(mine, facts.labels, strict=True)
        ]
        one = np.asarray([len(each) == 1 for each in rhythms])
        left_out = {
            "of other databases": int((~mine).sum()),
            "of no rhythm or several": int((mine & ~one).sum()),
        }
        if config.binary:
            labels: tuple[str, ...] = ("not sinus rhythm",)
            target_NC = np.asarray([[float(each != [SINUS])] for each in rhythms])
            keep = one
        else:
            labels = frequent([each for each, kept in zip(rhythms, one, strict=True) if kept], config.min_records)
            target_NC = multi_hot(rhythms, labels)
            keep = one & (target_NC.sum(axis=1) == 1)
            left_out["of a rare rhythm"] = int((one & ~keep).sum())
        return build(
            self,
            config,
            facts,
            kind="multilabel" if config.binary else "multiclass",
            labels=labels,
            target_NC=target_NC,
            keep_N=keep,
            left_out=left_out,
        )
