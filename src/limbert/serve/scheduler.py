"""Which texts run next, at which size, and which requests are refused: a state machine without clock, threads or torch.

Time comes in as an argument, in seconds. Requests wait in the order of when they are due, and are planned ahead as the
batches that they would run in (`plan.py`). A request is taken only if there is a plan in which it and all that were
taken before are answered in time, and every batch runs at the best size at which this stays so.

There are two reasons to run below the best size. The *level* follows the load over about a second, down at once, up
one step at a time and only when there is room for a while. And a single batch *dips* below the level where the queue of
that moment would otherwise come close to its deadlines.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from limbert.serve.batching import BatchPlan, QueuedText
from limbert.serve.latency_model import LatencyModel, OfferedLoad, VariantsByLevel

_MAX_TEXTS_WITHOUT_DEADLINE = 64  # waiting texts that the next batch is put together from where nobody has a deadline
_MAX_PLANNED_TEXTS = 256  # waiting texts that are planned one by one; those behind are taken to go at the same pace


@dataclass(frozen=True)
class SchedulingRequest:
    """What waits.

    Attributes:
        id: unlike any other.
        lengths: tokens of each text.
        sizes: that may answer, best first; those but the only one are on the scheduler's ladder.
        arrival: when it came.
        deadline: when it must be answered; None: it is only refused when the queue is full.
    """

    id: int
    lengths: tuple[int, ...]
    variants: tuple[str, ...]
    arrival: float
    deadline: float | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a request was not taken, and in how many seconds it probably would be."""

    reason: str
    retry_after: float


@dataclass(frozen=True)
class ScheduledBatch:
    """What runs together.

    Attributes:
        size: at which.
        rows: ``(request, place of the text in it)``.
        tokens: padding included.
        seconds: that it will probably take.
    """

    variant: str
    texts: tuple[tuple[int, int], ...]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class SchedulerConfig:
    """What the scheduler holds to.

    Attributes:
        slo: seconds from arrival to answer, of requests that name none; also how soon those without deadline are due.
        max_batch_tokens: a batch, padding included; a longer text runs alone.
        max_queue: texts that may wait.
        adaptive: whether the level follows the load; else it stays at the best.
        planned: share of the time to a deadline after which a request is planned to be finished: the rest is for the
            way back and for what the plan does not know.
        taken: share of it within which a request must fit behind what waits to be taken; up to ``planned`` it may be
            delayed by later ones that join the batches before its own, which is what keeps batches large.
        comfortable: share of it beyond which a batch dips.
        batch_share: share of the SLO that a batch may take where deadlines wait.
        down: utilisation above which the level falls.
        up: utilisation of the next better level below which it may rise.
        patience: seconds for which that must hold; doubled, up to 16 times, whenever a rise did not last that long.
    """

    slo: float
    max_batch_tokens: int
    max_queue: int
    adaptive: bool = True
    planned_fraction: float = 0.8
    admission_fraction: float = 0.65
    downgrade_fraction: float = 0.5
    max_batch_fraction: float = 0.25
    downgrade_utilization: float = 0.85
    upgrade_utilization: float = 0.65
    upgrade_delay: float = 1.0


@dataclass(slots=True)
class _QualityLevel:
    """Where the quality stands, and what is needed to raise it."""

    index: int = 0
    headroom_since: float | None = None
    raised_at: float | None = None
    backoff: int = 1
    changes: int = 0


