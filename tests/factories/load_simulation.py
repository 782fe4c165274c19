"""Simulated time for the scheduler: a clock that jumps, and batches that take as long as predicted."""

import random
from dataclasses import dataclass, field
from math import inf

from limbert.serve.batching import PendingRequest, PlannedBatch
from limbert.serve.latency_model import LatencyModel
from limbert.serve.scheduler import Refusal, Scheduler, SchedulerConfig

LATENCY_MODELS = {  # seconds of a batch, as of MiniLM on one core
    "1x1": LatencyModel(1.0e-3, 2.0e-4),
    "0.5x1": LatencyModel(0.9e-3, 1.1e-4),
    "0.5x0.5": LatencyModel(0.6e-3, 5.5e-5),
    "0.25x0.5": LatencyModel(0.5e-3, 3.0e-5),
}
VARIANTS = tuple(LATENCY_MODELS)
CONFIG = SchedulerConfig(slo=0.1, max_batch_tokens=512, max_queue=1000)


@dataclass
class Outcome:
    """What happened to each request."""

    finished: dict[PendingRequest, float] = field(default_factory=dict)
    started: dict[PendingRequest, float] = field(default_factory=dict)  # its last text
    refused: dict[PendingRequest, Refusal] = field(default_factory=dict)
    expired: list[PendingRequest] = field(default_factory=list)
    variants: dict[PendingRequest, set[str]] = field(default_factory=dict)
    batches: list[tuple[float, PlannedBatch]] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)

    def fraction(self, variant: str, *, since: float = 0.0) -> float:
        """Fraction of the texts that ran at a variant, after a time."""
        texts = [batch.variant for start, batch in self.batches if start >= since for _ in batch.texts]
        return texts.count(variant) / len(texts)


def simulate(scheduler: Scheduler, requests: list[PendingRequest], *, slowdown: float = 1.0) -> Outcome:
    """Run until all requests are finished, refused or expired.

    Args:
        scheduler: a new one.
        requests: in any order.
        slowdown: factor of the real time of batches over the predicted time.
    """
    arriving = sorted(requests, key=lambda request: request.arrival)
    outcome, now, busy_until = Outcome(), 0.0, inf
    running: PlannedBatch | None = None
    remaining = {request: len(request.lengths) for request in requests}
    while arriving or running is not None or scheduler.queued:
        if running is None:
            outcome.expired += scheduler.expire(now)
            running = scheduler.next_batch(now)
            outcome.levels.append((now, scheduler.variant))
            if running is not None:
                busy_until = now + slowdown * running.seconds
                outcome.batches.append((now, running))
                for text in running.texts:
                    outcome.started[text.request] = now
                    outcome.variants.setdefault(text.request, set()).add(running.variant)
        if running is not None and (not arriving or busy_until <= arriving[0].arrival):
            now = busy_until
            scheduler.complete_batch()
            for text in running.texts:
                remaining[text.request] -= 1
                if not remaining[text.request]:
                    outcome.finished[text.request] = now
            running = None
        elif arriving:
            request = arriving.pop(0)
            now = request.arrival
            refusal = scheduler.admit(request, now)
            if refusal is not None:
                outcome.refused[request] = refusal
    return outcome


def arrivals(
    rate: float,
    *,
    seconds: float,
    seed: int | None = 0,
    start: float = 0.0,
    budget: float = CONFIG.slo,
    variants: tuple[str, ...] = VARIANTS,
    texts: int = 1,
) -> list[PendingRequest]:
    """Requests of 8 to 60 tokens per text that arrive at random, or with ``seed=None`` of 25 tokens at equal distances.

    Args:
        rate: requests per second.
        seconds: duration.
        seed: of the random numbers.
        start: of the first second.
        budget: seconds from arrival to deadline; infinity: no deadline.
        variants: that may run them.
        texts: per request.
    """
    generator = random.Random(seed)
    requests: list[PendingRequest] = []
    now = start
    while True:
        now += 1 / rate if seed is None else generator.expovariate(rate)
        if now >= start + seconds:
            return requests
        lengths = tuple(25 if seed is None else generator.randint(8, 60) for _ in range(texts))
        requests.append(PendingRequest(lengths, variants, now, now + budget))


def make_scheduler(variants: tuple[str, ...] = VARIANTS, config: SchedulerConfig = CONFIG) -> Scheduler:
    """A scheduler with exact latency models."""
    return Scheduler(variants, LATENCY_MODELS.__getitem__, config)
