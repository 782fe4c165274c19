"""How much work comes in, as shares of the compute that each level of quality would keep busy, over about a second."""

import math
from collections.abc import Callable

from limbert.serve.latency_model import Line

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
