"""Every error that a user can cause, one class for each kind of thing at fault.

A message says what was wrong, the value, the record or flag, and the fix. Command lines print the
message alone; a traceback means that the fault is ours.
"""

from __future__ import annotations


class EcgfmError(Exception):
    """Base of all errors that are the user's to mend."""


class ConfigError(EcgfmError, ValueError):
    """A setting, or a pair of settings, that cannot work."""


class LeadError(EcgfmError, ValueError):
    """Lead names that are unknown, doubled, missing, or cannot be derived."""


class SignalError(EcgfmError, ValueError):
    """An array that is not the ECG it is said to be (shape, unit, rate, content)."""


class ContractError(EcgfmError, ValueError):
    """A published encoder whose files or signal contract cannot be honoured."""


class DatabaseError(EcgfmError):
    """A database folder that is missing, empty, unreadable, or not the one named."""


class ShardError(EcgfmError):
    """Shards or a manifest that are damaged, foreign, or cannot be written."""


class CheckpointError(EcgfmError):
    """A run folder or checkpoint that cannot be written, read, or continued."""


class TrainingError(EcgfmError):
    """A run that trained and must not go on: its loss is not finite, or its encoder has collapsed."""


class RankError(EcgfmError):
    """A rank that ended, died, or hangs, as the others see it."""


class RecordError(EcgfmError, ValueError):
    """One record that is refused. The conversion goes on and counts it.

    Args:
        reason: Short stable word for tables and `refused.jsonl`, such as `lead-flat`.
        message: What was wrong, with the value and, where there is one, the fix.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str]]:
        # Exception's own pickling would call the class with the message alone, and lose the reason
        # on the way back from a worker process.
        return RecordError, (self.reason, self.message)
