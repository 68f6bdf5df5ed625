"""What a picture of an objective shows: signals of a window, what is marked in them, and what was made of them.

Shapes: B windows, V views, L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One signal of each window."""

    title: str
    signal_BLT: Tensor
    """Normalised, as a network gets it."""
    start_B: Tensor | None = None
    """int64: the sample of the window that it begins at; its first one when left out."""
    regions: dict[str, Tensor] = field(default_factory=dict)
    """What is marked, by its name: bool, or 0..1 where it is marked in part; (B, L, T), or (B, 1, T) for all leads."""
    masks: bool = False
    """Whether the regions are masks over a signal that is drawn without them: a picture then tells how much of the QRS
    complexes they hide."""
    guess_BLT: Tensor | None = None
    """What the signal was guessed to be, normalised; NaN where nothing was guessed."""
    notes: tuple[str, ...] = ()
    """What there is to say of each window."""
    alone: bool = False
    """Drawn over its own time, and not at its place in the whole window's."""


def view_panels(
    views_BVLT: Tensor,
    *,
    title: str = "view",
    notes_V: Sequence[tuple[str, ...]] = (),
    start_BV: Tensor | None = None,
) -> tuple[Panel, ...]:
    """Return a panel for each of the views, numbered from 1.

    Args:
        views_BVLT: Normalised.
        title: Before the number.
        notes_V: Of each view what there is to say of each window; nothing by default.
        start_BV: The sample of the window that a view begins at; its first one by default.
    """
    return tuple(
        Panel(
            title=f"{title} {number + 1}",
            signal_BLT=view_BLT,
            notes=notes_V[number] if notes_V else (),
            start_B=None if start_BV is None else start_BV[:, number],
        )
        for number, view_BLT in enumerate(views_BVLT.unbind(1))
    )
