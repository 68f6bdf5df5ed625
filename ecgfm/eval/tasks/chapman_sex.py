"""Sex in the Chapman-Shaoxing database.

Bo et al. 2022 probe it beside the rhythm, with the same parts; see `chapman_rhythm`. The label is `female`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgfm.eval.tasks.base import Examples, Task, build, read_facts
from ecgfm.shards.reader import Shards


class ChapmanSex(Task):
    """Sex of the patients of Chapman-Shaoxing; see the module."""

    title = "Sex in Chapman-Shaoxing"
    source = "Zheng et al. 2020, https://doi.org/10.1038/s41597-020-0386-x; Bo et al. 2022"
    databases = ("chapman-shaoxing",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the task of sex."""

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records whose sex is known; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        known = np.asarray([sex is not None for sex in facts.sex])
        return build(
            self,
            config,
            facts,
            kind="multilabel",
            labels=("female",),
            target_NC=np.asarray([[float(sex == "female")] for sex in facts.sex]),
            keep_N=mine & known,
            left_out={
                "of other databases": int((~mine).sum()),
                "of unknown sex": int((mine & ~known).sum()),
            },
        )
