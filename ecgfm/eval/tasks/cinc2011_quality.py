"""Is the recording good enough to be read? Set A of the PhysioNet/CinC Challenge 2011, from mobile phones.

Silva, Moody and Celi 2011, https://physionet.org/content/challenge-2011/1.0.0/. The label is `unacceptable`; records
that were judged neither way are left out. The Challenge scored the accuracy. No patients are stated.

Conversion refuses the worst recordings, and a record without shards is not asked. Of 800 records converted with
the default thresholds 57 were refused, all of them unacceptable (53 flat in all leads, 4 of implausible amplitude), so
that 122 of 741 are unacceptable, not 179 of 798: a harder task than the Challenge's, and its numbers are others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgfm.eval.tasks.base import Examples, Task, build, read_facts
from ecgfm.shards.reader import Shards


class Cinc2011Quality(Task):
    """Quality of the recordings of set A; see the module."""

    title = "Unacceptable recordings of the CinC Challenge 2011"
    source = "Silva, Moody and Celi 2011, https://physionet.org/content/challenge-2011/1.0.0/"
    databases = ("cinc2011-set-a",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the task of quality."""

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records that were judged; see `Task.examples`."""
        facts = read_facts(shards)
        mine = self.chosen(facts)
        judged = np.asarray(["quality" in labels for labels in facts.labels])
        bad = [[float("unacceptable" in labels.get("quality", ()))] for labels in facts.labels]
        return build(
            self,
            config,
            facts,
            kind="multilabel",
            labels=("unacceptable",),
            target_NC=np.asarray(bad),
            keep_N=mine & judged,
            left_out={
                "of other databases": int((~mine).sum()),
                "not judged": int((mine & ~judged).sum()),
            },
        )
