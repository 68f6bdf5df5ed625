"""Figures of each database by itself, exact over micro-batches, chunks and ranks that hold uneven parts of them.

What is logged is a mean over ranks and windows of scalars that each rank has. The mean over the windows of one database
is none, but it is the quotient of two: of what those windows have, with 0 for the others, and of their share. Both are
handed on, the second one under a name that `settled` knows; so no rank has to ask another one, and no device is waited
for.

Shapes: B windows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.data.batch import Batch
from ecgfm.objectives.base import Losses

OVER = " over"
"""Ends the name of what a figure is to be divided by."""


@torch.no_grad()
def by_database(name: str, value_B: Tensor, batch: Batch) -> Losses:
    """Return a figure of each window as those of the databases, `name.database`; `settled` makes means of them.

    Names do not depend on what the batch holds: every rank has all databases of the run.

    Args:
        name: The figure's.
        value_B: Of each window.
        batch: With `databases`; without, nothing is returned.
    """
    found = {}
    for database in dict.fromkeys(batch.databases):
        folders = [number for number, here in enumerate(batch.databases) if here == database]
        here_B = torch.isin(batch.database_B, torch.tensor(folders, device=value_B.device))
        found[f"{name}.{database}"] = torch.where(here_B, value_B, 0.0).mean()
        found[f"{name}.{database}{OVER}"] = here_B.float().mean()
    return found


def settled(figures: dict[str, float]) -> dict[str, float]:
    """Return means over all ranks with those of databases divided, and without those of databases without windows."""
    over = {name.removesuffix(OVER): share for name, share in figures.items() if name.endswith(OVER)}
    return {
        name: value / over[name] if name in over else value
        for name, value in figures.items()
        if not name.endswith(OVER) and over.get(name, 1.0)
    }
