"""Times at which requests arrive, for `scheduler.py` and `serve.py`: steady, bursty, rising, and shaped like a day."""

import math
import random
from collections.abc import Callable

Trace = Callable[[float, float, int], list[float]]  # (capacity in requests/s, seconds, seed) to sorted times

SPIKES = 6  # of a day, each a fortieth of it


def steady(load: float, *, burstiness: float = 1.0) -> Trace:
    """Gaps of a gamma distribution with this squared coefficient of variation (1: a Poisson process).

    Args:
        load: mean rate as a fraction of the capacity.
        burstiness: squared coefficient of variation of the gaps.
    """

    def times(capacity: float, seconds: float, seed: int) -> list[float]:
        rng, now, found = random.Random(seed), 0.0, []
        while True:
            now += rng.gammavariate(1 / burstiness, burstiness / (load * capacity))
            if now >= seconds:
                return found
            found.append(now)

    return times


def varying(load: Callable[[float, list[float]], float]) -> Trace:
    """A Poisson process whose load depends on the time, as a fraction of the whole, and on the times of spikes."""

    def times(capacity: float, seconds: float, seed: int) -> list[float]:
        rng, now, found = random.Random(seed), 0.0, []
        spikes = [rng.random() for _ in range(SPIKES)]
        while True:
            now += rng.expovariate(capacity * load(now / seconds, spikes))
            if now >= seconds:
                return found
            found.append(now)

    return times


def _day(time: float, spikes: list[float]) -> float:
    in_spike = any(0 <= time - spike < 1 / 40 for spike in spikes)
    return 0.1 + 0.4 * math.sin(math.pi * time) ** 2 + 0.4 * in_spike


TRACES: dict[str, Trace] = {
    "Poisson, 20 %": steady(0.2),
    "Poisson, 50 %": steady(0.5),
    "Poisson, 80 %": steady(0.8),
    "bursts, CV² 2": steady(0.5, burstiness=2),
    "bursts, CV² 4": steady(0.5, burstiness=4),
    "bursts, CV² 8": steady(0.5, burstiness=8),
    "rising to 110 %": varying(lambda time, spikes: 0.05 + 1.05 * time),
    "day with spikes": varying(_day),
}
"""By name; loads are fractions of what the smallest variant can run."""
