"""What a batch takes at each size: a line in its tokens, measured at the start and followed from then on.

A batch of so many tokens, padding included, takes ``fixed + per_token * tokens`` seconds. What really happens moves two
factors: one for all sizes (something else needs the cores), quickly, and one a size, slowly. Single outliers move
little, because a measurement counts as at most three times off.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SHARED_STEP, _VARIANT_STEP = 0.1, 0.03  # how far one measurement moves the factors
_MAX_LOG_STEP = math.log(3.0)
_MAX_LOG_FACTOR = math.log(20.0)


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a batch: ``fixed + per_token * tokens``."""

    fixed: float
    per_token: float

    def __post_init__(self) -> None:
        if self.fixed < 0 or self.per_token <= 0:
            raise ValueError(f"a line needs fixed >= 0 and per_token > 0, got {self.fixed}, {self.per_token}")

    def seconds(self, tokens: int) -> float:
        """Seconds of a batch of so many tokens."""
        return self.fixed + self.per_token * tokens

    @classmethod
    def fit(cls, small: tuple[int, float], large: tuple[int, float]) -> "LatencyModel":
        """The line through two measured points ``(tokens, seconds)``, the first with fewer tokens.

        Where noise would make it start below 0 or fall, it goes through the larger point alone.
        """
        (few, short), (many, long) = small, large
        per_token = (long - short) / (many - few)
        if per_token <= 0:
            return cls(0.0, long / many)
        fixed = short - per_token * few
        return cls(fixed, per_token) if fixed >= 0 else cls(0.0, long / many)


class LatencyTracker:
    """How long batches take, by the size's name.

    Args:
        lines: as measured at the start.
    """

    def __init__(self, latency_models: Mapping[str, LatencyModel]) -> None:
        self._latency_models = dict(latency_models)
        self._shared_log_factor = 0.0  # logarithms of the factors
        self._variant_log_factors = dict.fromkeys(self._latency_models, 0.0)

    def latency_model(self, variant: str) -> LatencyModel:
        """What a size takes now."""
        line, factor = (
            self._latency_models[variant],
            math.exp(self._shared_log_factor + self._variant_log_factors[variant]),
        )
        return LatencyModel(factor * line.fixed, factor * line.per_token)

    def seconds(self, variant: str, *, tokens: int) -> float:
        """What a batch of so many tokens, padding included, takes now."""
        return self.latency_model(variant).seconds(tokens)

    def observe(self, variant: str, *, tokens: int, seconds: float) -> None:
        """A batch really took so long."""
        off = math.log(max(seconds, 1e-9) / self.seconds(variant, tokens=tokens))
        off = max(-_MAX_LOG_STEP, min(_MAX_LOG_STEP, off))
        self._shared_log_factor = _clamp(self._shared_log_factor + _SHARED_STEP * off)
        self._variant_log_factors[variant] = _clamp(self._variant_log_factors[variant] + _VARIANT_STEP * off)


def _clamp(value: float) -> float:
    return max(-_MAX_LOG_FACTOR, min(_MAX_LOG_FACTOR, value))


_TIME_CONSTANT = 1.0  # seconds after which something counts for 1/e
_MIN_TOKEN_RATE = 1e-3  # tokens a second that are no longer kept

VariantsByLevel = tuple[str, ...]  # the size that a request runs at, by level


class OfferedLoad:
    """Tokens a second by what may answer them; time comes in as an argument."""

    def __init__(self) -> None:
        self._tokens: dict[VariantsByLevel, float] = {}  # decayed sums
        self._texts: dict[VariantsByLevel, float] = {}
        self._now: float | None = None

    def record(self, variants_by_level: VariantsByLevel, *, num_texts: int, tokens: int, now: float) -> None:
        """A request came in, whether or not it was taken."""
        self._decay(now)
        self._tokens[variants_by_level] = self._tokens.get(variants_by_level, 0.0) + tokens
        self._texts[variants_by_level] = self._texts.get(variants_by_level, 0.0) + num_texts

    def utilization(
        self, level: int, latency_of: Callable[[str], LatencyModel], *, batch_seconds: float, now: float
    ) -> float:
        """Seconds of compute a second, in batches that take about ``batch`` seconds; above 1 is too much."""
        self._decay(now)
        total = 0.0
        for choices, tokens in self._tokens.items():
            speed = latency_of(choices[level])
            alone = self._texts[choices] * speed.fixed + tokens * speed.per_token
            share = speed.fixed / batch_seconds  # of a full batch that is not spent on tokens
            together = tokens * speed.per_token / (1 - share) if share < 1 else math.inf
            total += min(alone, together)
        return total / _TIME_CONSTANT

    def _decay(self, now: float) -> None:
        if self._now is not None and now > self._now:
            kept = math.exp((self._now - now) / _TIME_CONSTANT)
            self._tokens = {key: kept * value for key, value in self._tokens.items() if kept * value > _MIN_TOKEN_RATE}
            self._texts = {key: kept * self._texts[key] for key in self._tokens}
        self._now = now if self._now is None else max(now, self._now)
