"""The order of records as a pure function of (seed, position).

A run sees positions 0, 1, 2, ...; epoch e is positions [e * N, (e + 1) * N), a permutation of all N
records. So shuffling is global, a resumed run needs one number, and neither the number of ranks nor that
of workers changes what is seen.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfm.rng import generator

_PIECE = 10_000
_ORDERS = 16
"""Of databases, of some of which a run holds two epochs."""
_EPOCHS = 2
_Drawn = TypeVar("_Drawn")


def order(seed: int, num_records: int, first: int, last: int, purpose: str = "order") -> NDArray[np.int64]:
    """Return the records at positions [first, last), each 0 .. num_records - 1; another purpose is another order."""
    position = np.arange(first, last, dtype=np.int64)
    epoch, place = np.divmod(position, num_records)
    out = np.empty_like(position)
    for number in np.unique(epoch):
        here = epoch == number
        out[here] = _permutation(seed, purpose, int(number), num_records)[place[here]]
    return out


def window_starts(seed: int, first: int, last: int, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the window at each position begins, uniform in 0 .. room.

    Args:
        seed: The run's seed.
        first: First position.
        last: One past the last.
        room: Shape (last - first,): samples of the record less those of the window.
    """
    # One counter-based stream with a number for each position: any range of it costs the same.
    uniform = _uniform(seed, first, last)
    return np.minimum((uniform * (room + 1)).astype(np.int64), room)


def window_starts_at(seed: int, positions: NDArray[np.int64], room: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the windows at some positions, ascending, begin: as `window_starts` does for a range of them."""
    out = np.empty_like(room)
    # In pieces, so that far positions cost nothing for what lies between.
    edges = np.flatnonzero(np.diff(positions // _PIECE, prepend=-1))
    for first, last in zip(edges, [*edges[1:], len(positions)]):
        uniform = _uniform(seed, int(positions[first]), int(positions[last - 1]) + 1)
        here = slice(first, last)
        most = room[here]
        out[here] = np.minimum((uniform[positions[here] - positions[first]] * (most + 1)).astype(np.int64), most)
    return out


def _uniform(seed: int, first: int, last: int) -> NDArray[np.float64]:
    """Return numbers `first` to `last` of an endless stream of uniform numbers."""
    stream = generator(seed, "window starts")
    # Philox gives four 64-bit numbers a counter step, and `random` uses one for each double.
    stream.bit_generator.advance(first // 4)  # type: ignore[attr-defined]
    return stream.random(last - 4 * (first // 4))[first % 4 :]


class Epochs(Generic[_Drawn]):
    """Keeps what was drawn for the last two epochs of each of some orders, and no more however long a run is.

    At a record of four bytes and 200 million records an epoch is 0.8 GB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: OrderedDict[Hashable, dict[int, _Drawn]] = OrderedDict()

    def get(self, order: Hashable, epoch: int, draw: Callable[[], _Drawn]) -> _Drawn:
        """Return what `draw` gives for an epoch of an order; it is called once when several threads ask."""
        with self._lock:
            kept = self._orders.setdefault(order, {})
            self._orders.move_to_end(order)
            if len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
            if epoch not in kept:
                while len(kept) >= _EPOCHS:
                    kept.pop(min(kept))
                kept[epoch] = draw()
            return kept[epoch]


_permutations: Epochs[NDArray[np.signedinteger]] = Epochs()


def _permutation(seed: int, purpose: str, epoch: int, num_records: int) -> NDArray[np.signedinteger]:
    def draw() -> NDArray[np.signedinteger]:
        # Shuffled it is the same in either type: half the memory, as long as the numbers fit.
        small = num_records < 2**31
        drawn: NDArray[np.signedinteger] = np.arange(num_records).astype(np.int32 if small else np.int64, copy=False)
        generator(seed, purpose, epoch).shuffle(drawn)
        return drawn

    return _permutations.get((seed, purpose, num_records), epoch, draw)
