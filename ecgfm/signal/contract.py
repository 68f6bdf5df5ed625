"""The signal contract: what a signal must be before an encoder sees it.

It is fixed when pretraining starts, travels with every checkpoint, and is applied by the published
encoder itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS

LEAST_STD_MV = 0.005
"""What a window's own standard deviation is at the least: a lead that is quieter than 5 microvolt is flat, and its
noise shall not be blown up to a signal."""


@dataclass(frozen=True, kw_only=True)
class SignalContract:
    """Rate, leads, unit, filter, scale and length of the encoder's input."""

    rate_hz: float
    """Samples per second."""
    leads: tuple[str, ...] = LEADS
    """Lead names in the order of the encoder's input."""
    unit: Literal["mV"] = "mV"
    """Unit of `mean_mv` and `std_mv`, and of the signal before normalisation."""
    highpass_hz: float | None = None
    """Corner of the zero-phase high-pass filter that comes before resampling, as `ecgfm.signal.highpass` has it."""
    scale: Literal["fixed", "record"] = "fixed"
    """Fixed: (signal - mean_mv) / std_mv. Record: in their place stand the mean and the standard deviation (over T, at
    least 0.005 mV) of each lead of the very window that the encoder is given."""
    mean_mv: tuple[float, ...]
    """Per lead, of the signals in pretraining."""
    std_mv: tuple[float, ...]
    """Per lead, likewise."""
    clip: float = 5.0
    """Normalised values are clipped to plus and minus this."""
    window_samples: int
    """Length of the windows seen in pretraining."""

    def __post_init__(self) -> None:
        if not len(self.leads) == len(self.mean_mv) == len(self.std_mv):
            raise ConfigError(
                f"signal: {len(self.leads)} leads, {len(self.mean_mv)} means and {len(self.std_mv)} standard deviations"
            )
        if self.highpass_hz is not None and not 0 < self.highpass_hz < self.rate_hz / 2:
            raise ConfigError(f"signal: highpass_hz {self.highpass_hz:g} must be above 0 and below half the rate")
        if min(self.std_mv) <= 0 or self.rate_hz <= 0 or self.window_samples <= 0 or self.clip <= 0:
            raise ConfigError("signal: std_mv, rate_hz, window_samples and clip must be above 0")
