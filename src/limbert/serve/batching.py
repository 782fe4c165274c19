"""Groups queued texts into batches and predicts when each batch ends, with all texts at one quality level.

A plan takes texts by planned deadline. A text joins the batch that it lengthens least, as long as no text becomes late
and it is no slower than a batch of its own; otherwise it opens a new batch at the end. Adding a text looks at each
batch once; the first batch can be removed without changing the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import TYPE_CHECKING

from limbert.serve.latency_model import LatencyModel, VariantsByLevel

if TYPE_CHECKING:
    from limbert.serve.errors import ServeError
    from limbert.serve.runner import RequestOutput, TextOutput
    from limbert.serve.tokenizer import TokenizedText

_MAX_OPEN_BATCHES = 32  # only the first batches of a plan take more texts
_LENGTH_SORTING_SCALE = 6  # queued texts from which on batches are increasingly sorted by length


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request from its arrival to its response. Times are seconds of one monotonic clock."""

    lengths: Sequence[int]  # tokens of each text
    variants: tuple[str, ...]  # that may run it, best first
    arrival: float
    deadline: float = inf  # latest completion; infinity: none
    texts: Sequence["TokenizedText"] = ()
    on_done: Callable[["RequestOutput | ServeError"], None] = lambda result: None  # called once, from any thread
    tokenization_seconds: float = 0.0
    queued_at: float = 0.0
    started_at: float = 0.0  # when its last batch began
    outputs: list["TextOutput | None"] = field(default_factory=list)  # by text; None: not run yet
    remaining: int = 0  # texts without output
    cancelled: bool = False
    # Set by the scheduler:
    variants_by_level: VariantsByLevel = ()  # the variant that it runs at, by quality level
    planned_deadline: float = 0.0  # when it should be complete; leaves time for what a plan cannot know
    admission_deadline: float = 0.0  # when it must be complete as planned on arrival; later requests may delay it
    downgrade_deadline: float = 0.0  # when it must be complete for the plan to stay at its quality level

    @property
    def has_deadline(self) -> bool:
        """Whether it may be late."""
        return self.deadline < inf


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text of a request: its index there, its tokens, and its order of arrival."""

    request: PendingRequest
    index: int
    tokens: int
    order: int

    def __lt__(self, other: "QueuedText") -> bool:
        return (self.request.planned_deadline, self.order) < (other.request.planned_deadline, other.order)


@dataclass(slots=True)
class PlannedBatch:
    """A batch to run: texts of one variant, tokens with padding, predicted seconds, and its earliest deadlines."""

    variant: str
    texts: list[QueuedText]
    max_length: int
    tokens: int
    seconds: float
    planned_deadline: float = inf
    downgrade_deadline: float = inf


@dataclass(slots=True)
class BatchPlan:
    """Batches in the order in which they will run; a text over a limit runs alone."""

    level: int  # quality level of all texts
    start: float  # when the first batch begins
    latency_of: Callable[[str], LatencyModel]  # by variant name
    max_batch_tokens: int  # padding included
    max_batch_seconds: float
    batches: list[PlannedBatch] = field(default_factory=list)
    seconds: float = 0.0  # of all batches
    num_texts: int = 0  # in all batches
    _latency_models: dict[str, LatencyModel] = field(default_factory=dict)

    def add(self, text: QueuedText, *, allow_late: bool = False) -> bool:
        """Add a text whose planned deadline is not before any other's, unless a text would be late.

        Args:
            text: the text.
            allow_late: add it even if it will be late itself.
        """
        request, length = text.request, text.tokens
        variant = request.variants_by_level[self.level]
        if variant not in self._latency_models:
            self._latency_models[variant] = self.latency_of(variant)
        model = self._latency_models[variant]
        planned, has_deadline = request.planned_deadline, request.has_deadline
        # The longer the queue, the fuller a batch of its own will become, and the less padding its fixed cost is worth.
        best, least = None, model.per_token * length + model.fixed / sqrt(1 + self.num_texts / _LENGTH_SORTING_SCALE)
        slack, end = inf, self.end  # slack of this batch and all behind it
        for index in range(len(self.batches) - 1, -1, -1):
            batch = self.batches[index]
            slack = min(slack, batch.planned_deadline - end)
            if index < _MAX_OPEN_BATCHES and batch.variant == variant:
                tokens = max(length, batch.max_length) * (len(batch.texts) + 1)
                extra = model.per_token * (tokens - batch.tokens)
                if (
                    extra <= least
                    and tokens <= self.max_batch_tokens
                    and batch.seconds + extra <= self.max_batch_seconds
                    and extra <= slack + 1e-12
                    and (not has_deadline or end + extra <= planned)
                ):
                    best, least = batch, extra
            end -= batch.seconds
        if best is None:
            least = model.seconds(length)
            limit = request.admission_deadline if self.batches else planned
            if has_deadline and not allow_late and self.end + least > limit:
                return False
            best = PlannedBatch(variant, [], 0, 0, 0.0)
            self.batches.append(best)
        best.texts.append(text)
        best.max_length = max(best.max_length, length)
        best.tokens = best.max_length * len(best.texts)
        best.seconds += least
        if has_deadline:
            best.planned_deadline = min(best.planned_deadline, planned)
            best.downgrade_deadline = min(best.downgrade_deadline, request.downgrade_deadline)
        self.num_texts += 1
        self.seconds += least
        return True

    @property
    def end(self) -> float:
        """When the last batch ends."""
        return self.start + self.seconds

    def extended(self, texts: Sequence[QueuedText]) -> "BatchPlan | None":
        """The plan with these texts, whose planned deadlines are the last; None where a text would be late.

        A single text is added in place.
        """
        plan = self
        if len(texts) > 1:
            batches = [replace(batch, texts=list(batch.texts)) for batch in self.batches]
            plan = replace(self, batches=batches, _latency_models=dict(self._latency_models))
        return plan if all(plan.add(text) for text in texts) else None

    def pop_first(self) -> PlannedBatch:
        """Remove the first batch, to run it; the others stay as planned."""
        batch = self.batches.pop(0)
        self.start += batch.seconds
        self.seconds -= batch.seconds
        self.num_texts -= len(batch.texts)
        return batch

    def lateness(self, unplanned: Sequence[QueuedText] = ()) -> tuple[float, float]:
        """Seconds by which the worst text misses its planned and its downgrade deadline; negative: all are met.

        Texts behind the plan (``unplanned``) are assumed to run at its pace.
        """
        end, late, downgrade = self.start, -inf, -inf
        for batch in self.batches:
            end += batch.seconds
            late = max(late, end - batch.planned_deadline)
            downgrade = max(downgrade, end - batch.downgrade_deadline)
        pace = self.seconds / max(1, self.num_texts)
        for text in unplanned:
            end += pace
            if text.request.has_deadline:
                late = max(late, end - text.request.planned_deadline)
                downgrade = max(downgrade, end - text.request.downgrade_deadline)
        return late, downgrade
