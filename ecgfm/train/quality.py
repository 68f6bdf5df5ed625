"""What a run looks at besides its steps: losses on windows that are held out, and a probe. It moves nothing of them."""

from __future__ import annotations

import math

from ecgfm.data.loader import Loader
from ecgfm.data.prepare import Prepare
from ecgfm.objectives.base import Progress
from ecgfm.signal.contract import SignalContract
from ecgfm.train.engine import Engine
from ecgfm.train.log import RunLog
from ecgfm.train.plan import quality_plan, run_probe, run_validation
from ecgfm.train.run import Run
from ecgfm.train.validation import Validation


class Quality:
    """Knows when to look, and looks. All ranks must make it.

    Args:
        run: The settings.
        engine: Of the run.
        loader: Its windows.
        contract: What the encoder will demand of a signal.
        prepare: What the loop normalises with.
        log: On rank 0.

    Raises:
        ConfigError: There is nothing to validate on, and there should be.
        ShardError: A record cannot be read.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        loader: Loader,
        contract: SignalContract,
        prepare: Prepare,
        log: RunLog | None,
    ) -> None:
        self._run, self._engine = run, engine
        self._every = run.validate_every or run.checkpoint_every
        self._probe_every = run.probe.every or run.checkpoint_every
        self._probe = run_probe(run, loader.shards, contract)
        windows = run_validation(run, loader.shards, contract)
        if log:
            for line in quality_plan(run, windows, self._probe):
                log.say(line)
        self._validation: Validation | None = None
        if windows:
            self._validation = Validation(
                engine.world,
                engine.objective,
                prepare,
                windows,
                autocast=run.engine.precision == "bfloat16",
                read_shard=loader.streaming.read_shard if loader.streaming else None,
            )

    def due(self, step: int) -> bool:
        """Tell whether there is something to look at after a step."""
        return self._validate(step) or self._probe_now(step)

    def _probe_now(self, step: int) -> bool:
        return self._probe is not None and (step % self._probe_every == 0 or step == self._run.last_step)

    def _validate(self, step: int) -> bool:
        return self._validation is not None and (step % self._every == 0 or step == self._run.last_step)

    def figures(self, step: int) -> dict[str, float]:
        """Return what is found after a step; what is not finite is left out. All ranks must call it."""
        found: dict[str, float] = {}
        if self._validation and self._validate(step):
            at = Progress(step=step, schedule_steps=self._run.optim.schedule_steps)
            found |= self._validation.figures(at)
        if self._probe and self._probe_now(step):
            found |= self._probe.figures(self._engine)
        return {name: value for name, value in found.items() if math.isfinite(value)}
