"""A request while it waits, and the batch of queued texts that runs next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from typing import TYPE_CHECKING

from limbert.serve.latency_model import LatencyModel

if TYPE_CHECKING:
    from limbert.serve.errors import ServeError
    from limbert.serve.runner import RequestOutput, TextOutput
    from limbert.serve.tokenizer import TokenizedText

OnDone = Callable[["RequestOutput | ServeError"], None]
_WINDOW, _URGENT_WINDOW = 64, 16  # texts at the front of the queue that a batch is chosen from
_LENGTH_SORTING_SCALE = 6  # queued texts from which on batches are increasingly sorted by length


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request from its arrival to its response. Times are seconds of one monotonic clock."""

    lengths: Sequence[int]  # tokens of each text
    variants: tuple[str, ...]  # that may run it, best first
    arrival: float
    deadline: float = inf  # latest completion; infinity: none
    texts: Sequence["TokenizedText"] = ()
    on_done: OnDone = lambda result: None  # called once, from any thread
    tokenization_seconds: float = 0.0
    queued_at: float = 0.0
    started_at: float = 0.0  # when its last batch began
    outputs: list["TextOutput | None"] = field(default_factory=list)  # by text; None: not run yet
    remaining: int = 0  # texts without output
    cancelled: bool = False
    # Set by the scheduler:
    variants_by_level: tuple[str, ...] = ()  # the variant that it runs at, by quality level
    priority: float = 0.0  # its deadline, or without one the time by which it would meet the SLO

    @property
    def has_deadline(self) -> bool:
        """Whether the request has a deadline."""
        return self.deadline < inf


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text of a request: its index there, its tokens, and its order of arrival."""

    request: PendingRequest
    index: int
    tokens: int
    order: int

    def __lt__(self, other: "QueuedText") -> bool:
        return (self.request.priority, self.order) < (other.request.priority, other.order)


@dataclass(slots=True)
class PlannedBatch:
    """A batch to run: texts of one variant, tokens with padding, and predicted seconds."""

    variant: str
    texts: list[QueuedText]
    tokens: int
    seconds: float


def first_batch(
    queue: Sequence[QueuedText], level: int, model: LatencyModel, *, max_tokens: int, max_seconds: float
) -> PlannedBatch:
    """The first text of a queue with texts of its variant that run faster with it than on their own.

    Texts of similar length come first. The longer the queue, the fuller another batch will become, and the less padding
    its fixed cost is worth. Where deadlines wait (``max_seconds``) few texts are considered, because those left out are
    delayed. A text over a limit runs alone.
    """
    first, variant = queue[0], queue[0].request.variants_by_level[level]
    window = queue[1 : _WINDOW if max_seconds == inf else _URGENT_WINDOW]
    fitting = [text for text in window if text.request.variants_by_level[level] == variant]
    saved = model.fixed / sqrt(1 + len(queue) / _LENGTH_SORTING_SCALE)
    texts, longest, tokens = [first], first.tokens, first.tokens
    for text in sorted(fitting, key=lambda text: abs(text.tokens - first.tokens)):  # stable: by deadline
        length = max(longest, text.tokens)
        together = length * (len(texts) + 1)
        is_faster = model.per_token * (together - tokens - text.tokens) <= saved
        if is_faster and together <= max_tokens and model.seconds(together) <= max_seconds:
            texts.append(text)
            longest, tokens = length, together
    return PlannedBatch(variant, texts, tokens, model.seconds(tokens))
