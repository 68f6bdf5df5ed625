"""An encoder as a scikit-learn transformer.

    model = make_pipeline(ECGFeatures("someone/ecg-jepa-vit-s"), StandardScaler(), LogisticRegression())
    model.fit(signals_RLT, labels)

The encoder is frozen: `fit` loads it and learns nothing, so that no fold of a cross-validation sees another.

Shapes: R records, L leads, T samples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ConfigError
from ecgfm.hub.encoder import ECGEncoder, to_device
from ecgfm.hub.recordings import Signal

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as missing:
    raise ConfigError("ECGFeatures needs scikit-learn: pip install scikit-learn") from missing

if TYPE_CHECKING:
    from sklearn.utils import Tags


class ECGFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Recordings to features of a pretrained encoder.

    What a signal is, is said here once and holds for all that are transformed. What is left out is the signal
    contract's: then signals must be in millivolt, at the contract's rate, with its leads in its order.

    Args:
        encoder: A folder, `owner/name` on the Hub, or an `ECGEncoder`.
        rate_hz: Sampling rate of the signals.
        leads: Their lead names, in any order and case.
        unit: mV, uV or V.
        batch_size: Windows that the encoder takes at a time.
        device: Where it computes, such as cpu or cuda; by default where the encoder is.
        revision: Branch, tag or commit on the Hub.
    """

    encoder_: ECGEncoder
    """After `fit`."""

    def __init__(
        self,
        encoder: str | Path | ECGEncoder,
        *,
        rate_hz: float | None = None,
        leads: Sequence[str] | None = None,
        unit: str = "mV",
        batch_size: int = 64,
        device: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.rate_hz = rate_hz
        self.leads = leads
        self.unit = unit
        self.batch_size = batch_size
        self.device = device
        self.revision = revision

    def fit(self, X: Signal | None = None, y: Any = None) -> Self:
        """Load the encoder; neither signals nor labels are looked at.

        Raises:
            ContractError: The encoder cannot be loaded.
        """
        if isinstance(self.encoder, ECGEncoder):
            self.encoder_ = self.encoder if self.device is None else to_device(self.encoder, self.device)
        else:
            self.encoder_ = ECGEncoder.from_pretrained(
                self.encoder, revision=self.revision, map_location=self.device or "cpu"
            )
        return self

    def transform(self, X: Signal) -> NDArray[np.float32]:
        """Return features_RD.

        Args:
            X: (R, L, T), or a list of (L, T) of any lengths.

        Raises:
            LeadError: As `ECGEncoder.embed`.
            SignalError: As `ECGEncoder.embed`.
        """
        check_is_fitted(self)
        contract = self.encoder_.signal
        features_RD = self.encoder_.embed(
            X,
            rate_hz=contract.rate_hz if self.rate_hz is None else self.rate_hz,
            leads=contract.leads if self.leads is None else self.leads,
            unit=self.unit,
            batch_size=self.batch_size,
        )
        return np.asarray(features_RD.cpu().numpy(), dtype=np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return a name for each feature, `ecg0` and on."""
        check_is_fitted(self)
        return np.asarray([f"ecg{number}" for number in range(self.encoder_.encoder.config.width)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags
