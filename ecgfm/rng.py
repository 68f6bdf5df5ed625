"""Random numbers as a pure function of what they are for.

No global generator decides what a step sees. A draw is keyed by the run's seed, a word that names its
purpose, and integers (epoch, step, record), so that resuming, another number of workers or another
number of ranks changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Return the 63-bit seed of one purpose, the same on every machine.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, such as "order" or "masks".
        numbers: Epoch, step, record: whatever the draw depends on.
    """
    assert not purpose[-1:].isdigit(), f"{purpose!r} could be taken for a purpose and a number"
    words = " ".join([str(int(seed)), purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a NumPy generator of its own for one purpose; see `derive`."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *numbers)))
