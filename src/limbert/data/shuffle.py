"""A random order of any number of rows that takes no memory: each place is computed when it is asked for."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from limbert.data.draws import mixed

_ROUNDS = 4


class Shuffle:
    """A permutation of ``0 .. count-1``: a Feistel network over the next power of four, walked until it falls inside.

    (J. Black, P. Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002.) The same seed gives the same order.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self._half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self._keys = np.random.default_rng([seed, count]).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The rows that stand at these places, both ``(places,)`` int64."""
        values = self._walk(places.astype(np.uint64))
        while (outside := values >= self.count).any():
            values[outside] = self._walk(values[outside])
        return values.astype(np.int64)

    def _walk(self, values: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return (left << self._half) | right


class ShuffledBatches(Sequence[list[int]]):
    """One epoch of batches in random order, every row once; the last batch may be smaller.

    Args:
        count: rows.
        batch_size: rows a batch.
        seed: of the order.
        offset: added to every row's number.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, offset: int = 0) -> None:
        self._order, self._size, self._offset = Shuffle(count, seed=seed), batch_size, offset
        self._numbers = range(-(-count // batch_size))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> "ShuffledBatches": ...
    def __getitem__(self, place: int | slice) -> "list[int] | ShuffledBatches":
        if isinstance(place, slice):
            part = ShuffledBatches.__new__(ShuffledBatches)
            part._order, part._size, part._offset = self._order, self._size, self._offset
            part._numbers = self._numbers[place]
            return part
        start = self._numbers[place] * self._size
        rows = self._order(np.arange(start, min(start + self._size, self._order.count)))
        return (rows + self._offset).tolist()
