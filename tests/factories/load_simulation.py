"""A compute that takes exactly as long as planned and a clock that jumps: the scheduler's world without the waiting."""

import random
from dataclasses import dataclass, field

from limbert.serve.latency_model import LatencyModel
from limbert.serve.scheduler import Refusal, ScheduledBatch, Scheduler, SchedulerConfig, SchedulingRequest

LINES = {  # seconds of a batch: like MiniLM's on one core
    "1x1": LatencyModel(1.0e-3, 2.0e-4),
    "0.5x1": LatencyModel(0.9e-3, 1.1e-4),
    "0.5x0.5": LatencyModel(0.6e-3, 5.5e-5),
    "0.25x0.5": LatencyModel(0.5e-3, 3.0e-5),
}
LADDER = tuple(LINES)
RULES = SchedulerConfig(slo=0.1, max_batch_tokens=512, max_queue=1000)


@dataclass
class Outcome:
    """What became of the requests."""

    finished: dict[int, float] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)  # its last text
    refused: dict[int, Refusal] = field(default_factory=dict)
    expired: list[int] = field(default_factory=list)
    sizes: dict[int, list[str]] = field(default_factory=dict)
    batches: list[tuple[float, ScheduledBatch]] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)

    def answered_by(self, name: str, *, since: float = 0.0) -> float:
        """Share of the texts after a time that a size answered."""
        texts = [batch.variant for when, batch in self.batches if when >= since for _ in batch.texts]
        return texts.count(name) / len(texts)


def simulate(
    scheduler: Scheduler,
    requests: list[SchedulingRequest],
    *,
    cancel: dict[float, int] | None = None,
    slower: float = 1.0,
) -> Outcome:
    """Run until everything is answered.

    Args:
        scheduler: fresh.
        requests: any order.
        cancel: at which times which requests are cancelled.
        slower: factor on what batches really take.
    """
    events = sorted([(one.arrival, 0, one) for one in requests] + [(at, 1, one) for at, one in (cancel or {}).items()],
                    key=lambda event: event[:2])  # fmt: skip
    outcome, now, busy_until = Outcome(), 0.0, None
    running: ScheduledBatch | None = None
    waiting = {one.id: len(one.lengths) for one in requests}
    while events or running is not None or scheduler.queued:
        if running is None:
            outcome.expired += scheduler.expire(now)
            running = scheduler.next_batch(now)
            outcome.levels.append((now, scheduler.variant))
            if running is not None:
                busy_until = now + slower * running.seconds
                outcome.batches.append((now, running))
                for request, _ in running.texts:
                    outcome.begun[request] = now
                    outcome.sizes.setdefault(request, []).append(running.variant)
        if running is not None and (not events or busy_until <= events[0][0]):
            now = busy_until
            scheduler.complete_batch()
            for request, _ in running.texts:
                waiting[request] -= 1
                if not waiting[request]:
                    outcome.finished[request] = now
            running = None
        elif events:
            now, kind, what = events.pop(0)
            if kind == 1:
                scheduler.cancel(what)
                continue
            refusal = scheduler.admit(what, now)
            if refusal is not None:
                outcome.refused[what.id] = refusal
    return outcome


def arrivals(
    rate: float,
    *,
    seconds: float,
    seed: int | None = 0,
    start: float = 0.0,
    budget: float | None = RULES.slo,
    sizes: tuple[str, ...] = LADDER,
    first: int = 0,
    texts: int = 1,
) -> list[SchedulingRequest]:
    """Requests of so many a second, at random or (``seed=None``) evenly, of 8 to 60 tokens (evenly: 25)."""
    draw = random.Random(seed)
    found: list[SchedulingRequest] = []
    now = start
    while True:
        now += 1 / rate if seed is None else draw.expovariate(rate)
        if now >= start + seconds:
            return found
        lengths = tuple(25 if seed is None else draw.randint(8, 60) for _ in range(texts))
        deadline = None if budget is None else now + budget
        found.append(SchedulingRequest(first + len(found), lengths, sizes, now, deadline))


def make(ladder: tuple[str, ...] = LADDER, rules: SchedulerConfig = RULES) -> Scheduler:
    """A scheduler that knows the exact speeds."""
    return Scheduler(ladder, LINES.__getitem__, rules)
