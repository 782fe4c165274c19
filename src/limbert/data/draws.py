"""Random numbers that are computed from what they are for, so that neither order nor company of the rows matters.

(G. Steele, D. Lea, C. Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014: splitmix64, at any place of
its sequence.)
"""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def row_keys(seed: int, *numbers: np.ndarray) -> np.ndarray:
    """A key for each row, ``(rows,)`` uint64, that follows from the seed and the row's numbers, each ``(rows,)``."""
    keys = mixed(np.full(len(numbers[0]), seed % 2**64, dtype=np.uint64) + _STEP)
    for values in numbers:
        keys = mixed((keys ^ values.astype(np.uint64)) + _STEP)
    return keys


def uniform(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Numbers from 0 to below 1: those at these places of the sequences that the keys begin; shapes are broadcast."""
    values = mixed(keys + _STEP * (places.astype(np.uint64) + np.uint64(1)))
    return (values >> np.uint64(11)) * 2.0**-53


def mixed(values: np.ndarray) -> np.ndarray:
    """Bits spread over the whole word (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
