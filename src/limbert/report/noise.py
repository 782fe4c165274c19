"""Sampling noise of a metric from the number of examples: 95 % intervals, and whether a difference exceeds them."""

import math

_Z = 1.96  # 95 % of a normal distribution lies within so many standard deviations
_METHODS = {
    "accuracy": "Wilson interval",
    "exact_match": "Wilson interval",
    "subset_accuracy": "Wilson interval",
    "pearson": "Fisher z-transformation",
    "spearman": "Fisher z-transformation",
}


def interval_method(metric: str) -> str | None:
    """The kind of interval that `metric_interval` gives for a metric; None where it gives none."""
    return _METHODS.get(metric)


def metric_interval(metric: str, value: float, num_examples: int | None) -> tuple[float, float] | None:
    """The 95 % interval of a metric on so many examples.

    A proportion has the Wilson score interval (Wilson 1927), a correlation that of Fisher's z-transformation
    (Fisher 1921). None for other metrics, such as F1, and where the number of examples is unknown or below 4.
    """
    if metric not in _METHODS or num_examples is None or num_examples < 4:
        return None
    if _METHODS[metric] == "Wilson interval":
        share = min(max(value, 0.0), 1.0)
        scale = 1 + _Z**2 / num_examples
        centre = (share + _Z**2 / (2 * num_examples)) / scale
        spread = _Z * math.sqrt(share * (1 - share) / num_examples + (_Z / (2 * num_examples)) ** 2) / scale
        return max(0.0, centre - spread), min(1.0, centre + spread)
    z, spread = _fisher_z(value), _Z / math.sqrt(num_examples - 3)
    return math.tanh(z - spread), math.tanh(z + spread)


def is_within_noise(metric: str, first: float, second: float, num_examples: int | None) -> bool | None:
    """Whether two values differ by less than those of two equal models would, in 95 % of cases.

    Normal approximation for two independent samples of ``num_examples``. Models that run on the same examples mostly
    fail on the same ones, so that smaller differences can be real. None where `metric_interval` gives none.
    """
    if metric not in _METHODS or num_examples is None or num_examples < 4:
        return None
    if _METHODS[metric] == "Wilson interval":
        variance = sum(max(value * (1 - value), 0.0) for value in (first, second)) / num_examples
        return abs(first - second) <= _Z * math.sqrt(variance)
    return abs(_fisher_z(first) - _fisher_z(second)) <= _Z * math.sqrt(2 / (num_examples - 3))


def _fisher_z(correlation: float) -> float:
    return math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
