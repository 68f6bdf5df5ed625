"""The 71 SCP-ECG statements of PTB-XL and the six tasks that its benchmark makes of them.

Source of `scp.csv`: `scp_statements.csv` of PTB-XL 1.0.3 (Wagner et al. 2020, https://doi.org/10.13026/kfzx-aw45,
CC BY 4.0). The tasks are those of Strodthoff et al. 2021, https://doi.org/10.1109/JBHI.2020.3022989: all 71
statements, the 44 diagnostic ones, these as 23 subclasses and as 5 superclasses, the 19 of form and the 12 of rhythm.
Four statements (NDT, NST_, DIG, LNGQT) are both diagnostic and of form. Every statement of a record counts, whatever
its likelihood, 0 as well.

The benchmark leaves a record out of a task when it has no label of the task, in training and in testing, as
`ecgfm.eval.tasks.ptb_xl` does. Here such a record has the scheme with no code in it; whoever wants the
benchmark's numbers leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from ecgfm.errors import ConfigError
from ecgfm.labels._tables import rows

TASKS: tuple[str, ...] = ("all", "diagnostic", "subdiagnostic", "superdiagnostic", "form", "rhythm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """One statement and the groups it is in."""

    code: str
    description: str
    diagnostic: bool
    form: bool
    rhythm: bool
    superclass: str
    """NORM, MI, STTC, CD or HYP; empty where it is not diagnostic."""
    subclass: str
    """One of 23, such as `_AVB`; empty where it is not diagnostic."""


@lru_cache(maxsize=1)
def statements() -> Mapping[str, Statement]:
    """Return all statements by code, in the published order."""
    found = (
        Statement(
            code=row["code"],
            description=row["description"],
            diagnostic=row["diagnostic"] == "1",
            form=row["form"] == "1",
            rhythm=row["rhythm"] == "1",
            superclass=row["class"],
            subclass=row["subclass"],
        )
        for row in rows("scp.csv")
    )
    return MappingProxyType({statement.code: statement for statement in found})


@lru_cache(maxsize=len(TASKS))
def task(name: str) -> Mapping[str, str]:
    """Return the label in a task of each statement that has one.

    Args:
        name: One of `TASKS`.

    Raises:
        ConfigError: There is no such task.
    """
    every = statements().values()
    if name == "all":
        found = {one.code: one.code for one in every}
    elif name == "diagnostic":
        found = {one.code: one.code for one in every if one.diagnostic}
    elif name == "subdiagnostic":
        found = {one.code: one.subclass for one in every if one.diagnostic}
    elif name == "superdiagnostic":
        found = {one.code: one.superclass for one in every if one.diagnostic}
    elif name == "form":
        found = {one.code: one.code for one in every if one.form}
    elif name == "rhythm":
        found = {one.code: one.code for one in every if one.rhythm}
    else:
        raise ConfigError(f"{name!r} is no task of PTB-XL; there are: {', '.join(TASKS)}")
    return MappingProxyType(found)


def task_labels(name: str) -> tuple[str, ...]:
    """Return the labels of a task, sorted; see `task`."""
    return tuple(sorted(set(task(name).values())))
