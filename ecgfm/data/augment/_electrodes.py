"""What reaches all twelve leads from eight: III and the augmented leads follow from I and II.

Shapes: L leads, E independent leads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecgfm.leads import DERIVED, LEADS

INDEPENDENT: tuple[str, ...] = tuple(lead for lead in LEADS if lead not in DERIVED)
"""I, II, V1 to V6."""


def leads_from_independent() -> Tensor:
    """Return weights_LE, float64: each of the twelve leads as a sum of the eight independent ones."""
    weights_LE = torch.zeros(len(LEADS), len(INDEPENDENT), dtype=torch.float64)
    for row, lead in enumerate(LEADS):
        for source, weight in zip(("I", "II"), DERIVED[lead]) if lead in DERIVED else ((lead, 1.0),):
            weights_LE[row, INDEPENDENT.index(source)] = weight
    return weights_LE
