"""Pretrain and use foundation models of the 12-lead electrocardiogram.

>>> from ecgfm import ECGEncoder
>>> encoder = ECGEncoder.from_pretrained("someone/ecg-jepa-vit-s")
>>> features = encoder.embed(signal, rate_hz=257, leads=["II", "I", ...], unit="uV")

Importing this package loads neither torch nor numpy; a name below does when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecgfm.hub.encoder import ECGEncoder as ECGEncoder

__version__ = "0.1.0"
__all__ = ["ECGEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "ECGEncoder":
        from ecgfm.hub.encoder import ECGEncoder

        return ECGEncoder
    raise AttributeError(f"module 'ecgfm' has no attribute {name!r}")
