"""Latency of batches by variant (linear in tokens), corrected by measurements.

A batch of ``tokens`` tokens, padding included, takes ``fixed + per_token * tokens`` seconds: fitted at start, then
multiplied by two factors that follow the measured batches. One is shared by all variants and moves fast (other
programs use the cores), one belongs to the variant and moves slowly. An outlier counts as at most three times off.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

_SHARED_STEP, _VARIANT_STEP = 0.1, 0.03  # how far one measurement moves the two factors
_MAX_LOG_STEP = math.log(3.0)
_MAX_LOG_FACTOR = math.log(20.0)


@dataclass(frozen=True)
class LatencyModel:
    """Seconds of a batch: ``fixed + per_token * tokens``."""

    fixed: float
    per_token: float
    token_multiple: int = 1  # texts are padded to a multiple of so many tokens
    mixes_lengths: bool = False  # texts of all lengths run in one batch, without padding to the longest

    def __post_init__(self) -> None:
        if self.fixed < 0 or self.per_token <= 0:
            raise ValueError(f"fixed is {self.fixed}, per_token {self.per_token}; they must be >= 0 and > 0")

    def seconds(self, tokens: int) -> float:
        """Seconds of a batch of ``tokens`` tokens, padding included."""
        return self.fixed + self.per_token * tokens

    def padded(self, tokens: int) -> int:
        """Tokens of a text alone, padding included; at least 1."""
        return -(-max(1, tokens) // self.token_multiple) * self.token_multiple

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
        return replace(model, fixed=factor * model.fixed, per_token=factor * model.per_token)

    def observe(self, variant: str, tokens: int, seconds: float) -> None:
        """Record the measured latency of a batch of ``tokens`` tokens, padding included."""
        expected, factors = self.latency_model(variant).seconds(tokens), self._variant_log_factors
        error = _clamp(math.log(max(seconds, 1e-9) / max(expected, 1e-9)), _MAX_LOG_STEP)
        self._shared_log_factor = _clamp(self._shared_log_factor + _SHARED_STEP * error, _MAX_LOG_FACTOR)
        factors[variant] = _clamp(factors[variant] + _VARIANT_STEP * error, _MAX_LOG_FACTOR)


def _clamp(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))