class Scheduler:
    """The queue of one compute.

    Args:
        ladder: names of the sizes that levels go through, best first.
        line: what a size takes now.
        rules: what to hold to.
    """

    def __init__(
        self, variants: Sequence[str], latency_of: Callable[[str], LatencyModel], config: SchedulerConfig
    ) -> None:
        self._variants, self._latency_of, self._config = tuple(variants), latency_of, config
        self._rank = {name: place for place, name in enumerate(self._variants)}
        self._lowest_level = len(self._variants) - 1
        self._queue: list[QueuedText] = []  # in the order in which they are due
        self._num_with_deadline = 0  # those with a deadline
        self._next_order = 0
        self._busy_until: float | None = None  # when the running batch will probably be finished; None: nothing runs
        self._plan: BatchPlan | None = None  # of all that waits; None: not made yet
        self._seconds_per_text = 0.0  # seconds a text, of the last batch
        self._load = OfferedLoad()
        self._level = _QualityLevel()

    @property
    def queued(self) -> int:
        """Texts that wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and self._busy_until is None

    @property
    def queued_tokens(self) -> int:
        """Their tokens."""
        return sum(row.tokens for row in self._queue)

    @property
    def variant(self) -> str:
        """The best size that answers requests without wishes at the moment."""
        return self._variants[self._level.index]

    @property
    def level_changes(self) -> int:
        """How often the level went up or down so far."""
        return self._level.changes

    def admit(self, request: SchedulingRequest, now: float) -> Refusal | None:
        """Take a request, or say why not. One that is refused leaves no trace but the load that it would have been."""
        choices = self._variants_by_level(request.variants)
        self._load.record(choices, num_texts=len(request.lengths), tokens=sum(request.lengths), now=now)
        if len(self._queue) + len(request.lengths) > self._config.max_queue:
            reason = f"{len(self._queue)} texts are waiting, at most {self._config.max_queue} may"
            return Refusal(reason, self._next_free_time(now) - now + self._seconds_per_text * len(self._queue))
        fresh = self._queued_texts(request, choices)
        if not self._num_with_deadline and request.deadline is None:
            self._plan = None
        elif (refusal := self._admit_to_plan(fresh, now)) is not None:
            return refusal
        for row in fresh:
            insort(self._queue, row)
        self._num_with_deadline += len(fresh) if request.deadline is not None else 0
        return None

    def next_batch(self, now: float) -> ScheduledBatch | None:
        """What to run now; None where nothing waits. The caller says when it is finished: `done`."""
        self._update_level(now)
        if not self._queue:
            return None
        plan = self._best_plan(now)
        batch = plan.pop_first()
        gone = {id(row) for row in batch.texts}
        self._queue = [row for row in self._queue if id(row) not in gone]
        self._num_with_deadline -= sum(row.has_deadline for row in batch.texts)
        self._busy_until, self._seconds_per_text = now + batch.seconds, batch.seconds / len(batch.texts)
        self._plan = plan if self._num_with_deadline and len(self._queue) <= _MAX_PLANNED_TEXTS else None
        rows = tuple((row.request_id, row.index) for row in batch.texts)
        return ScheduledBatch(batch.variant, rows, batch.tokens, batch.seconds)

    def complete_batch(self) -> None:
        """The batch that was running is finished."""
        self._busy_until = None

    def cancel(self, request_id: int) -> int:
        """Nobody waits for this request any more. Returns how many of its texts had not begun."""
        before = len(self._queue)
        self._queue = [row for row in self._queue if row.request_id != request_id]
        self._num_with_deadline, self._plan = sum(row.has_deadline for row in self._queue), None
        return before - len(self._queue)

    def expire(self, now: float) -> list[int]:
        """Take out the requests that can no longer be answered in time, and say which they were."""
        if not self._num_with_deadline:
            return []
        late = {
            row.request_id: None
            for row in self._queue
            if row.has_deadline and now + self._latency_of(row.variants_by_level[-1]).seconds(row.tokens) > row.deadline
        }
        for request in late:
            self.cancel(request)
        return list(late)

    def _variants_by_level(self, variants: tuple[str, ...]) -> VariantsByLevel:
        """The size that a request runs at, by level: the best that it allows and the level has, else its cheapest."""
        if len(variants) == 1:
            return variants * len(self._variants)
        return tuple(
            next((name for name in variants if self._rank[name] >= level), variants[-1])
            for level in range(len(self._variants))
        )

    def _queued_texts(self, request: SchedulingRequest, variants_by_level: VariantsByLevel) -> list[QueuedText]:
        rules, hard = self._config, request.deadline is not None
        time = rules.slo if request.deadline is None else request.deadline - request.arrival
        shares = (rules.planned_fraction, rules.admission_fraction, rules.downgrade_fraction)
        due, soon, comfort = (request.arrival + share * time for share in shares)
        deadline = inf if request.deadline is None else request.deadline
        first, self._next_order = self._next_order, self._next_order + len(request.lengths)
        return [
            QueuedText(due, soon, first + place, request.id, place, tokens, variants_by_level, hard, comfort, deadline)
            for place, tokens in enumerate(request.lengths)
        ]

    def _admit_to_plan(self, new_texts: Sequence[QueuedText], now: float) -> Refusal | None:
        """Put new texts into the plan, or say why somebody would be answered late."""
        start, due_last = (
            self._next_free_time(now),
            not self._queue or new_texts[0].planned_deadline >= self._queue[-1].planned_deadline,
        )
        if due_last and len(self._queue) >= _MAX_PLANNED_TEXTS:  # too many to plan, and nobody is behind these
            end = start + self._seconds_per_text * (len(self._queue) + len(new_texts))
            if new_texts[0].has_deadline and end > new_texts[0].admission_deadline:
                return self._refusal(new_texts, now, late_by=end - new_texts[0].admission_deadline)
            self._plan = None
            return None
        if self._plan is None or not self._queue:  # an empty plan may be of older speeds
            self._plan = self._make_plan(self._queue, self._lowest_level, start=start)
        plan = self._plan
        plan.start = start
        late = max(0.0, plan.lateness()[0])  # a hiccup may have come between
        if due_last and len(self._queue) + len(new_texts) <= _MAX_PLANNED_TEXTS:
            grown = plan.extended(new_texts)
            if grown is None and plan.level != self._lowest_level:
                cheaper = self._make_plan(self._queue, self._lowest_level, start=start)
                grown = cheaper.extended(new_texts) if cheaper.lateness()[0] <= late else None
            if grown is None:
                return self._refusal(
                    new_texts, now, late_by=plan.end + self._seconds_alone(new_texts) - new_texts[0].planned_deadline
                )
            self._plan = grown
            return None
        together = sorted([*self._queue, *new_texts])
        plan, behind = self._make_plan(together, self._lowest_level, start=start), together[_MAX_PLANNED_TEXTS:]
        excess = plan.lateness(behind)[0]
        if excess > late:
            return self._refusal(new_texts, now, late_by=excess)
        self._plan = None if behind else plan
        return None

    def _refusal(self, new_texts: Sequence[QueuedText], now: float, *, late_by: float) -> Refusal:
        need = self._seconds_alone(new_texts)
        if not new_texts[0].has_deadline:
            return Refusal("others that must be answered in time would be late", max(late_by, need))
        if now + need > new_texts[0].planned_deadline:
            shown = f"would take about {1000 * need:.0f} ms even if nothing else were waiting"
            return Refusal(shown, now + need - new_texts[0].planned_deadline)
        return Refusal("cannot be answered in time behind what is waiting", max(late_by, need))

    def _seconds_alone(self, new_texts: Sequence[QueuedText]) -> float:
        """Seconds for these if nothing else ran."""
        return self._make_plan(new_texts, self._lowest_level, start=0.0).end * max(
            1.0, len(new_texts) / _MAX_PLANNED_TEXTS
        )

    def _best_plan(self, now: float) -> BatchPlan:
        """The best level, not above that of the load, at which everybody is answered comfortably; else just in time."""
        if not self._num_with_deadline:
            return self._make_plan(self._queue[:_MAX_TEXTS_WITHOUT_DEADLINE], self._level.index, start=now)
        behind, in_time = self._queue[_MAX_PLANNED_TEXTS:], None
        for level in range(self._level.index, self._lowest_level + 1):
            plan = self._make_plan(self._queue, level, start=now)
            late, uncomfortable = plan.lateness(behind)
            if uncomfortable <= 0:
                return plan
            if late <= 0:
                in_time = plan
        if in_time is None and self._plan is not None and self._plan.batches:
            self._plan.start = now
            in_time = self._plan if self._plan.lateness()[0] <= 0 else None
        return in_time or plan

    def _make_plan(self, texts: Sequence[QueuedText], level: int, *, start: float) -> BatchPlan:
        """A plan of the first of the rows."""
        hurry = self._num_with_deadline or (texts and texts[0].has_deadline)
        longest = self._config.max_batch_fraction * self._config.slo if hurry else inf
        plan = BatchPlan(
            level, start, self._latency_of, max_batch_tokens=self._config.max_batch_tokens, max_batch_seconds=longest
        )
        for row in texts[:_MAX_PLANNED_TEXTS]:
            plan.add(row, allow_late=True)
        return plan

    def _next_free_time(self, now: float) -> float:
        """When the compute is free; a batch that takes longer than planned is taken to end any moment."""
        return now if self._busy_until is None else max(now, self._busy_until)

    def _update_level(self, now: float) -> None:
        """Let the level follow the load."""
        if not self._config.adaptive or len(self._variants) == 1:
            return
        level, rules = self._level, self._config
        if self._utilization(level.index, now) > rules.downgrade_utilization and level.index < len(self._variants) - 1:
            lower = range(level.index + 1, len(self._variants))
            fitting = (one for one in lower if self._utilization(one, now) <= rules.downgrade_utilization)
            if level.raised_at is not None and now - level.raised_at < rules.upgrade_delay * level.backoff:
                level.backoff = min(16, 2 * level.backoff)
            level.index, level.headroom_since = next(fitting, lower[-1]), None
            level.changes += 1
        elif level.index > 0 and self._utilization(level.index - 1, now) < rules.upgrade_utilization:
            if level.headroom_since is None:
                level.headroom_since = now
            elif now - level.headroom_since >= rules.upgrade_delay * level.backoff:
                level.index, level.headroom_since, level.raised_at = level.index - 1, None, now
                level.changes += 1
        else:
            level.headroom_since = None
            if level.raised_at is not None and now - level.raised_at > 4 * rules.upgrade_delay * level.backoff:
                level.backoff = max(1, level.backoff // 2)
                level.raised_at = now

    def _utilization(self, level: int, now: float) -> float:
        return self._load.utilization(
            level, self._latency_of, batch_seconds=self._config.max_batch_fraction * self._config.slo, now=now
        )
