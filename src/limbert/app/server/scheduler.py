"""Which texts run next, at which size, and which requests are refused: a state machine without clock, threads or torch.

Time comes in as an argument, in seconds. Requests wait in the order of when they are due. A batch starts with the one
that is due first, and takes along others of its size as long as that is no slower than running them by themselves. What
would happen next is found out by running the same rules ahead (`_drain`), so that a request is taken only if it and all
that were taken before can be answered in time, and every batch runs at the best size at which this stays so.

There are two reasons to run below the best size. The *level* follows the load over about a second, down at once, up
one step at a time and only when there is room for a while. And a single batch *dips* below the level where the queue of
that moment would otherwise come close to its deadlines.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from limbert.app.server.load import Choices, Load
from limbert.app.server.speed import Line

_WINDOW = 64  # waiting texts that a batch is put together from
_AHEAD = 256  # waiting texts that are run ahead one by one; those behind are taken to go at the same pace


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
    comfortable: float = 0.5
    batch_share: float = 0.25
    down: float = 0.85
    up: float = 0.65
    patience: float = 1.0


@dataclass(slots=True)
class _Row:
    """One waiting text."""

    due: float
    order: int
    request: Request
    place: int
    tokens: int
    choices: Choices
    comfort: float  # when it should be finished at the latest, so that no batch dips
    hard: bool

    def __lt__(self, other: "_Row") -> bool:
        return (self.due, self.order) < (other.due, other.order)


@dataclass
class _Level:
    """Where the quality stands, and what is needed to raise it."""

    value: int = 0
    room_since: float | None = None
    raised_at: float | None = None
    backoff: int = 1
    changes: int = field(default=0)


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
        self._rows: list[_Row] = []
        self._hard = 0  # waiting texts with a deadline
        self._order = 0
        self._free_at = 0.0  # when the running batch will probably be finished
        self._running = False
        self._load = Load()
        self._level = _Level()

    @property
    def queued(self) -> int:
        """Texts that wait."""
        return len(self._rows)

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
            wait = self._drain(self._rows, len(self._ladder) - 1, now=now)[0] - now
            return Refusal(f"{len(self._rows)} texts are waiting, at most {self._rules.max_queue} may", wait)
        rows = self._as_rows(request, choices)
        if self._hard or request.deadline is not None:
            refusal = self._too_late(rows, now)
            if refusal is not None:
                return refusal
        for row in rows:
            insort(self._rows, row)
        self._hard += len(rows) if request.deadline is not None else 0
        return None

    def next(self, now: float) -> Batch | None:
        """What to run now; None where nothing waits. The caller says when it is finished: `done`."""
        self._follow(now)
        if not self._rows:
            return None
        level = self._level.value
        if self._hard:
            level = self._best_level(now)
        picked, size, tokens, seconds = self._form(self._rows[:_WINDOW], level, start=now, hurry=self._hard > 0)
        rows = [self._rows[place] for place in picked]
        gone = {*picked}
        self._rows = [row for place, row in enumerate(self._rows[:_WINDOW]) if place not in gone] + self._rows[_WINDOW:]
        self._hard -= sum(row.hard for row in rows)
        self._running, self._free_at = True, now + seconds
        return Batch(size, tuple((row.request.id, row.place) for row in rows), tokens, seconds)

    def done(self, now: float) -> None:
        """The batch that was running is finished."""
        self._running, self._free_at = False, now

    def cancel(self, request: int) -> int:
        """Nobody waits for this request any more. Returns how many of its texts had not begun."""
        before = len(self._rows)
        self._rows = [row for row in self._rows if row.request.id != request]
        self._hard = sum(row.hard for row in self._rows)
        return before - len(self._rows)

    def expire(self, now: float) -> list[int]:
        """Take out the requests that can no longer be answered in time, and say which they were."""
        if not self._hard:
            return []
        late = {
            row.request.id: None
            for row in self._rows
            if row.request.deadline is not None
            and now + self._line(row.choices[-1]).at(row.tokens) > row.request.deadline
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

    def _as_rows(self, request: Request, choices: Choices) -> list[_Row]:
        rules, hard = self._rules, request.deadline is not None
        time = rules.slo if request.deadline is None else rules.planned * (request.deadline - request.arrival)
        comfort = request.arrival + time * rules.comfortable / rules.planned
        rows = []
        for place, tokens in enumerate(request.lengths):
            self._order += 1
            rows.append(
                _Row(request.arrival + time, self._order, request, place, tokens, choices, comfort=comfort, hard=hard)
            )
        return rows

    def _too_late(self, fresh: list[_Row], now: float) -> Refusal | None:
        """Why these cannot be taken without somebody being answered late."""
        rows = sorted([*self._rows, *fresh])
        cheapest = len(self._ladder) - 1
        end, excess, _ = self._drain(rows, cheapest, now=now)
        if excess <= 0 or (self._level.value != cheapest and self._drain(rows, self._level.value, now=now)[1] <= 0):
            return None
        if not fresh[0].hard:
            return Refusal("the queue is full of requests that must be answered in time", end - now)
        alone = self._drain(fresh, cheapest, now=now, start=now)[1]
        if alone > 0:
            need = 1000 * (alone + fresh[0].due - now)
            return Refusal(f"would take about {need:.0f} ms even if nothing else were waiting", alone)
        return Refusal("cannot be answered in time behind what is waiting", excess)

    def _best_level(self, now: float) -> int:
        """The best level, not above that of the load, at which everybody is answered comfortably; else just in time."""
        levels = range(self._level.value, len(self._ladder))
        in_time = []
        for level in levels:
            _, excess, discomfort = self._drain(self._rows, level, now=now, start=now)
            if discomfort <= 0:
                return level
            if excess <= 0:
                in_time.append(level)
        return in_time[-1] if in_time else levels[-1]

    def _drain(
        self, rows: Sequence[_Row], level: int, *, now: float, start: float | None = None
    ) -> tuple[float, float, float]:
        """Run ahead: when all of these are finished, and by how much the worst misses its due time and its comfort.

        Args:
            rows: in the order in which they are due.
            level: that they all run at.
            now: the present.
            start: when the compute is free; None: when the running batch is finished.
        """
        time = self._free_from(now) if start is None else start
        begin, left, hurry = time, list(rows[:_AHEAD]), any(row.hard for row in rows)
        excess = discomfort = float("-inf")
        while left:
            picked, _, _, seconds = self._form(left[:_WINDOW], level, start=time, hurry=hurry)
            time += seconds
            for place in picked:
                row = left[place]
                if row.hard:
                    excess, discomfort = max(excess, time - row.due), max(discomfort, time - row.comfort)
            for place in reversed(picked):
                del left[place]
        if len(rows) > _AHEAD:
            pace = (time - begin) / _AHEAD
            for row in rows[_AHEAD:]:
                time += pace
                if row.hard:
                    excess, discomfort = max(excess, time - row.due), max(discomfort, time - row.comfort)
        return time, excess, discomfort

    def _free_from(self, now: float) -> float:
        """When the compute is free; a batch that takes longer than planned is taken to end any moment."""
        return max(now, self._free_at) if self._running else now

    def _form(
        self, rows: Sequence[_Row], level: int, *, start: float, hurry: bool
    ) -> tuple[list[int], str, int, float]:
        """The batch that begins with the first of the rows: their places, the size, padded tokens and seconds.

        Args:
            rows: in the order in which they are due.
            level: that they run at.
            start: when.
            hurry: whether anybody waits for a deadline.
        """
        head, rules = rows[0], self._rules
        size = head.choices[level]
        line = self._line(size)
        fixed, per_token = line.fixed, line.per_token
        longest, tokens, seconds, picked = head.tokens, head.tokens, line.at(head.tokens), [0]
        limit = rules.batch_share * rules.slo if hurry else float("inf")
        if head.hard:
            limit = min(limit, head.due - start)
        for place in range(1, len(rows)):
            row = rows[place]
            if row.choices[level] != size:
                continue
            wider = max(longest, row.tokens)
            together = (len(picked) + 1) * wider
            if together > rules.max_batch_tokens or fixed + per_token * together > limit:
                continue
            if per_token * (together - tokens) > fixed + per_token * row.tokens:
                continue  # padding would cost more than running it by itself
            picked.append(place)
            longest, tokens, seconds = wider, together, fixed + per_token * together
        return picked, size, tokens, seconds

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
