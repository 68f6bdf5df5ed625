"""Memory for batches, used again: what is fresh from the system is filled with zeros first, which costs half a copy."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

MOST_FREE = 8
"""Buffers that are kept while nobody uses them."""


class Buffers:
    """Hands out int16 tensors of one shape, whose memory comes back when nobody refers to it any more.

    Whoever keeps a batch, or a view of one, keeps its memory, and the next batch gets other memory: there is nothing to
    give back and no moment at which a tensor changes under its owner. A loop that lets each batch go uses a handful of
    buffers for ever. Any thread may take one.

    Page-locked memory is left to torch's allocator, which keeps it as this does, and does not hand it out again before
    the copies to the device that were begun from it have ended.

    Args:
        shape: Of a batch.
        pin_memory: Give page-locked memory.
    """

    def __init__(self, shape: tuple[int, ...], *, pin_memory: bool = False) -> None:
        self._shape = shape
        self._pin_memory = pin_memory
        self._free: deque[np.ndarray[tuple[int, ...], np.dtype[np.int16]]] = deque(maxlen=MOST_FREE)

    def take(self) -> Tensor:
        """Return a tensor that holds anything."""
        if self._pin_memory:
            return torch.empty(self._shape, dtype=torch.int16, pin_memory=True)
        try:
            buffer = self._free.pop()  # the one used last, which may be in a cache still
        except IndexError:
            buffer = np.empty(self._shape, dtype=np.int16)
        # The tensor and all its views hold this object, and end with it.
        lent = buffer.view()
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)
