"""The scheduler under a simulated clock, against other rules: no model, seconds of processor time.

Batches take as long as latency models of a MiniLM run say (one core, measured once), times noise. Per trace and rule:
SLO attainment, the percentage of all requests whose response is there by the deadline (refusals are misses), and the
mean accuracy of these (SST-2).

The rules, all with the same admission control: `limbert`; `slackfit` (SuperServe, NSDI 2025): the time left to the most
urgent text chooses a bucket of latency, each of which holds the (variant, batch size) pair with the largest batch;
`batch`: as many texts as the smallest variant can run in half of that time, then the best variant for them; `accuracy`:
the best variant that is in time for the most urgent text, then as many texts as fit; `smallest`: no adaptation.

Example: python benchmarks/scheduler.py
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from arrivals import TRACES

from limbert.serve.batching import PendingRequest, PlannedBatch
from limbert.serve.latency_model import LatencyModel
from limbert.serve.scheduler import Refusal, Scheduler, SchedulerConfig

SLO, RESPONSE = 0.05, 0.002  # seconds; the second is for HTTP
NOISE = 0.1  # standard deviation of the logarithm of a batch's time
MEASURED = {  # milliseconds of a batch, microseconds of a token, accuracy (docs/results.md)
    "1x1": (7.85, 273.7, 87.8),
    "0.75x1": (6.47, 204.2, 87.5),
    "1x0.75": (5.60, 174.8, 87.3),
    "0.75x0.75": (4.37, 135.6, 87.2),
    "0.5x0.75": (3.63, 89.5, 85.7),
    "0.25x1": (3.34, 71.6, 85.6),
    "0.5x0.5": (2.84, 66.9, 84.6),
    "0.25x0.75": (2.45, 46.9, 83.8),
    "0.25x0.5": (2.22, 35.7, 83.1),
}  # those on the Pareto front
MODELS = {name: LatencyModel(fixed / 1e3, per_token / 1e6) for name, (fixed, per_token, _) in MEASURED.items()}
VARIANTS = tuple(MODELS)
CAPACITY = 670.0  # texts/s at which the smallest variant begins to miss the SLO


@dataclass
class Outcome:
    """What happened to each request."""

    finished: dict[PendingRequest, float] = field(default_factory=dict)
    started: dict[PendingRequest, float] = field(default_factory=dict)  # its last text
    refused: dict[PendingRequest, Refusal] = field(default_factory=dict)
    expired: list[PendingRequest] = field(default_factory=list)
    variants: dict[PendingRequest, set[str]] = field(default_factory=dict)
    batches: list[tuple[float, PlannedBatch]] = field(default_factory=list)

    def fraction(self, variant: str, *, since: float = 0.0) -> float:
        """Fraction of the texts that ran at a variant, after a time."""
        texts = [batch.variant for start, batch in self.batches if start >= since for _ in batch.texts]
        return texts.count(variant) / len(texts)


def simulate(
    scheduler: Scheduler, requests: list[PendingRequest], *, slowdown: Callable[[], float] = lambda: 1.0
) -> Outcome:
    """Run until all requests are finished, refused or expired.

    Args:
        scheduler: a new one.
        requests: in any order.
        slowdown: factor of the real time of a batch over the predicted time.
    """
    arriving = sorted(requests, key=lambda request: request.arrival)[::-1]
    outcome, now, busy_until = Outcome(), 0.0, math.inf
    running: PlannedBatch | None = None
    remaining = {request: len(request.lengths) for request in requests}
    while arriving or running is not None or scheduler.queued:
        if running is None:
            outcome.expired += scheduler.expire(now)
            running = scheduler.next_batch(now)
            if running is not None:
                busy_until = now + slowdown() * running.seconds
                outcome.batches.append((now, running))
                for text in running.texts:
                    outcome.started[text.request] = now
                    outcome.variants.setdefault(text.request, set()).add(running.variant)
        if running is not None and (not arriving or busy_until <= arriving[-1].arrival):
            now = busy_until
            scheduler.complete_batch()
            for text in running.texts:
                remaining[text.request] -= 1
                if not remaining[text.request]:
                    outcome.finished[text.request] = now
            running = None
        elif arriving:
            request = arriving.pop()
            now = request.arrival
            refusal = scheduler.admit(request, now)
            if refusal is not None:
                outcome.refused[request] = refusal
    return outcome


class SlackFit(Scheduler):
    """The bucket whose latency is just below the time left to the earliest deadline."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._buckets = _slackfit_buckets()

    def _choose_batch(self, now: float) -> tuple[int, PlannedBatch]:
        fitting = [bucket for bucket in self._buckets if bucket[1] <= _time_left(self, now)]
        level, seconds = fitting[-1] if fitting else self._buckets[0]
        return level, self._first_batch(level, seconds)


