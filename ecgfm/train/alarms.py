"""When a run is not well: steps whose gradient is not finite, a collapsing encoder, a loss that jumps.

Every rank holds a `Watch` and shows it the same figures, so that all come to the same verdict without asking.
What it remembers is part of a checkpoint: a run that goes on raises its alarms in the steps in which one that
never stopped does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from ecgfm.errors import ConfigError, TrainingError

SPIKE_MEMORY = 21
"""Logged losses whose median is what a loss is compared with; below half as many there is no spike."""


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """When a run is not well. Alarms change no weight: they warn, and past a limit they end the run."""

    max_bad_steps: int = 10
    """Steps in a row with a loss or gradient that is not finite after which the run ends. Each is skipped on all
    ranks, and its records are written to bad_steps.jsonl."""
    rank_share: float = 0.2
    """Alarm when effective_rank (of tokens) or feature_rank (of pooled features) falls below this share of what it was
    at the end of the warm-up; 0 for never."""
    std_share: float = 0.2
    """Likewise for target_std (of tokens) and feature_std."""
    uniformity_share: float = 0.02
    """Likewise for uniformity, which is below 0 and goes to 0 in a collapse. Of few windows a rank it is noisy: that of
    8 changes tenfold from step to step."""
    entropy: tuple[float, float] = (0.02, 0.98)
    """Alarm after the warm-up when target_entropy or usage_entropy, of objectives with softmax targets, leaves these
    bounds: 0 is one class always. The upper one is for target_entropy only: codes may be used evenly. 0 1 for never."""
    spike: float = 3.0
    """Alarm when a logged loss is above so many times the median of the 21 before it."""
    stop_after: int | None = None
    """Logged steps in a row with an alarm after which the run ends; None warns only."""

    def __post_init__(self) -> None:
        if self.max_bad_steps < 1:
            raise ConfigError(f"--alarms.max-bad-steps must be at least 1, got {self.max_bad_steps}")
        for name in ("rank_share", "std_share", "uniformity_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--alarms.{name.replace('_', '-')} must be in 0..1, got {getattr(self, name)}")
        if not 0 <= self.entropy[0] < self.entropy[1] <= 1:
            low, high = self.entropy
            raise ConfigError(f"--alarms.entropy needs 0 <= low < high <= 1, got {low} {high}")
        if not self.spike > 1:
            raise ConfigError(f"--alarms.spike must be above 1, got {self.spike}")
        if self.stop_after is not None and self.stop_after < 1:
            raise ConfigError(f"--alarms.stop-after must be at least 1, got {self.stop_after}")


@dataclass(kw_only=True)
class Memory:
    """What a `Watch` knows of the steps before."""

    skipped: int = 0
    """Bad steps of the whole run."""
    bad_in_row: int = 0
    first_bad: str = ""
    """Where the present row of bad steps began, for the error."""
    reference: dict[str, float] = field(default_factory=dict)
    """Figures at the end of the warm-up."""
    losses: list[float] = field(default_factory=list)
    alarmed_in_row: int = 0


class Watch:
    """Looks at every step of a run.

    Args:
        config: The thresholds.
        warmup_steps: Finished steps from which on the figures are those of a run that is under way.
        memory: Of the checkpoint that the run goes on from.
    """

    def __init__(self, config: Alarms, warmup_steps: int, memory: Mapping[str, Any]) -> None:
        self.config = config
        self.warmup_steps = warmup_steps
        self._memory = Memory(**memory)

    @property
    def skipped(self) -> int:
        """Bad steps of the whole run."""
        return self._memory.skipped

    @property
    def alarmed(self) -> bool:
        """Whether the last logged step had an alarm."""
        return self._memory.alarmed_in_row > 0

    def memory(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return asdict(self._memory)

    def good_step(self) -> None:
        """Note a step whose gradient was finite."""
        self._memory.bad_in_row = 0

    def bad_step(self, step: int, record: str) -> TrainingError | None:
        """Note a step that was skipped.

        Args:
            step: Its number, as finished steps.
            record: The first of its records, in words.

        Returns:
            Why the run must end, when there were too many in a row.
        """
        memory = self._memory
        if not memory.bad_in_row:
            memory.first_bad = f"step {step}, {record}"
        memory.skipped += 1
        memory.bad_in_row += 1
        if memory.bad_in_row < self.config.max_bad_steps:
            return None
        return TrainingError(
            f"the loss or the gradient of {memory.bad_in_row} steps in a row is not finite (--alarms.max-bad-steps "
            f"{self.config.max_bad_steps}), first that of {memory.first_bad}; bad_steps.jsonl has all records. Where "
            "these are sound the run has diverged: lower --optim.lr or set --optim.clip-norm, in a new run"
        )

    def alarms(self, step: int, figures: Mapping[str, float]) -> tuple[str, ...]:
        """Return what is wrong at a logged step, each with the figures that say so.

        Args:
            step: Finished steps.
            figures: Of them `loss` and the figures of collapse are looked at, where they are there and finite.
        """
        memory, config, found = self._memory, self.config, []
        if step >= self.warmup_steps:
            found += self._collapse(figures)
            found += self._entropy(figures)
        loss = figures.get("loss", math.nan)
        if math.isfinite(loss):
            usual = median(memory.losses) if len(memory.losses) > SPIKE_MEMORY // 2 else math.inf
            # Of a loss that may be negative, such as a similarity, a multiple says nothing.
            if usual > 0 and loss > config.spike * usual:
                found.append(f"spike: loss {loss:.3g}, usually {usual:.3g}")
            memory.losses = [*memory.losses, loss][-SPIKE_MEMORY:]
        memory.alarmed_in_row = memory.alarmed_in_row + 1 if found else 0
        return tuple(found)

    def _collapse(self, figures: Mapping[str, float]) -> list[str]:
        config, reference, found = self.config, self._memory.reference, []
        shares = {
            "effective_rank": config.rank_share,
            "feature_rank": config.rank_share,
            "target_std": config.std_share,
            "feature_std": config.std_share,
            "uniformity": config.uniformity_share,
        }
        for name, share in shares.items():
            value = figures.get(name, math.nan)
            if not math.isfinite(value):
                continue
            before = reference.setdefault(name, value)
            # All of them are nearer 0 the worse it is; only uniformity is below it.
            if abs(value) < share * abs(before):
                found.append(f"collapse: {name} {value:.3g}, {before:.3g} at the end of the warm-up")
        return found

    def _entropy(self, figures: Mapping[str, float]) -> list[str]:
        low, high = self.config.entropy
        found = []
        for name in ("target_entropy", "usage_entropy"):
            value = figures.get(name, math.nan)
            if value < low:
                found.append(f"collapse: {name} {value:.3g} of an even one's, one class takes all")
            if value > high and name == "target_entropy":
                found.append(f"collapse: {name} {value:.3g} of an even one's, no target prefers any class")
        return found

    def verdict(self, alarms: tuple[str, ...]) -> TrainingError | None:
        """Return why the run must end, when there were alarms for too long; `alarms` are the last step's."""
        limit = self.config.stop_after
        if limit is None or self._memory.alarmed_in_row < limit:
            return None
        return TrainingError(
            f"{'; '.join(alarms)}: in alarm for {self._memory.alarmed_in_row} logged steps (--alarms.stop-after "
            f"{limit}). The checkpoints before are whole; begin again with another --optim.lr or objective, or drop "
            "--alarms.stop-after to go on"
        )
