"""Latency of batches by variant (linear in tokens, corrected by measurements), and the load that requests offer.

A batch of ``tokens`` tokens, padding included, takes ``fixed + per_token * tokens`` seconds: fitted at start, then
multiplied by two factors that follow the measured batches. One is shared by all variants and moves fast (other
programs use the cores), one belongs to the variant and moves slowly. An outlier counts as at most three times off.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SHARED_STEP, _VARIANT_STEP = 0.1, 0.03  # how far one measurement moves the two factors
_MAX_LOG_STEP = math.log(3.0)
_MAX_LOG_FACTOR = math.log(20.0)
_TIME_CONSTANT = 1.0  # seconds after which an arrival counts for 1/e in the load
_MIN_TOKEN_RATE = 1e-3  # tokens per second below which an entry of the load is dropped

VariantsByLevel = tuple[str, ...]  # the variant that a request runs at, by quality level


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a batch: ``fixed + per_token * tokens``."""

    fixed: float
    per_token: float

    def __post_init__(self) -> None:
        if self.fixed < 0 or self.per_token <= 0:
            raise ValueError(f"fixed is {self.fixed}, per_token {self.per_token}; they must be >= 0 and > 0")

    def seconds(self, tokens: int) -> float:
        """Seconds of a batch of ``tokens`` tokens, padding included."""
        return self.fixed + self.per_token * tokens

    @classmethod
    def fit(cls, small: tuple[int, float], large: tuple[int, float]) -> "LatencyModel":
        """The line through two measured points ``(tokens, seconds)``, the first with fewer tokens.

        Where noise would make it start below 0 or fall, it goes through the origin and the larger point.
        """
        (few, short), (many, long) = small, large
        per_token = (long - short) / (many - few)
        fixed = short - per_token * few
        return cls(fixed, per_token) if per_token > 0 and fixed >= 0 else cls(0.0, long / many)


class LatencyTracker:
    """Current latency models by variant name, starting from those measured at start."""

    def __init__(self, latency_models: Mapping[str, LatencyModel]) -> None:
        self._latency_models = dict(latency_models)
        self._shared_log_factor = 0.0
        self._variant_log_factors = dict.fromkeys(self._latency_models, 0.0)

    def latency_model(self, variant: str) -> LatencyModel:
        """The variant's latency model, corrected by what was measured so far."""
        model = self._latency_models[variant]
        factor = math.exp(self._shared_log_factor + self._variant_log_factors[variant])
        return LatencyModel(factor * model.fixed, factor * model.per_token)

    def observe(self, variant: str, tokens: int, seconds: float) -> None:
        """Record the measured latency of a batch of ``tokens`` tokens, padding included."""
        expected, factors = self.latency_model(variant).seconds(tokens), self._variant_log_factors
        error = _clamp(math.log(max(seconds, 1e-9) / max(expected, 1e-9)), _MAX_LOG_STEP)
        self._shared_log_factor = _clamp(self._shared_log_factor + _SHARED_STEP * error, _MAX_LOG_FACTOR)
        factors[variant] = _clamp(factors[variant] + _VARIANT_STEP * error, _MAX_LOG_FACTOR)


def _clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


class OfferedLoad:
    """Exponentially decayed arrivals, accepted or not, by the variants that may run them; time is an argument."""

    def __init__(self) -> None:
        self._tokens: dict[VariantsByLevel, float] = {}
        self._texts: dict[VariantsByLevel, float] = {}
        self._now: float | None = None

    def record(self, variants_by_level: VariantsByLevel, *, num_texts: int, tokens: int, now: float) -> None:
        """Record the arrival of a request."""
        self._decay(now)
        self._tokens[variants_by_level] = self._tokens.get(variants_by_level, 0.0) + tokens
        self._texts[variants_by_level] = self._texts.get(variants_by_level, 0.0) + num_texts

    def utilization(
        self, level: int, latency_of: Callable[[str], LatencyModel], *, batch_seconds: float, now: float
    ) -> float:
        """Seconds of compute per second at a quality level, in batches of about ``batch_seconds``; > 1 is overload."""
        self._decay(now)
        total = 0.0
        for variants, tokens in self._tokens.items():
            model = latency_of(variants[level])
            one_by_one = self._texts[variants] * model.fixed + tokens * model.per_token
            overhead = model.fixed / batch_seconds  # fraction of a full batch that is not spent on tokens
            batched = tokens * model.per_token / (1 - overhead) if overhead < 1 else math.inf
            total += min(one_by_one, batched)
        return total / _TIME_CONSTANT

    def _decay(self, now: float) -> None:
        if self._now is not None and now > self._now:
            factor = math.exp((self._now - now) / _TIME_CONSTANT)
            self._tokens = {key: factor * n for key, n in self._tokens.items() if factor * n > _MIN_TOKEN_RATE}
            self._texts = {key: factor * self._texts[key] for key in self._tokens}
        self._now = now if self._now is None else max(now, self._now)
