"""SimCLR on views that a second network hides parts of, as badly for the encoder as it can.

Paper says (Bo et al. 2022, https://arxiv.org/abs/2211.07889, after Shi et al. 2022, https://arxiv.org/abs/2201.13100):
a U-Net of four down- and up-samplings emits N masks of a record (a softmax over the N; a sigmoid for N = 1, and for
N = 12, one mask a lead); one of them is drawn, softly binarised and applied; the encoder minimises the SimCLR loss at
temperature 0.1, and the masker maximises it, with a penalty that keeps masks from hiding nothing or everything; both
by Adam at 1e-4, one after the other in each batch.
Code says: what is hidden is x (1 - sigmoid(50 (m - 0.5))), on all leads; penalty alpha * sum_n 1 / sin(pi * ratio *
mean(m_n)), alpha 0.1 or 0.5 and ratio 0.8 or 1; one view is masked and augmented, the other left as it is.

Ours:
- Both views are masked, by two different masks of the N, each record drawing its own; `--objective.augmented one` is
  the code's way. The masker sees each view as it is before it is masked.
- The penalty is on the masks as emitted, all N of them, a record at a time: it is the drawn one alone that the paper
  binarises. `--objective.sparsity-of applied` takes them binarised; there a mask that hides nothing has a mean of
  nearly 0, where the penalty is steep and the sigmoid flat, and may not come back.
- The masker pays the penalty. "Maximises the loss plus a penalty" to the letter would reward it for hiding nothing, at
  which the penalty is infinite, so that this reading is not offered.
- Both networks move at once: one forward and backward pass in which the gradient's sign is reversed between masker and
  encoder (Ganin and Lempitsky 2015), and one AdamW in which the masker has settings of its own. In turns, the masker
  would answer to an encoder that is one step ahead, and each batch would take two passes; at learning rates of 1e-4
  that is a small difference in what is computed, and half the time.
- The number of masks, where the paper's is not known to us, and the masker's widths, a thirtieth of the code's.

`--optim.clip-norm` clips both gradients together.

Shapes: B windows, V views (one if both views would be the same signal), L leads, T samples, N masks, M views of all
windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ecgfm.data.augment.base import Augment
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel, view_panels
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.masker import Masker, reverse_gradient
from ecgfm.nn.norms import Norm
from ecgfm.objectives.base import Losses, Objective, OwnOptim, Progress
from ecgfm.objectives.simclr import SimCLR

SHARPNESS = 50.0
"""Of the soft binarisation."""
LEAST_SINE = 1e-6
"""The penalty's sine is held above this, where a mask that hides nothing would divide by 0."""


