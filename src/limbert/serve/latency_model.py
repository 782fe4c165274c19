"""What a batch takes at each size: a line in its tokens, measured at the start and followed from then on.

A batch of so many tokens, padding included, takes ``fixed + per_token * tokens`` seconds. What really happens moves two
factors: one for all sizes (something else needs the cores), quickly, and one a size, slowly. Single outliers move
little, because a measurement counts as at most three times off.
"""

import math
from collections.abc import Callable, Mapping
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


_MEMORY = 1.0  # seconds after which something counts for 1/e
_FORGOTTEN = 1e-3  # tokens a second that are no longer kept

Choices = tuple[str, ...]  # the size that a request runs at, by level


class Load:
    """Tokens a second by what may answer them; time comes in as an argument."""

    def __init__(self) -> None:
        self._tokens: dict[Choices, float] = {}  # decayed sums
        self._rows: dict[Choices, float] = {}
        self._now: float | None = None

    def add(self, choices: Choices, *, rows: int, tokens: int, now: float) -> None:
        """A request came in, whether or not it was taken."""
        self._decay(now)
        self._tokens[choices] = self._tokens.get(choices, 0.0) + tokens
        self._rows[choices] = self._rows.get(choices, 0.0) + rows

    def utilisation(self, level: int, line: Callable[[str], Line], *, batch: float, now: float) -> float:
        """Seconds of compute a second, in batches that take about ``batch`` seconds; above 1 is too much."""
        self._decay(now)
        total = 0.0
        for choices, tokens in self._tokens.items():
            speed = line(choices[level])
            alone = self._rows[choices] * speed.fixed + tokens * speed.per_token
            share = speed.fixed / batch  # of a full batch that is not spent on tokens
            together = tokens * speed.per_token / (1 - share) if share < 1 else math.inf
            total += min(alone, together)
        return total / _MEMORY

    def _decay(self, now: float) -> None:
        if self._now is not None and now > self._now:
            kept = math.exp((self._now - now) / _MEMORY)
            self._tokens = {key: kept * value for key, value in self._tokens.items() if kept * value > _FORGOTTEN}
            self._rows = {key: kept * self._rows[key] for key in self._tokens}
        self._now = now if self._now is None else max(now, self._now)