def _slackfit_buckets(count: int = 16, max_texts: int = 16) -> list[tuple[int, float]]:
    """Level and latency of the largest batch in each bucket of latency, shortest latency first."""
    lowest, largest = MODELS[VARIANTS[-1]].seconds(25), {}
    for level, name in enumerate(VARIANTS):
        for exponent in range(max_texts.bit_length()):
            seconds = MODELS[name].seconds(28 * 2**exponent)  # some padding
            bucket = int(count * (seconds - lowest) / (SLO - lowest))
            if seconds < SLO:
                largest[bucket] = max(largest.get(bucket, (0, 0, 0.0)), (2**exponent, -level, seconds))
    return [(-level, seconds) for _, (_, level, seconds) in sorted(largest.items())]


class LargestBatch(Scheduler):
    """The smallest variant decides how many texts run, and these which variant runs them."""

    def _choose_batch(self, now: float) -> tuple[int, PlannedBatch]:
        seconds = _time_left(self, now) / 2
        batch = self._first_batch(len(VARIANTS) - 1, seconds)
        level = _best_level(batch.tokens, seconds)
        return level, self._first_batch(level, MODELS[VARIANTS[level]].seconds(batch.tokens))


class LargestAccuracy(Scheduler):
    """The most urgent text decides which variant runs, and the time left how many texts."""

    def _choose_batch(self, now: float) -> tuple[int, PlannedBatch]:
        level = _best_level(self._queue[0].tokens, seconds := _time_left(self, now))
        return level, self._first_batch(level, seconds)


def _time_left(scheduler: Scheduler, now: float) -> float:
    return max(0.0, scheduler._queue[0].request.deadline - RESPONSE - now)


def _best_level(tokens: int, seconds: float) -> int:
    fitting = (level for level, name in enumerate(VARIANTS) if MODELS[name].seconds(tokens) <= seconds)
    return next(fitting, len(VARIANTS) - 1)


RULES: dict[str, tuple[type[Scheduler], tuple[str, ...]]] = {
    "limbert": (Scheduler, VARIANTS),
    "slackfit": (SlackFit, VARIANTS),
    "batch": (LargestBatch, VARIANTS),
    "accuracy": (LargestAccuracy, VARIANTS),
    "smallest": (Scheduler, VARIANTS[-1:]),
}


def measure(rule: str, times: list[float], seed: int, *, texts: int = 1, slo: float = SLO) -> tuple[float, float]:
    """SLO attainment and mean accuracy of one rule on requests at these times."""
    scheduler, variants = RULES[rule]
    rng, budget = random.Random(seed), slo - RESPONSE
    requests = []
    for time in times:
        tokens = tuple(min(64, max(4, round(rng.lognormvariate(3.1, 0.5)))) for _ in range(texts))
        requests.append(PendingRequest(tokens, variants, time, time + budget))
    config = SchedulerConfig(budget, max_batch_tokens=2048, max_queue=1024)
    outcome = simulate(
        scheduler(variants, MODELS.__getitem__, config), requests, slowdown=lambda: rng.lognormvariate(0, NOISE)
    )
    met = [request for request, finished in outcome.finished.items() if finished <= request.deadline]
    accuracies = [mean(MEASURED[name][2] for name in outcome.variants[request]) for request in met]
    return len(met) / len(requests), mean(accuracies or [math.nan])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="simulated, per trace")
    parser.add_argument("--texts", type=int, default=1, help="per request")
    parser.add_argument("--slo", type=float, default=1000 * SLO, help="milliseconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| trace ({CAPACITY:.0f} texts/s is 100 %) | {' | '.join(RULES)} |\n|---|{'---:|' * len(RULES)}")
    for name, trace in TRACES.items():
        times = trace(CAPACITY / options.texts, options.seconds, options.seed)
        found = (measure(rule, times, options.seed, texts=options.texts, slo=options.slo / 1000) for rule in RULES)
        cells = (f"{100 * attainment:.2f} / {accuracy:.1f}" for attainment, accuracy in found)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
