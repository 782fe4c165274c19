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

from limbert.serve.batching import Plan, Waiting
from limbert.serve.latency_model import Choices, Line, Load

_AT_ONCE = 64  # waiting texts that the next batch is put together from where nobody has a deadline
_AHEAD = 256  # waiting texts that are planned one by one; those behind are taken to go at the same pace


@dataclass(frozen=True)
class Request:
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
    sizes: tuple[str, ...]
    arrival: float
    deadline: float | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a request was not taken, and in how many seconds it probably would be."""

    reason: str
    retry_after: float


@dataclass(frozen=True)
class Batch:
    """What runs together.

    Attributes:
        size: at which.
        rows: ``(request, place of the text in it)``.
        tokens: padding included.
        seconds: that it will probably take.
    """

    size: str
    rows: tuple[tuple[int, int], ...]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Rules:
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
    planned: float = 0.8
    taken: float = 0.65
    comfortable: float = 0.5
    batch_share: float = 0.25
    down: float = 0.85
    up: float = 0.65
    patience: float = 1.0


@dataclass(slots=True)
class _Level:
    """Where the quality stands, and what is needed to raise it."""

    value: int = 0
    room_since: float | None = None
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

    def __init__(self, ladder: Sequence[str], line: Callable[[str], Line], rules: Rules) -> None:
        self._ladder, self._line, self._rules = tuple(ladder), line, rules
        self._rank = {name: place for place, name in enumerate(self._ladder)}
        self._cheapest = len(self._ladder) - 1
        self._rows: list[Waiting] = []  # in the order in which they are due
        self._hard = 0  # those with a deadline
        self._order = 0
        self._free_at: float | None = None  # when the running batch will probably be finished; None: nothing runs
        self._plan: Plan | None = None  # of all that waits; None: not made yet
        self._pace = 0.0  # seconds a text, of the last batch
        self._load = Load()
        self._level = _Level()

    @property
    def queued(self) -> int:
        """Texts that wait."""
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._rows and self._free_at is None

    @property
    def queued_tokens(self) -> int:
        """Their tokens."""
        return sum(row.tokens for row in self._rows)

    @property
    def size(self) -> str:
        """The best size that answers requests without wishes at the moment."""
        return self._ladder[self._level.value]

    @property
    def level_changes(self) -> int:
        """How often the level went up or down so far."""
        return self._level.changes

    def offer(self, request: Request, now: float) -> Refusal | None:
        """Take a request, or say why not. One that is refused leaves no trace but the load that it would have been."""
        choices = self._choices(request.sizes)
        self._load.add(choices, rows=len(request.lengths), tokens=sum(request.lengths), now=now)
        if len(self._rows) + len(request.lengths) > self._rules.max_queue:
            reason = f"{len(self._rows)} texts are waiting, at most {self._rules.max_queue} may"
            return Refusal(reason, self._free_from(now) - now + self._pace * len(self._rows))
        fresh = self._waiting(request, choices)
        if not self._hard and request.deadline is None:
            self._plan = None
        elif (refusal := self._plan_in(fresh, now)) is not None:
            return refusal
        for row in fresh:
            insort(self._rows, row)
        self._hard += len(fresh) if request.deadline is not None else 0
        return None

    def next(self, now: float) -> Batch | None:
        """What to run now; None where nothing waits. The caller says when it is finished: `done`."""
        self._follow(now)
        if not self._rows:
            return None
        plan = self._best_plan(now)
        batch = plan.take()
        gone = {id(row) for row in batch.rows}
        self._rows = [row for row in self._rows if id(row) not in gone]
        self._hard -= sum(row.hard for row in batch.rows)
        self._free_at, self._pace = now + batch.seconds, batch.seconds / len(batch.rows)
        self._plan = plan if self._hard and len(self._rows) <= _AHEAD else None
        rows = tuple((row.request, row.place) for row in batch.rows)
        return Batch(batch.size, rows, batch.tokens, batch.seconds)

    def done(self) -> None:
        """The batch that was running is finished."""
        self._free_at = None

    def cancel(self, request: int) -> int:
        """Nobody waits for this request any more. Returns how many of its texts had not begun."""
        before = len(self._rows)
        self._rows = [row for row in self._rows if row.request != request]
        self._hard, self._plan = sum(row.hard for row in self._rows), None
        return before - len(self._rows)

    def expire(self, now: float) -> list[int]:
        """Take out the requests that can no longer be answered in time, and say which they were."""
        if not self._hard:
            return []
        late = {
            row.request: None
            for row in self._rows
            if row.hard and now + self._line(row.choices[-1]).at(row.tokens) > row.deadline
        }
        for request in late:
            self.cancel(request)
        return list(late)

    def _choices(self, sizes: tuple[str, ...]) -> Choices:
        """The size that a request runs at, by level: the best that it allows and the level has, else its cheapest."""
        if len(sizes) == 1:
            return sizes * len(self._ladder)
        return tuple(
            next((name for name in sizes if self._rank[name] >= level), sizes[-1]) for level in range(len(self._ladder))
        )

    def _waiting(self, request: Request, choices: Choices) -> list[Waiting]:
        rules, hard = self._rules, request.deadline is not None
        time = rules.slo if request.deadline is None else request.deadline - request.arrival
        shares = (rules.planned, rules.taken, rules.comfortable)
        due, soon, comfort = (request.arrival + share * time for share in shares)
        deadline = inf if request.deadline is None else request.deadline
        first, self._order = self._order, self._order + len(request.lengths)
        return [
            Waiting(due, soon, first + place, request.id, place, tokens, choices, hard, comfort, deadline)
            for place, tokens in enumerate(request.lengths)
        ]

    def _plan_in(self, fresh: Sequence[Waiting], now: float) -> Refusal | None:
        """Put new texts into the plan, or say why somebody would be answered late."""
        start, due_last = self._free_from(now), not self._rows or fresh[0].due >= self._rows[-1].due
        if due_last and len(self._rows) >= _AHEAD:  # too many to plan, and nobody is behind these
            end = start + self._pace * (len(self._rows) + len(fresh))
            if fresh[0].hard and end > fresh[0].soon:
                return self._refusal(fresh, now, excess=end - fresh[0].soon)
            self._plan = None
            return None
        if self._plan is None or not self._rows:  # an empty plan may be of older speeds
            self._plan = self._planned(self._rows, self._cheapest, start=start)
        plan = self._plan
        plan.start = start
        late = max(0.0, plan.lateness()[0])  # a hiccup may have come between
        if due_last and len(self._rows) + len(fresh) <= _AHEAD:
            grown = plan.grown(fresh)
            if grown is None and plan.level != self._cheapest:
                cheaper = self._planned(self._rows, self._cheapest, start=start)
                grown = cheaper.grown(fresh) if cheaper.lateness()[0] <= late else None
            if grown is None:
                return self._refusal(fresh, now, excess=plan.end + self._alone(fresh) - fresh[0].due)
            self._plan = grown
            return None
        together = sorted([*self._rows, *fresh])
        plan, behind = self._planned(together, self._cheapest, start=start), together[_AHEAD:]
        excess = plan.lateness(behind)[0]
        if excess > late:
            return self._refusal(fresh, now, excess=excess)
        self._plan = None if behind else plan
        return None

    def _refusal(self, fresh: Sequence[Waiting], now: float, *, excess: float) -> Refusal:
        need = self._alone(fresh)
        if not fresh[0].hard:
            return Refusal("others that must be answered in time would be late", max(excess, need))
        if now + need > fresh[0].due:
            shown = f"would take about {1000 * need:.0f} ms even if nothing else were waiting"
            return Refusal(shown, now + need - fresh[0].due)
        return Refusal("cannot be answered in time behind what is waiting", max(excess, need))

    def _alone(self, fresh: Sequence[Waiting]) -> float:
        """Seconds for these if nothing else ran."""
        return self._planned(fresh, self._cheapest, start=0.0).end * max(1.0, len(fresh) / _AHEAD)

    def _best_plan(self, now: float) -> Plan:
        """The best level, not above that of the load, at which everybody is answered comfortably; else just in time."""
        if not self._hard:
            return self._planned(self._rows[:_AT_ONCE], self._level.value, start=now)
        behind, in_time = self._rows[_AHEAD:], None
        for level in range(self._level.value, self._cheapest + 1):
            plan = self._planned(self._rows, level, start=now)
            late, uncomfortable = plan.lateness(behind)
            if uncomfortable <= 0:
                return plan
            if late <= 0:
                in_time = plan
        if in_time is None and self._plan is not None and self._plan.batches:
            self._plan.start = now
            in_time = self._plan if self._plan.lateness()[0] <= 0 else None
        return in_time or plan

    def _planned(self, rows: Sequence[Waiting], level: int, *, start: float) -> Plan:
        """A plan of the first of the rows."""
        hurry = self._hard or (rows and rows[0].hard)
        longest = self._rules.batch_share * self._rules.slo if hurry else inf
        plan = Plan(level, start, self._line, max_tokens=self._rules.max_batch_tokens, max_seconds=longest)
        for row in rows[:_AHEAD]:
            plan.add(row, late=True)
        return plan

    def _free_from(self, now: float) -> float:
        """When the compute is free; a batch that takes longer than planned is taken to end any moment."""
        return now if self._free_at is None else max(now, self._free_at)

    def _follow(self, now: float) -> None:
        """Let the level follow the load."""
        if not self._rules.adaptive or len(self._ladder) == 1:
            return
        level, rules = self._level, self._rules
        if self._utilisation(level.value, now) > rules.down and level.value < len(self._ladder) - 1:
            lower = range(level.value + 1, len(self._ladder))
            fitting = (one for one in lower if self._utilisation(one, now) <= rules.down)
            if level.raised_at is not None and now - level.raised_at < rules.patience * level.backoff:
                level.backoff = min(16, 2 * level.backoff)
            level.value, level.room_since = next(fitting, lower[-1]), None
            level.changes += 1
        elif level.value > 0 and self._utilisation(level.value - 1, now) < rules.up:
            if level.room_since is None:
                level.room_since = now
            elif now - level.room_since >= rules.patience * level.backoff:
                level.value, level.room_since, level.raised_at = level.value - 1, None, now
                level.changes += 1
        else:
            level.room_since = None
            if level.raised_at is not None and now - level.raised_at > 4 * rules.patience * level.backoff:
                level.backoff = max(1, level.backoff // 2)
                level.raised_at = now

    def _utilisation(self, level: int, now: float) -> float:
        return self._load.utilisation(level, self._line, batch=self._rules.batch_share * self._rules.slo, now=now)
