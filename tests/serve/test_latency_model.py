"""Speeds follow what batches take: a slower machine soon, a single outlier hardly."""

import pytest

from limbert.serve.latency_model import LatencyModel, LatencyTracker, OfferedLoad


def test_a_line_goes_through_its_points() -> None:
    line = LatencyModel.fit((16, 2e-3), (256, 26e-3))
    assert line.seconds(16) == pytest.approx(2e-3)
    assert line.seconds(256) == pytest.approx(26e-3)


@pytest.mark.parametrize(("short", "long"), [(5e-3, 4e-3), (1e-3, 50e-3)])
def test_noise_never_makes_batches_free(short: float, long: float) -> None:
    line = LatencyModel.fit((16, short), (256, long))
    assert line.fixed >= 0
    assert line.per_token > 0
    assert line.seconds(256) == pytest.approx(long)


def test_a_slower_machine_is_noticed_at_all_sizes() -> None:
    speeds = LatencyTracker({"large": LatencyModel(1e-3, 2e-4), "small": LatencyModel(1e-3, 5e-5)})
    before = speeds.seconds("small", tokens=100)
    for _ in range(60):
        speeds.observe("large", tokens=100, seconds=2 * 21e-3)
    assert speeds.seconds("large", tokens=100) == pytest.approx(42e-3, rel=0.02)
    assert 1.5 * before < speeds.seconds("small", tokens=100) <= 2.05 * before


def test_an_outlier_moves_little() -> None:
    speeds = LatencyTracker({"large": LatencyModel(1e-3, 2e-4)})
    speeds.observe("large", tokens=100, seconds=5.0)
    assert speeds.seconds("large", tokens=100) < 1.2 * 21e-3


def test_load_counts_what_each_level_would_cost_and_forgets() -> None:
    lines = {"large": LatencyModel(1e-3, 2e-4), "small": LatencyModel(1e-3, 5e-5)}
    load = OfferedLoad()
    for step in range(1000):  # ten seconds of 100 texts of 25 tokens
        load.record(("large", "small"), num_texts=1, tokens=25, now=step / 100)
    large, small = (load.utilization(level, lines.__getitem__, batch_seconds=20e-3, now=10.0) for level in (0, 1))
    assert large == pytest.approx(100 * 25 * 2e-4 / 0.95, rel=0.1)  # batches of 20 ms lose 1 ms to the fixed part
    assert small == pytest.approx(100 * 25 * 5e-5 / 0.95, rel=0.1)
    assert load.utilization(0, lines.__getitem__, batch_seconds=20e-3, now=20.0) < 1e-3
