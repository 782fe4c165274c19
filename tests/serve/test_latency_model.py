"""Latency models follow the measured batches."""

import pytest

from limbert.serve.latency_model import LatencyModel, LatencyTracker


def test_fit_goes_through_both_points() -> None:
    model = LatencyModel.fit((16, 2e-3), (256, 26e-3))
    assert model.seconds(16) == pytest.approx(2e-3)
    assert model.seconds(256) == pytest.approx(26e-3)


@pytest.mark.parametrize(("short", "long"), [(5e-3, 4e-3), (1e-3, 50e-3)])
def test_noise_never_gives_negative_costs(short: float, long: float) -> None:
    model = LatencyModel.fit((16, short), (256, long))
    assert model.fixed >= 0
    assert model.per_token > 0
    assert model.seconds(256) == pytest.approx(long)


def test_slowdown_is_noticed_for_all_variants() -> None:
    tracker = LatencyTracker({"large": LatencyModel(1e-3, 2e-4), "small": LatencyModel(1e-3, 5e-5)})
    before = tracker.latency_model("small").seconds(100)
    for _ in range(60):
        tracker.observe("large", tokens=100, seconds=2 * 21e-3)
    assert tracker.latency_model("large").seconds(100) == pytest.approx(42e-3, rel=0.02)
    assert 1.5 * before < tracker.latency_model("small").seconds(100) <= 2.05 * before


def test_one_outlier_changes_little() -> None:
    tracker = LatencyTracker({"large": LatencyModel(1e-3, 2e-4)})
    tracker.observe("large", tokens=100, seconds=5.0)
    assert tracker.latency_model("large").seconds(100) < 1.2 * 21e-3
