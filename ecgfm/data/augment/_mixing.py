"""Mixtures of two rows. Rows 2 i and 2 i + 1 of a step are each other's partners.

A partner in another rank would have to be sent, and a random one in the same rank would depend on the number of
ranks. Neighbours are in the same micro-batch as long as that has an even number of rows, and which windows are
neighbours is random anyway: the order of the epoch is.

Shapes: B windows, L leads, T samples, C labels.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from ecgfm.data.augment.base import Augmentation, View, both
from ecgfm.errors import ConfigError


class Mixing(Augmentation):
    """Replaces a part of each row by its partner's; the labels follow in the same share."""

    def follow(self, labels_BC: Tensor, view: View, rows_B: Tensor | None = None) -> Tensor:
        """Return own share times own labels plus the rest times the partner's, in the changed rows.

        Raises:
            ConfigError: The micro-batch has rows without a partner.
        """
        if self.config.p == 0.0:
            return labels_BC
        changed_B = both(rows_B, self.rows(view))
        own_B1 = self.own_share(view)[:, None].to(labels_BC.dtype)
        mixed_BC = torch.lerp(partners(labels_BC, view), labels_BC, own_B1)
        return mixed_BC if changed_B is None else torch.where(changed_B[:, None], mixed_BC, labels_BC)

    @abc.abstractmethod
    def own_share(self, view: View) -> Tensor:
        """Return the share that a row keeps of itself where it is changed, shape (B,), float64."""


def partners(values_B: Tensor, view: View) -> Tensor:
    """Return each row's partner, shape as `values_B`.

    Raises:
        ConfigError: The micro-batch has rows without a partner.
    """
    first, rows = view.draws.first_row, len(values_B)
    if rows % 2 or first % 2:
        raise ConfigError(
            f"mixup and cutmix pair neighbouring rows, and a micro-batch of {rows} rows from row {first} on leaves one "
            "alone; choose a batch size that gives each rank an even number of rows in each micro-batch"
        )
    return values_B.reshape(rows // 2, 2, *values_B.shape[1:]).flip(1).flatten(0, 1)
