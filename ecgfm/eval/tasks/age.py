"""Age in years, of any database that states it.

Lima et al. 2021, https://doi.org/10.1038/s41467-021-25351-7, is the reference for age from the ECG. PTB-XL hides ages
above 89, which shards give as 90. Published parts are kept; other patients are parted by seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecgfm.errors import ConfigError
from ecgfm.eval.tasks.base import Examples, Task, build, read_facts
from ecgfm.shards.reader import Shards


class Age(Task):
    """Age of the patient; see the module."""

    title = "Age in years"
    source = "Lima et al. 2021, https://doi.org/10.1038/s41467-021-25351-7"

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        """Settings of the task of age."""

        youngest: float = 0.0
        """Years; younger patients are left out."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0.0 <= self.youngest < 120.0:
                raise ConfigError(f"--task.youngest {self.youngest}: give 0 to 120 years")

    def examples(self, shards: Shards, config: Config) -> Examples:
        """Return the records whose age is known; see `Task.examples`."""
        facts = read_facts(shards)
        age_N = np.asarray([np.nan if age is None else age for age in facts.age], dtype=np.float64)
        young = age_N < config.youngest
        known = ~np.isnan(age_N)
        return build(
            self,
            config,
            facts,
            kind="regression",
            labels=("age",),
            target_NC=age_N[:, None],
            keep_N=known & ~young,
            left_out={"of unknown age": int((~known).sum()), "too young": int(young.sum())},
        )
