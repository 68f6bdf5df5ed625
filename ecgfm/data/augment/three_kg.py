"""3KG: turn and scale the heart's vector, and look at it again through the twelve leads.

Gopal et al. 2021, https://arxiv.org/abs/2106.04452: the leads I, II, V1 to V6 give the vectorcardiogram (the inverse
Dower matrix), which is rotated by Euler angles uniform in +-45 degrees and scaled along each axis by factors uniform
in 1-1.5; Dower's matrix gives back the eight leads, and these the other four. As in Bo et al. 2022's code, rotations
are about the fixed axes z, then y, then x, and the scaling comes after them.

The inverse is the pseudo-inverse of Dower's matrix, which the published inverse is to its three digits. So with
angles of 0 and scales of 1 the eight leads are projected onto what one dipole can show, orthogonally, and what
the dipole cannot explain is lost in any case.

All of it is one matrix for each row over millivolt, into which the normalisation is folded: per-lead factors
and matrices over leads do not commute. Where the signal was clipped, its clipped value is what is turned.

Shapes: B windows, L leads (12), E independent leads (8), T samples; 3 axes X, Y, Z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ecgfm.data.augment._electrodes import INDEPENDENT, leads_from_independent
from ecgfm.data.augment.base import Augmentation, View, check_positive
from ecgfm.databases._synthetic_dipole import DOWER_L3, INDEPENDENT_LEADS
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS


class ThreeKG(Augmentation):
    """Rotates and scales the vectorcardiogram."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Augmentation.Config):
        """Settings of the rotation and scaling."""

        angle_deg: float = 45.0
        """Largest rotation about each axis, either way."""
        scale: tuple[float, float] = (1.0, 1.5)
        """Bounds of the factor along each axis."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_positive(self, "angle_deg")
            check_positive(self, "scale")

    config: Config
    to_leads_L3: Tensor
    to_vector_3L: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        assert INDEPENDENT == INDEPENDENT_LEADS
        to_vector_3L = torch.zeros(3, len(LEADS), dtype=torch.float64)
        to_vector_3L[:, [LEADS.index(lead) for lead in INDEPENDENT]] = torch.from_numpy(np.linalg.pinv(DOWER_L3))
        self.register_buffer("to_leads_L3", leads_from_independent() @ torch.from_numpy(DOWER_L3), persistent=False)
        self.register_buffer("to_vector_3L", to_vector_3L, persistent=False)

    @classmethod
    def check(cls, config: Augmentation.Config, num_leads: int, samples: int, rate_hz: float) -> None:
        """Refuse other than the twelve leads."""
        if num_leads != len(LEADS):
            raise ConfigError(f"three_kg needs the 12 standard leads in their order, got {num_leads}; leave it out")

    def change(self, signal_BLT: Tensor, view: View) -> Tensor:
        """Return the leads of the turned and scaled vector."""
        self.check(self.config, signal_BLT.shape[1], signal_BLT.shape[2], view.rate_hz)
        angle_deg_B3 = view.between("angles", (-self.config.angle_deg, self.config.angle_deg), 3)
        scale_B31 = view.between("scales", self.config.scale, 3, 1)
        turned_B33 = scale_B31 * rotations(angle_deg_B3.deg2rad())
        mixing_BLL = self.to_leads_L3 @ turned_B33 @ self.to_vector_3L
        mean_mv_BL1, std_mv_BL1 = view.mean_mv_BL.double()[:, :, None], view.std_mv_BL.double()[:, :, None]
        mixing_BLL_normalised = mixing_BLL * std_mv_BL1.mT / std_mv_BL1
        shift_BL1 = (mixing_BLL @ mean_mv_BL1 - mean_mv_BL1) / std_mv_BL1
        return torch.baddbmm(shift_BL1.float(), mixing_BLL_normalised.float(), signal_BLT)


def rotations(angle_B3: Tensor) -> Tensor:
    """Return rotation_B33: about z by the first angle, then y by the second, then x by the third, in radians."""
    cos_B3, sin_B3 = angle_B3.cos(), angle_B3.sin()
    total_B33 = torch.eye(3, dtype=angle_B3.dtype, device=angle_B3.device).expand(len(angle_B3), 3, 3)
    for number, (first, second) in enumerate(((0, 1), (2, 0), (1, 2))):
        one_B33 = torch.eye(3, dtype=angle_B3.dtype, device=angle_B3.device).repeat(len(angle_B3), 1, 1)
        one_B33[:, first, first] = one_B33[:, second, second] = cos_B3[:, number]
        one_B33[:, first, second], one_B33[:, second, first] = -sin_B3[:, number], sin_B3[:, number]
        total_B33 = one_B33 @ total_B33
    return total_B33
