"""Intervals agree with simulation and with scipy; metrics without a known distribution have none."""

import random

import pytest
from scipy.stats import binomtest

from limbert.report.noise import is_within_noise, metric_interval


@pytest.mark.parametrize(("correct", "count"), [(0, 50), (45, 50), (765, 872), (872, 872)])
def test_wilson_interval_is_that_of_scipy(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    found = metric_interval("accuracy", correct / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_equal_models_are_beyond_noise_rarely() -> None:
    rng = random.Random(1)
    count, trials = 400, 500
    values = [[sum(rng.random() < 0.85 for _ in range(count)) / count for _ in range(2)] for _ in range(trials)]
    beyond = sum(not is_within_noise("accuracy", first, second, count) for first, second in values)
    assert 0.02 < beyond / trials < 0.08


def test_correlation_interval_contains_the_value() -> None:
    for value in (-0.17, 0.0, 0.8, 1.0):
        low, high = metric_interval("pearson", value, 1500) or (0, 0)
        assert -1 <= low <= value <= high + 1e-9 <= 1 + 1e-9
    assert is_within_noise("pearson", 0.80, 0.81, 1500)
    assert not is_within_noise("pearson", 0.70, 0.81, 1500)


@pytest.mark.parametrize(("metric", "count"), [("f1", 100), ("accuracy", None), ("matthews", 100), ("pearson", 3)])
def test_no_interval_where_noise_is_unknown(metric: str, count: int | None) -> None:
    assert metric_interval(metric, 0.5, count) is None
    assert is_within_noise(metric, 0.5, 0.6, count) is None
