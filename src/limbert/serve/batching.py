"""Puts waiting texts into batches and says when each would be finished, if all ran at one level of quality.

A plan takes texts in the order in which they are due. A text joins the batch that it lengthens least, as long as nobody
is late for it and it is no slower than running by itself; else it begins a new one at the end. Adding one text costs a
look at each batch, and the first batch of a plan can be taken off without changing the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt

from limbert.serve.latency_model import Choices, Line

_OPEN = 32  # batches that a text may join
_FEW = 6  # waiting texts among which batches begin to be sorted by length


@dataclass(slots=True)
class Waiting:
    """One waiting text.

    Attributes:
        due: when it should be finished.
        soon: when it should be finished as things stand when it comes; later ones may delay it up to due.
        order: in which it came, among those due at the same time.
        request: that it belongs to.
        place: in the request.
        tokens: of it.
        choices: the size that it runs at, by level.
        hard: whether it must not be finished later than due.
        comfort: when it should be finished so that nobody needs to hurry.
        deadline: when its answer is worth nothing any more.
    """

    due: float
    soon: float
    order: int
    request: int
    place: int
    tokens: int
    choices: Choices
    hard: bool
    comfort: float
    deadline: float

    def __lt__(self, other: "Waiting") -> bool:
        return (self.due, self.order) < (other.due, other.order)


@dataclass(slots=True)
class Together:
    """Texts that would run together: the size, padded tokens and seconds, and the first times that matter in it."""

    size: str
    rows: list[Waiting]
    longest: int
    tokens: int
    seconds: float
    due: float
    comfort: float


@dataclass(slots=True)
class Plan:
    """Batches in the order in which they would run.

    Attributes:
        level: that all run at.
        start: when the first begins.
        line: what a size takes.
        max_tokens: a batch, padding included.
        max_seconds: a batch; a text that takes longer runs alone.
        batches: so far.
        seconds: that they take.
        rows: texts in them.
    """

    level: int
    start: float
    line: Callable[[str], Line]
    max_tokens: int
    max_seconds: float
    batches: list[Together] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    _lines: dict[str, Line] = field(default_factory=dict)

    def add(self, row: Waiting, *, late: bool = False) -> bool:
        """Put in a text that is due after all others, unless somebody would be late for it, itself included.

        Args:
            row: the text.
            late: put it in even if it will be late.

        Returns:
            Whether it is in.
        """
        size = row.choices[self.level]
        line = self._lines.get(size)
        if line is None:
            line = self._lines[size] = self.line(size)
        alone = line.fixed + line.per_token * row.tokens
        # The more waits, the more company a batch of its own will get, and the less padding its fixed cost is worth.
        best, least = None, line.per_token * row.tokens + line.fixed / sqrt(1 + self.rows / _FEW)
        slack = inf  # of this batch and those behind it
        time = self.end
        for place in range(len(self.batches) - 1, -1, -1):
            batch = self.batches[place]
            if batch.due - time < slack:
                slack = batch.due - time
            if place < _OPEN and batch.size == size:
                longest = row.tokens if row.tokens > batch.longest else batch.longest
                tokens = longest * (len(batch.rows) + 1)
                extra = line.per_token * (tokens - batch.tokens)
                if (
                    extra <= least
                    and tokens <= self.max_tokens
                    and batch.seconds + extra <= self.max_seconds
                    and extra <= slack + 1e-12
                    and (not row.hard or time + extra <= row.due)
                ):
                    best, least = batch, extra
            time -= batch.seconds
        due, comfort = (row.due, row.comfort) if row.hard else (inf, inf)
        if best is None:
            if row.hard and not late and self.end + alone > (row.soon if self.batches else row.due):
                return False
            self.rows += 1
            self.seconds += alone
            self.batches.append(Together(size, [row], row.tokens, row.tokens, alone, due, comfort))
            return True
        self.rows += 1
        self.seconds += least
        best.rows.append(row)
        best.longest = max(best.longest, row.tokens)
        best.tokens = best.longest * len(best.rows)
        best.seconds += least
        best.due, best.comfort = min(best.due, due), min(best.comfort, comfort)
        return True

    @property
    def end(self) -> float:
        """When the last batch would be finished."""
        return self.start + self.seconds

    def grown(self, rows: Sequence[Waiting]) -> "Plan | None":
        """The plan with these texts, which are due after all others; None where somebody would be late for them.

        One text is put into this very plan.
        """
        plan = self
        if len(rows) > 1:
            batches = [replace(batch, rows=list(batch.rows)) for batch in self.batches]
            plan = replace(self, batches=batches, _lines=dict(self._lines))
        return plan if all(plan.add(row) for row in rows) else None

    def take(self) -> Together:
        """The first batch, to be run; the others stay as they are planned."""
        batch = self.batches.pop(0)
        self.start += batch.seconds
        self.seconds -= batch.seconds
        self.rows -= len(batch.rows)
        return batch

    def lateness(self, behind: Sequence[Waiting] = ()) -> tuple[float, float]:
        """By how much the worst misses its due time and its comfort; below 0 where nobody does.

        Args:
            behind: texts behind the plan, taken to go at its pace.
        """
        time, late, uncomfortable = self.start, -inf, -inf
        for batch in self.batches:
            time += batch.seconds
            late, uncomfortable = max(late, time - batch.due), max(uncomfortable, time - batch.comfort)
        if behind:
            pace = self.seconds / max(1, self.rows)
            for row in behind:
                time += pace
                if row.hard:
                    late, uncomfortable = max(late, time - row.due), max(uncomfortable, time - row.comfort)
        return late, uncomfortable
