"""Admission control and choice of the next batch: a state machine without clock, threads, asyncio or torch.

Queued texts are ordered by planned deadline and planned ahead as the batches in which they will run (`batching`). A
request is accepted only if a plan exists in which it and all accepted before meet their deadlines; each batch runs at
the best variants for which this stays true.

Two mechanisms run below the best variants. The *quality level* follows the load over about one second: down at once,
up one level at a time and only after some time with headroom. And a single batch is *downgraded* below the level where
the current queue would otherwise come close to its deadlines.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from limbert.serve.batching import BatchPlan, PendingRequest, PlannedBatch, QueuedText
from limbert.serve.latency_model import LatencyModel, OfferedLoad

_MAX_TEXTS_WITHOUT_DEADLINE = 64  # queued texts that the next batch is chosen from where no deadline waits
_MAX_PLANNED_TEXTS = 256  # queued texts that are planned one by one; those behind are assumed to run at the same pace


@dataclass(frozen=True)
class Refusal:
    """Why a request was refused, and after how many seconds it would probably be accepted."""

    reason: str
    retry_after: float


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of the scheduler; planned, admission and downgrade fraction are of the time from arrival to deadline.

    A request is accepted if it is complete within the admission fraction behind the queue; later requests that join
    earlier batches may delay it up to the planned fraction, which keeps batches large. The rest of the time is for the
    response and the unknown.
    """

    slo: float  # seconds from arrival to response; also orders requests without a deadline
    max_batch_tokens: int  # padding included; a longer text runs alone
    max_queue: int  # texts
    adaptive: bool = True  # the quality level follows the load; otherwise it stays at the best
    planned_fraction: float = 0.8
    admission_fraction: float = 0.65
    downgrade_fraction: float = 0.5  # within which all must be complete for the plan to stay at the quality level
    max_batch_fraction: float = 0.25  # of the SLO that a batch may take while deadlines wait
    downgrade_utilization: float = 0.85  # above which the level falls
    upgrade_utilization: float = 0.65  # of the next better level, below which it may rise
    upgrade_delay: float = (
        1.0  # seconds for which that must hold; doubled up to 16 times after a rise that did not last
    )


@dataclass(slots=True)
class _QualityLevel:
    """Index of the level's best variant, and what decides when it rises."""

    index: int = 0
    headroom_since: float | None = None
    raised_at: float | None = None
    backoff: int = 1
    changes: int = 0


