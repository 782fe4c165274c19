"""What a batch takes at each size: a line in its tokens, measured at the start and followed from then on.

A batch of so many tokens, padding included, takes ``fixed + per_token * tokens`` seconds. What really happens moves two
factors: one for all sizes (something else needs the cores), quickly, and one a size, slowly. Single outliers move
little, because a measurement counts as at most three times off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

_SHARED, _OWN = 0.1, 0.03  # how far one measurement moves the factors
_LARGEST_STEP = math.log(3.0)
_LARGEST_FACTOR = math.log(20.0)


@dataclass(frozen=True)
class Line:
    """Seconds of a batch: ``fixed + per_token * tokens``."""

    fixed: float
    per_token: float

    def __post_init__(self) -> None:
        if self.fixed < 0 or self.per_token <= 0:
            raise ValueError(f"a line needs fixed >= 0 and per_token > 0, got {self.fixed}, {self.per_token}")

    def at(self, tokens: int) -> float:
        """Seconds of a batch of so many tokens."""
        return self.fixed + self.per_token * tokens

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> "Line":
        """The line through two measured points ``(tokens, seconds)``, the first with fewer tokens.

        Where noise would make it start below 0 or fall, it goes through the larger point alone.
        """
        (few, short), (many, long) = small, large
        per_token = (long - short) / (many - few)
        if per_token <= 0:
            return cls(0.0, long / many)
        fixed = short - per_token * few
        return cls(fixed, per_token) if fixed >= 0 else cls(0.0, long / many)


class Speeds:
    """How long batches take, by the size's name.

    Args:
        lines: as measured at the start.
    """

    def __init__(self, lines: Mapping[str, Line]) -> None:
        self._lines = dict(lines)
        self._shared = 0.0  # logarithms of the factors
        self._own = dict.fromkeys(self._lines, 0.0)

    def line(self, size: str) -> Line:
        """What a size takes now."""
        line, factor = self._lines[size], math.exp(self._shared + self._own[size])
        return Line(factor * line.fixed, factor * line.per_token)

    def seconds(self, size: str, *, tokens: int) -> float:
        """What a batch of so many tokens, padding included, takes now."""
        return self.line(size).at(tokens)

    def measured(self, size: str, *, tokens: int, seconds: float) -> None:
        """A batch really took so long."""
        off = math.log(max(seconds, 1e-9) / self.seconds(size, tokens=tokens))
        off = max(-_LARGEST_STEP, min(_LARGEST_STEP, off))
        self._shared = _bounded(self._shared + _SHARED * off)
        self._own[size] = _bounded(self._own[size] + _OWN * off)


def _bounded(value: float) -> float:
    return max(-_LARGEST_FACTOR, min(_LARGEST_FACTOR, value))
