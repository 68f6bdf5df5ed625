"""Records that were damaged, and that others stood in for: `skipped_records.jsonl` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from ecgfm.data.damage import Replaced, Replacements
from ecgfm.errors import ShardError
from ecgfm.train.log import RunLog, keep_lines
from ecgfm.train.world import World

SKIPPED = "skipped_records.jsonl"
ALWAYS = 100
"""Windows that may be replaced, however short the run is so far."""


class Skipped:
    """Collects over the ranks what was replaced, writes it down, and ends the run when it is too much.

    All ranks must make one.

    Args:
        replacements: Of this rank's loader.
        world: The ranks.
        run: Folder of the run.
        position: Windows that the run has seen; lines after it are removed.
        limit: Share of the windows that may be replaced.
        log: On rank 0.
    """

    def __init__(
        self, replacements: Replacements, world: World, run: Path, position: int, limit: float, log: RunLog | None
    ) -> None:
        self._replacements, self._world = replacements, world
        self._path, self._limit, self._log = run / SKIPPED, limit, log
        self._named: set[str] = set()
        self.total = 0
        if log:
            self.total = keep_lines(run, SKIPPED, lambda line: line["position"] < position)
        self.total = world.from_first(self.total)

    def report(self, step: int, position: int, batch_size: int) -> None:
        """Write down what was replaced so far. All ranks must call it.

        Args:
            step: Finished steps.
            position: Windows of all of them.
            batch_size: Windows of one.

        Raises:
            ShardError: On every rank, when it is too much.
        """
        found: list[list[Replaced]] = [[] for _ in range(self._world.size)]
        dist.all_gather_object(found, self._replacements.take(position), group=self._world.control)
        new = sorted(one for rank in found for one in rank)
        self.total += len(new)
        if self._log and new:
            with self._path.open("a", encoding="utf-8") as file:
                for one in new:
                    its_step = step - (position - 1 - one.position) // batch_size
                    file.write(json.dumps({"step": its_step, **asdict(one)}) + "\n")
            for one in new:
                if one.shard not in self._named:
                    self._named.add(one.shard)
                    self._log.say(f"warning: {one.reason}; another record was read instead, see {self._path}")
        if self.total > max(ALWAYS, self._limit * position):
            raise ShardError(
                f"{self.total:,} of {position:,} windows are of damaged records, more than --data.max-skipped "
                f"{self._limit:g}: {self._path} names them; restore the shards, and the same command goes on"
            )
