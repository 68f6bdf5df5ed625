"""The loss of a classifier over what is known of its targets.

Shapes: B windows, C labels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Kind = Literal["multilabel", "multiclass", "regression"]


def loss_sum(kind: Kind, logits_BC: Tensor, target_BC: Tensor, scale_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of what is known, and how much that is.

    Binary cross-entropy over known cells; cross-entropy over records of a known class; squared error in units of the
    targets' standard deviation.

    Args:
        kind: Of the task.
        logits_BC: Float32.
        target_BC: 1, 0 or NaN; of a regression numbers or NaN.
        scale_C: Standard deviation of a regression's targets; the error is in their own unit without it.
    """
    known_BC = ~target_BC.isnan()
    filled_BC = target_BC.nan_to_num()
    if kind == "multiclass":
        known_B = known_BC.all(dim=1)
        each_B = -(logits_BC.log_softmax(dim=1) * filled_BC).sum(dim=1)
        return (each_B * known_B).sum(), known_B.sum()
    if kind == "multilabel":
        each_BC = nn.functional.binary_cross_entropy_with_logits(logits_BC, filled_BC, reduction="none")
    else:
        away_BC = logits_BC - filled_BC
        each_BC = (away_BC if scale_C is None else away_BC / scale_C).square()
    return (each_BC * known_BC).sum(), known_BC.sum()
