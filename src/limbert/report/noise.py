"""Sampling noise of a metric from the number of examples: 95 % intervals, and whether a difference exceeds them."""

import math

_Z = 1.96  # 95 % of a normal distribution lies within so many standard deviations
_WILSON, _FISHER = "Wilson interval", "Fisher z-transformation"
_METHODS = dict.fromkeys(("accuracy", "exact_match", "subset_accuracy"), _WILSON)
_METHODS |= dict.fromkeys(("pearson", "spearman"), _FISHER)


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
    if _METHODS[metric] == _FISHER:
        z, spread = _fisher_z(value), _Z / math.sqrt(num_examples - 3)
        return math.tanh(z - spread), math.tanh(z + spread)
    share, prior = min(max(value, 0.0), 1.0), _Z**2 / num_examples
    centre = (share + prior / 2) / (1 + prior)
    spread = _Z * math.sqrt((share * (1 - share) + prior / 4) / num_examples) / (1 + prior)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def is_within_noise(metric: str, first: float, second: float, num_examples: int | None) -> bool | None:
    """Whether two values differ by less than those of two equal models would, in 95 % of cases.

    Normal approximation for two independent samples of ``num_examples``. Models that run on the same examples mostly
    fail on the same ones, so that smaller differences can be real. None where `metric_interval` gives none.
    """
    if num_examples is None or metric_interval(metric, first, num_examples) is None:
        return None
    if _METHODS[metric] == _FISHER:
        return abs(_fisher_z(first) - _fisher_z(second)) <= _Z * math.sqrt(2 / (num_examples - 3))
    variance = sum(max(value * (1 - value), 0.0) for value in (first, second)) / num_examples
    return abs(first - second) <= _Z * math.sqrt(variance)


def _fisher_z(correlation: float) -> float:
    return math.atanh(max(-1 + 1e-12, min(1 - 1e-12, correlation)))
