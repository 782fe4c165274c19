"""Puts waiting texts into batches and says when each would be finished, if all ran at one level of quality.

A plan takes texts in the order in which they are due. A text joins the batch that it lengthens least, as long as nobody
is late for it and it is no slower than running by itself; else it begins a new one at the end. Adding one text costs a
look at each batch, and the first batch of a plan can be taken off without changing the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt

from limbert.serve.latency_model import LatencyModel, VariantsByLevel

_MAX_OPEN_BATCHES = 32  # batches that a text may join
_LENGTH_SORTING_SCALE = 6  # waiting texts among which batches begin to be sorted by length


@dataclass(slots=True)
class QueuedText:
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

    planned_deadline: float
    admission_deadline: float
    order: int
    request_id: int
    index: int
    tokens: int
    variants_by_level: VariantsByLevel
    has_deadline: bool
    downgrade_deadline: float
    deadline: float

    def __lt__(self, other: "QueuedText") -> bool:
        return (self.planned_deadline, self.order) < (other.planned_deadline, other.order)


@dataclass(slots=True)
class PlannedBatch:
    """Texts that would run together: the size, padded tokens and seconds, and the first times that matter in it."""

    variant: str
    texts: list[QueuedText]
    max_length: int
    tokens: int
    seconds: float
    planned_deadline: float
    downgrade_deadline: float


@dataclass(slots=True)
class BatchPlan:
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
    latency_of: Callable[[str], LatencyModel]
    max_batch_tokens: int
    max_batch_seconds: float
    batches: list[PlannedBatch] = field(default_factory=list)
    seconds: float = 0.0
    num_texts: int = 0
    _latency_models: dict[str, LatencyModel] = field(default_factory=dict)

    def add(self, text: QueuedText, *, allow_late: bool = False) -> bool:
        """Put in a text that is due after all others, unless somebody would be late for it, itself included.

        Args:
            row: the text.
            late: put it in even if it will be late.

        Returns:
            Whether it is in.
        """
        size = text.variants_by_level[self.level]
        line = self._latency_models.get(size)
        if line is None:
            line = self._latency_models[size] = self.latency_of(size)
        alone = line.fixed + line.per_token * text.tokens
        # The more waits, the more company a batch of its own will get, and the less padding its fixed cost is worth.
        best, least = None, line.per_token * text.tokens + line.fixed / sqrt(1 + self.num_texts / _LENGTH_SORTING_SCALE)
        slack = inf  # of this batch and those behind it
        time = self.end
        for place in range(len(self.batches) - 1, -1, -1):
            batch = self.batches[place]
            if batch.planned_deadline - time < slack:
                slack = batch.planned_deadline - time
            if place < _MAX_OPEN_BATCHES and batch.variant == size:
                longest = text.tokens if text.tokens > batch.max_length else batch.max_length
                tokens = longest * (len(batch.texts) + 1)
                extra = line.per_token * (tokens - batch.tokens)
                if (
                    extra <= least
                    and tokens <= self.max_batch_tokens
                    and batch.seconds + extra <= self.max_batch_seconds
                    and extra <= slack + 1e-12
                    and (not text.has_deadline or time + extra <= text.planned_deadline)
                ):
                    best, least = batch, extra
            time -= batch.seconds
        due, comfort = (text.planned_deadline, text.downgrade_deadline) if text.has_deadline else (inf, inf)
        if best is None:
            if (
                text.has_deadline
                and not allow_late
                and self.end + alone > (text.admission_deadline if self.batches else text.planned_deadline)
            ):
                return False
            self.num_texts += 1
            self.seconds += alone
            self.batches.append(PlannedBatch(size, [text], text.tokens, text.tokens, alone, due, comfort))
            return True
        self.num_texts += 1
        self.seconds += least
        best.texts.append(text)
        best.max_length = max(best.max_length, text.tokens)
        best.tokens = best.max_length * len(best.texts)
        best.seconds += least
        best.planned_deadline, best.downgrade_deadline = (
            min(best.planned_deadline, due),
            min(best.downgrade_deadline, comfort),
        )
        return True

    @property
    def end(self) -> float:
        """When the last batch would be finished."""
        return self.start + self.seconds

    def extended(self, texts: Sequence[QueuedText]) -> "BatchPlan | None":
        """The plan with these texts, which are due after all others; None where somebody would be late for them.

        One text is put into this very plan.
        """
        plan = self
        if len(texts) > 1:
            batches = [replace(batch, texts=list(batch.texts)) for batch in self.batches]
            plan = replace(self, batches=batches, _latency_models=dict(self._latency_models))
        return plan if all(plan.add(row) for row in texts) else None

    def pop_first(self) -> PlannedBatch:
        """The first batch, to be run; the others stay as they are planned."""
        batch = self.batches.pop(0)
        self.start += batch.seconds
        self.seconds -= batch.seconds
        self.num_texts -= len(batch.texts)
        return batch

    def lateness(self, unplanned: Sequence[QueuedText] = ()) -> tuple[float, float]:
        """By how much the worst misses its due time and its comfort; below 0 where nobody does.

        Args:
            behind: texts behind the plan, taken to go at its pace.
        """
        time, late, uncomfortable = self.start, -inf, -inf
        for batch in self.batches:
            time += batch.seconds
            late, uncomfortable = (
                max(late, time - batch.planned_deadline),
                max(uncomfortable, time - batch.downgrade_deadline),
            )
        if unplanned:
            pace = self.seconds / max(1, self.num_texts)
            for row in unplanned:
                time += pace
                if row.has_deadline:
                    late, uncomfortable = (
                        max(late, time - row.planned_deadline),
                        max(uncomfortable, time - row.downgrade_deadline),
                    )
        return late, uncomfortable