class AdvMask(SimCLR):
    """Find the other view of a window under masks that make it hard."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SimCLR.Config):
        """Settings of SimCLR with adversarial masks."""

        augment: Augment = field(default_factory=Augment)
        """What is done to the views before they are masked; nothing by default."""
        augmented: Literal["both", "one"] = "both"
        """Whether both views are masked (and augmented), or one of them is the window itself."""
        masks: int = 4
        """Masks of each record, of which one is drawn; they share out the record. With 1, or one for each lead, none is
        drawn: each hides what it will, that of a lead in its lead."""
        sparsity_weight: float = 0.1
        """What the penalty is multiplied by."""
        sparsity_ratio: float = 1.0
        """The penalty is least where a mask hides half of a record over this, and infinite where it hides none or all
        over this."""
        sparsity_of: Literal["emitted", "applied"] = "emitted"
        """Whether the penalty is on the masks as they are emitted or after their binarisation."""
        masker_widths: tuple[int, ...] = (16, 32, 48, 64)
        """Features of the masker's levels; each level halves the time."""
        masker_norm: Norm = "batch"
        """Of the masker's convolutions, as of an encoder's."""
        masker: OwnOptim = field(default_factory=OwnOptim)
        """The masker's own AdamW, whatever --optim says: at a constant rate, the paper's, by default."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.masks < 1:
                raise ConfigError(f"--objective.masks must be at least 1, got {self.masks}")
            if not self.masker_widths or min(self.masker_widths) < 1:
                raise ConfigError(f"--objective.masker-widths needs widths of at least 1, got {self.masker_widths}")
            if not 0.0 <= self.sparsity_weight < math.inf or not 0.0 < self.sparsity_ratio <= 1.0:
                raise ConfigError(
                    f"--objective.sparsity-weight {self.sparsity_weight} must be 0 or more, and "
                    f"--objective.sparsity-ratio {self.sparsity_ratio} above 0 and at most 1"
                )

    config: Config

    @classmethod
    def check(cls, config: Objective.Config, encoder: Encoder.Config, window_samples: int, rate_hz: float) -> None:
        """Refuse transforms that do not fit, and two views that would always be the same."""
        assert isinstance(config, AdvMask.Config)
        super().check(config, encoder, window_samples, rate_hz)
        if config.masks in (1, encoder.num_leads) and config.augmented == "both" and not config.augment.chosen():
            raise ConfigError(
                f"--objective.masks {config.masks} hides the same of both views, which nothing else tells apart: give "
                "--objective.augmented one, some --objective.augment.use, or another number of masks"
            )

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        leads = encoder.config.num_leads
        self.shared_out = config.masks not in (1, leads)
        self.masker = Masker(leads, config.masks, config.masker_widths, norm=config.masker_norm)

    def own_optim(self) -> tuple[tuple[nn.Module, OwnOptim], ...]:
        """Return the masker, with its settings."""
        return ((self.masker, self.config.masker),)

    def after_step(self, at: Progress) -> dict[str, float]:
        """Return the masker's learning rate of the step."""
        return {"masker_lr": self.config.masker.rate(at)}

    def views(self, batch: Batch, draws: Draws) -> Batch:
        """Make the two views, and draw which masks they get."""
        return replace(super().views(batch, draws), uniform_BR=draws.rows("masks", 2))

    @torch.no_grad()
    def picture(self, batch: Batch, draws: Draws) -> tuple[Panel, ...]:
        """Return each view that the masker looks at under all its masks, and the views as the encoder gets them."""
        seen = self.views(batch, draws)
        assert seen.views_BVLT is not None
        masked_BVLT, emitted_MNT, applied_BVNT = self._masks(seen)
        looked_at = len(emitted_MNT) // len(masked_BVLT)
        masks_BVNT = binarise(emitted_MNT).view(-1, looked_at, *emitted_MNT.shape[1:])
        panels = []
        for number, panel in enumerate(view_panels(seen.views_BVLT[:, :looked_at])):
            masks_BNT = masks_BVNT[:, number]
            regions = {"mask": masks_BNT}
            if self.shared_out:
                regions = {f"mask {mask + 1}": masks_BNT[:, mask, None] for mask in range(masks_BNT.shape[1])}
            title = f"masks of {panel.title if looked_at > 1 else 'the window'}"
            panels.append(replace(panel, title=title, regions=regions, masks=True))
        for number, panel in enumerate(view_panels(masked_BVLT)):
            hidden = {"hidden": applied_BVNT[:, number]} if number < applied_BVNT.shape[1] else {}
            panels.append(replace(panel, regions=hidden))
        return tuple(panels)

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """NT-Xent of the masked views, and the penalty of the masks.

        Args:
            batch: Normalised `views_BVLT`; `uniform_BR`, which draws the masks.
            at: Where the run stands.

        Returns:
            `loss`, the sum of `contrast`, whose gradient reaches the masker with the other sign, and of `sparsity`, the
            penalty, which reaches the masker alone; `hidden`, the share of the signal that is hidden; and what SimCLR
            returns. The sum is none that anybody minimises as a whole: watch `contrast`.
        """
        views_BVLT, emitted_MNT, applied_BVNT = self._masks(batch)
        losses = super().forward(replace(batch, views_BVLT=views_BVLT), at)
        sparsity = self.config.sparsity_weight * self._penalty(emitted_MNT)
        return {
            **losses,
            "loss": losses["loss"] + sparsity,
            "contrast": losses["loss"].detach(),
            "sparsity": sparsity.detach(),
            "hidden": applied_BVNT.detach().mean(),
        }

    def _masks(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the masked views, what the masker emits, in 0..1, and the masks that hide, (B, V, 1 or L, T)."""
        assert batch.views_BVLT is not None and batch.uniform_BR is not None
        views_BVLT = batch.views_BVLT
        masked = 2 if self.config.augmented == "both" else 1
        # Views that are the same signal are looked at once.
        looked_at = masked if self.config.augment.chosen() else 1
        values_MNT = self.masker(views_BVLT[:, :looked_at].flatten(0, 1))
        emitted_MNT = values_MNT.softmax(dim=1) if self.shared_out else values_MNT.sigmoid()
        emitted_BVNT = emitted_MNT.unflatten(0, (-1, looked_at)).expand(-1, masked, -1, -1)
        if self.shared_out:
            emitted_BVNT = self._drawn(emitted_BVNT, batch.uniform_BR)
        applied_BVNT = binarise(emitted_BVNT)
        kept_BVNT = 1.0 - reverse_gradient(applied_BVNT)
        hidden = views_BVLT[:, :masked] * kept_BVNT
        return torch.cat([hidden, views_BVLT[:, masked:]], dim=1), emitted_MNT, applied_BVNT

    def _drawn(self, emitted_BVNT: Tensor, uniform_BR: Tensor) -> Tensor:
        """Return one mask for each view, (B, V, 1, T), not the same for both views of a window."""
        masks = self.config.masks
        first_B = (uniform_BR[:, 0] * masks).long()
        second_B = (first_B + 1 + (uniform_BR[:, 1] * (masks - 1)).long()) % masks
        which_BV = torch.stack([first_B, second_B], dim=1)[:, : emitted_BVNT.shape[1]]
        index = which_BV[:, :, None, None].expand(-1, -1, 1, emitted_BVNT.shape[3])
        return emitted_BVNT.gather(2, index)

    def _penalty(self, emitted_MNT: Tensor) -> Tensor:
        """Return the sum over masks of 1 / sin(pi * ratio * mean), as a mean over records."""
        masks_MNT = binarise(emitted_MNT) if self.config.sparsity_of == "applied" else emitted_MNT
        sine_MN = (math.pi * self.config.sparsity_ratio * masks_MNT.mean(dim=2)).sin()
        return (1.0 / sine_MN.clamp(min=LEAST_SINE)).sum(dim=1).mean()


def binarise(mask: Tensor) -> Tensor:
    """Return values near 0 and 1 for those below and above a half."""
    return (SHARPNESS * (mask - 0.5)).sigmoid()
