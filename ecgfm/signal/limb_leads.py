"""Do the six limb leads fit together, and if not, does another naming of them?

Three electrodes give six leads, so four identities hold at every sample (Einthoven, Goldberger):
I - II + III = 0, aVR + (I + II) / 2 = 0, aVL - (I - III) / 2 = 0, aVF - (II + III) / 2 = 0. They say whether
the names, signs and gains of the limb leads are right: LUDB's headers scale each lead by itself, MIMIC-IV-ECG
stores aVF before aVL. What they cannot see: electrodes that were exchanged on the patient (the six leads fit together
all the same), and the chest leads.

How far an identity is missed is a root mean square over time about the mean: baselines may differ.

Shapes: T samples, P permutations, S patterns of signs; 6 limb leads, 4 identities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from ecgfm.leads import LEADS

LIMB_LEADS = LEADS[:6]
IDENTITIES = np.array(
    [
        [1.0, -1.0, 1.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 1.0, 0.0, 0.0],
        [-0.5, 0.0, 0.5, 0.0, 1.0, 0.0],
        [0.0, -0.5, -0.5, 0.0, 0.0, 1.0],
    ]
)
"""Weights of I, II, III, aVR, aVL, aVF; each row gives 0."""
BLAMED: tuple[tuple[str, ...], ...] = (("I", "II", "III"), ("aVR",), ("aVL",), ("aVF",))
"""Which leads are named when an identity is missed."""


@dataclass(frozen=True)
class LimbLeads:
    """Leads that miss an identity, and the naming that would mend it."""

    disagree: tuple[str, ...] = ()
    swap: dict[str, str] = field(default_factory=dict)
    """What each misnamed lead really is: {"aVL": "aVF", "aVF": "aVL"}, or {"aVR": "-aVR"} for an inverted lead."""


def limb_leads(
    counts_6T: NDArray[np.int16],
    values_6T: NDArray[np.float64],
    *,
    largest: int,
    tolerance: float,
    share: float,
    any_flat: bool,
) -> LimbLeads:
    """Return how the limb leads of a segment fit together.

    Args:
        counts_6T: I, II, III, aVR, aVL, aVF.
        values_6T: The same as float64.
        largest: Largest count, either side of 0.
        tolerance: Counts, root mean square, that an identity may be missed by.
        share: The same as a share of the leads' own root mean square; the larger of the two holds.
        any_flat: A lead is flat: then another naming says nothing.
    """
    if _within(counts_6T, largest, tolerance):
        return LimbLeads()
    covariance = _covariance(values_6T)
    allowed = max(tolerance, share * float(np.sqrt(np.trace(covariance) / 6.0)))
    missed = np.sqrt(np.maximum(np.einsum("ki,ij,kj->k", IDENTITIES, covariance, IDENTITIES), 0.0))
    blamed = {lead for leads, by in zip(BLAMED, missed, strict=True) if by > allowed for lead in leads}
    if not blamed:
        return LimbLeads()
    return LimbLeads(
        disagree=tuple(lead for lead in LIMB_LEADS if lead in blamed),
        swap={} if any_flat else _other_naming(covariance, allowed),
    )


def _within(counts_6T: NDArray[np.int16], largest: int, tolerance: float) -> bool:
    """Say whether every sample fits within the tolerance, which most records do: three times faster than sums.

    In int16 as the counts are, all doubled, which is exact while six times the largest count fits; False where it
    does not.
    """
    if 6 * largest > np.iinfo(np.int16).max:
        return False
    one, two, three = counts_6T[:3]
    missed_4T = np.empty((4, counts_6T.shape[1]), dtype=np.int16)
    einthoven, right, left, foot = missed_4T
    np.subtract(one, two, out=einthoven)
    einthoven += three
    einthoven += einthoven
    np.add(counts_6T[3:], counts_6T[3:], out=missed_4T[1:])
    right += one
    right += two
    left -= one
    left += three
    foot -= two
    foot -= three
    return max(int(missed_4T.max()), -int(missed_4T.min())) <= 2.0 * tolerance


def _covariance(values_6T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of the leads, shape (6, 6), in squared counts."""
    samples = values_6T.shape[1]
    mean_6 = values_6T.sum(axis=1) / samples
    return np.asarray(values_6T @ values_6T.T / samples - np.outer(mean_6, mean_6))


def _other_naming(covariance: NDArray[np.float64], allowed: float) -> dict[str, str]:
    """Return the naming that moves and inverts the fewest leads and meets the identities, or nothing."""
    order_P6, sign_S6, changes_PS, weight_KS = _namings()
    # The four squared misses, summed, of a naming (order p, signs s): sum_ij s_i s_j Q_ij C[p_i, p_j].
    terms_PK = covariance[order_P6[:, :, None], order_P6[:, None, :]].reshape(len(order_P6), -1)
    fits_PS = terms_PK @ weight_KS <= (0.5 * allowed) ** 2
    if not fits_PS.any():
        return {}
    order, sign = np.unravel_index(int(np.where(fits_PS, changes_PS, 99).argmin()), fits_PS.shape)
    real: dict[str, str] = {}
    for lead, (source, factor) in enumerate(zip(order_P6[order], sign_S6[sign], strict=True)):
        if source != lead or factor < 0:
            real[LIMB_LEADS[source]] = ("-" if factor < 0 else "") + LIMB_LEADS[lead]
    return {lead: real[lead] for lead in LIMB_LEADS if lead in real}


@lru_cache(maxsize=1)
def _namings() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the orders (P, 6), signs (S, 6), how many leads each changes (P, S), and the weights (36, S)."""
    order_P6 = np.array(list(permutations(range(6))), dtype=np.int64)
    sign_S6 = np.array(list(product((1.0, -1.0), repeat=6)))
    moved_P = (order_P6 != np.arange(6)).sum(axis=1)
    changes_PS = moved_P[:, None] + (sign_S6 < 0).sum(axis=1)[None, :]
    form = IDENTITIES.T @ IDENTITIES
    weight_S66 = sign_S6[:, :, None] * sign_S6[:, None, :] * form
    return order_P6, sign_S6, changes_PS, np.ascontiguousarray(weight_S66.reshape(len(sign_S6), -1).T)