class Scheduler:
    """The queue of one model, with a quality level for each of the variants (best first)."""

    def __init__(
        self, variants: Sequence[str], latency_of: Callable[[str], LatencyModel], config: SchedulerConfig
    ) -> None:
        self._variants, self._latency_of, self._config = tuple(variants), latency_of, config
        self._rank = {name: index for index, name in enumerate(self._variants)}
        self._lowest_level = len(self._variants) - 1
        self._queue: list[QueuedText] = []  # by planned deadline
        self._num_with_deadline = 0
        self._next_order = 0
        self._busy_until: float | None = None  # predicted end of the running batch; None: nothing runs
        self._plan: BatchPlan | None = None  # of the whole queue; None: not made yet
        self._seconds_per_text = 0.0  # of the last batch
        self._load = OfferedLoad()
        self._level = _QualityLevel()

    @property
    def queued(self) -> int:
        """Queued texts."""
        return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        return sum(text.tokens for text in self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not self._queue and self._busy_until is None

    @property
    def variant(self) -> str:
        """The best variant for requests without options at the current quality level."""
        return self._variants[self._level.index]

    @property
    def level_changes(self) -> int:
        return self._level.changes

    def admit(self, request: PendingRequest, now: float) -> Refusal | None:
        """Queue a request, or say why not. A refused request leaves no trace but its part of the offered load."""
        self._set_deadlines(request)
        num_texts, tokens = len(request.lengths), sum(request.lengths)
        self._load.record(request.variants_by_level, num_texts=num_texts, tokens=tokens, now=now)
        if len(self._queue) + num_texts > self._config.max_queue:
            reason = f"the queue holds {len(self._queue)} texts; at most {self._config.max_queue} may wait"
            return Refusal(reason, self._next_free_time(now) - now + self._seconds_per_text * len(self._queue))
        first, self._next_order = self._next_order, self._next_order + num_texts
        new_texts = [QueuedText(request, index, tokens, first + index) for index, tokens in enumerate(request.lengths)]
        if not self._num_with_deadline and not request.has_deadline:
            self._plan = None
        elif (refusal := self._admit_to_plan(request, new_texts, now)) is not None:
            return refusal
        for text in new_texts:
            insort(self._queue, text)
        self._num_with_deadline += num_texts if request.has_deadline else 0
        return None

    def next_batch(self, now: float) -> PlannedBatch | None:
        """The batch to run now, removed from the queue; None if the queue is empty. Then call `complete_batch`."""
        self._update_level(now)
        if not self._queue:
            return None
        plan = self._best_plan(now)
        batch = plan.pop_first()
        removed = {id(text) for text in batch.texts}
        self._queue = [text for text in self._queue if id(text) not in removed]
        self._num_with_deadline -= sum(text.request.has_deadline for text in batch.texts)
        self._busy_until, self._seconds_per_text = now + batch.seconds, batch.seconds / len(batch.texts)
        self._plan = plan if self._num_with_deadline and len(self._queue) <= _MAX_PLANNED_TEXTS else None
        return batch

    def complete_batch(self) -> None:
        """Note that the running batch has ended."""
        self._busy_until = None

    def cancel(self, request: PendingRequest) -> int:
        """Remove a request; returns the number of its texts that were still queued."""
        before = len(self._queue)
        self._queue = [text for text in self._queue if text.request is not request]
        self._num_with_deadline = sum(text.request.has_deadline for text in self._queue)
        self._plan = None
        return before - len(self._queue)

    def expire(self, now: float) -> list[PendingRequest]:
        """Remove and return the requests that can no longer meet their deadline."""
        if not self._num_with_deadline:
            return []
        late = {
            text.request: None
            for text in self._queue
            if now + self._latency_of(text.request.variants_by_level[-1]).seconds(text.tokens) > text.request.deadline
        }
        for request in late:
            self.cancel(request)
        return list(late)

    def _set_deadlines(self, request: PendingRequest) -> None:
        config = self._config
        budget = request.deadline - request.arrival if request.has_deadline else config.slo
        request.planned_deadline = request.arrival + config.planned_fraction * budget
        request.admission_deadline = request.arrival + config.admission_fraction * budget
        request.downgrade_deadline = request.arrival + config.downgrade_fraction * budget
        if len(request.variants) == 1:
            request.variants_by_level = request.variants * len(self._variants)
        else:  # by level: the best allowed variant that the level has, else the cheapest allowed
            request.variants_by_level = tuple(
                next((name for name in request.variants if self._rank[name] >= level), request.variants[-1])
                for level in range(len(self._variants))
            )

    def _admit_to_plan(self, request: PendingRequest, new_texts: Sequence[QueuedText], now: float) -> Refusal | None:
        """Add a request to the plan, or say why a text would be late."""
        start = self._next_free_time(now)
        is_last = not self._queue or request.planned_deadline >= self._queue[-1].request.planned_deadline
        if is_last and len(self._queue) >= _MAX_PLANNED_TEXTS:  # too many to plan, and none is delayed
            end = start + self._seconds_per_text * (len(self._queue) + len(new_texts))
            if request.has_deadline and end > request.admission_deadline:
                return self._refusal(request, new_texts, now, late_by=end - request.admission_deadline)
            self._plan = None
            return None
        if self._plan is None or not self._queue:  # an empty plan may hold outdated latency models
            self._plan = self._make_plan(self._queue, self._lowest_level, start=start)
        plan = self._plan
        plan.start = start
        late = max(0.0, plan.lateness()[0])  # a slow batch may have made the plan late already
        if is_last and len(self._queue) + len(new_texts) <= _MAX_PLANNED_TEXTS:
            grown = plan.extended(new_texts)
            if grown is None and plan.level != self._lowest_level:
                cheaper = self._make_plan(self._queue, self._lowest_level, start=start)
                grown = cheaper.extended(new_texts) if cheaper.lateness()[0] <= late else None
            if grown is None:
                late_by = plan.end + self._seconds_alone(new_texts) - request.planned_deadline
                return self._refusal(request, new_texts, now, late_by=late_by)
            self._plan = grown
            return None
        together = sorted([*self._queue, *new_texts])
        plan, unplanned = self._make_plan(together, self._lowest_level, start=start), together[_MAX_PLANNED_TEXTS:]
        late_by = plan.lateness(unplanned)[0]
        if late_by > late:
            return self._refusal(request, new_texts, now, late_by=late_by)
        self._plan = None if unplanned else plan
        return None

    def _refusal(
        self, request: PendingRequest, new_texts: Sequence[QueuedText], now: float, *, late_by: float
    ) -> Refusal:
        seconds = self._seconds_alone(new_texts)
        if not request.has_deadline:
            return Refusal("it would make requests with a deadline late", max(late_by, seconds))
        if now + seconds > request.planned_deadline:
            reason = f"it takes about {1000 * seconds:.0f} ms even on an idle server, more than its latency budget"
            return Refusal(reason, now + seconds - request.planned_deadline)
        return Refusal("the queue is too long to meet the latency budget", max(late_by, seconds))

    def _seconds_alone(self, texts: Sequence[QueuedText]) -> float:
        planned = self._make_plan(texts, self._lowest_level, start=0.0).seconds
        return planned * max(1.0, len(texts) / _MAX_PLANNED_TEXTS)

    def _best_plan(self, now: float) -> BatchPlan:
        """The plan of the best level, from the quality level down, that meets all downgrade deadlines.

        If there is none: the lowest level that is in time, else the plan made on admission, else the lowest level.
        """
        if not self._num_with_deadline:
            return self._make_plan(self._queue[:_MAX_TEXTS_WITHOUT_DEADLINE], self._level.index, start=now)
        unplanned, in_time = self._queue[_MAX_PLANNED_TEXTS:], None
        for level in range(self._level.index, self._lowest_level + 1):
            plan = self._make_plan(self._queue, level, start=now)
            late, downgrade = plan.lateness(unplanned)
            if downgrade <= 0:
                return plan
            if late <= 0:
                in_time = plan
        if in_time is None and self._plan is not None and self._plan.batches:
            self._plan.start = now
            in_time = self._plan if self._plan.lateness()[0] <= 0 else None
        return in_time or plan

    def _make_plan(self, texts: Sequence[QueuedText], level: int, *, start: float) -> BatchPlan:
        urgent = self._num_with_deadline or (texts and texts[0].request.has_deadline)
        max_batch_seconds = self._config.max_batch_fraction * self._config.slo if urgent else inf
        plan = BatchPlan(level, start, self._latency_of, self._config.max_batch_tokens, max_batch_seconds)
        for text in texts[:_MAX_PLANNED_TEXTS]:
            plan.add(text, allow_late=True)
        return plan

    def _next_free_time(self, now: float) -> float:
        """A batch slower than predicted is assumed to end now."""
        return now if self._busy_until is None else max(now, self._busy_until)

    def _update_level(self, now: float) -> None:
        if not self._config.adaptive or not self._lowest_level:
            return
        level, config = self._level, self._config
        if level.index < self._lowest_level and self._utilization(level.index, now) > config.downgrade_utilization:
            lower = range(level.index + 1, len(self._variants))
            fitting = (index for index in lower if self._utilization(index, now) <= config.downgrade_utilization)
            if level.raised_at is not None and now - level.raised_at < config.upgrade_delay * level.backoff:
                level.backoff = min(16, 2 * level.backoff)
            level.index, level.headroom_since = next(fitting, self._lowest_level), None
            level.changes += 1
        elif level.index > 0 and self._utilization(level.index - 1, now) < config.upgrade_utilization:
            if level.headroom_since is None:
                level.headroom_since = now
            elif now - level.headroom_since >= config.upgrade_delay * level.backoff:
                level.index, level.headroom_since, level.raised_at = level.index - 1, None, now
                level.changes += 1
        else:
            level.headroom_since = None
            if level.raised_at is not None and now - level.raised_at > 4 * config.upgrade_delay * level.backoff:
                level.backoff = max(1, level.backoff // 2)
                level.raised_at = now

    def _utilization(self, level: int, now: float) -> float:
        batch_seconds = self._config.max_batch_fraction * self._config.slo
        return self._load.utilization(level, self._latency_of, batch_seconds=batch_seconds, now=now)
