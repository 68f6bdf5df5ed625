"""Pretrain and use foundation models of the 12-lead electrocardiogram.

>>> from ecgfm import ECGEncoder
>>> encoder = ECGEncoder.from_pretrained("someone/ecg-jepa-vit-s")
>>> features = encoder.embed(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

Importing this package loads neither torch nor numpy; a name below does when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfm.hub.classifier import ECGClassifier as ECGClassifier
    from ecgfm.hub.datasets import ECGDataset as ECGDataset
    from ecgfm.hub.encoder import ECGEncoder as ECGEncoder
    from ecgfm.hub.preprocessor import ECGPreprocessor as ECGPreprocessor
    from ecgfm.hub.sklearn import ECGFeatures as ECGFeatures

__version__ = "0.1.0"
_HOMES = {
    "ECGClassifier": "ecgfm.hub.classifier",
    "ECGDataset": "ecgfm.hub.datasets",
    "ECGEncoder": "ecgfm.hub.encoder",
    "ECGFeatures": "ecgfm.hub.sklearn",
    "ECGPreprocessor": "ecgfm.hub.preprocessor",
}
__all__ = ["ECGClassifier", "ECGDataset", "ECGEncoder", "ECGFeatures", "ECGPreprocessor", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ecgfm' has no attribute {name!r}")
