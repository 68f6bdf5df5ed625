"""Four groups of rhythm in the Chapman-Shaoxing database: AFIB, GSVT, SB, SR.

Zheng et al. 2020, https://doi.org/10.1038/s41597-020-0386-x, merge eleven rhythms into four; Bo et al. 2022 probe them,
with 80 % of the records for training and 10 % each for validation and test, at 100, 10 and 1 % of the labels. See
`ecgfm.labels.chapman` for the groups. The Challenge's copy states no patients; the database has one record of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from ecgfm.eval.tasks.base import Examples, Task, build, multi_hot, read_facts
from ecgfm.shards.reader import Shards

GROUPS = ("AFIB", "GSVT", "SB", "SR")


class ChapmanRhythm(Task):
    """Rhythm groups of Chapman-Shaoxing; see the module."""

    title = "Rhythm groups of Chapman-Shaoxing"
    source = "Zheng et al. 2020, https://doi.org/10.1038/s41597-020-0386-x; Bo et al. 2022"
    databases = ("chapman-shaoxing",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the rhythm groups."""

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records of one group; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        target_NC = multi_hot([labels.get("chapman-rhythm", ()) for labels in facts.labels], GROUPS)
        grouped = target_NC.sum(axis=1) == 1
        return build(
            self,
            config,
            facts,
            kind="multiclass",
            labels=GROUPS,
            target_NC=target_NC,
            keep_N=mine & grouped,
            left_out={
                "of other databases": int((~mine).sum()),
                "of no rhythm group or several": int((mine & ~grouped).sum()),
            },
        )
