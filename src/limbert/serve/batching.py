"""A request while it waits, and the batch of queued texts that runs next."""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, inf
from typing import TYPE_CHECKING

from limbert.serve.latency_model import LatencyModel

if TYPE_CHECKING:
    from limbert.serve.errors import ServeError
    from limbert.serve.runner import RequestOutput, TextOutput
    from limbert.serve.tokenizer import TokenizedText

OnDone = Callable[["RequestOutput | ServeError"], None]
_WINDOW, _URGENT_WINDOW = 128, 16  # texts at the front of the queue that a batch is chosen from


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
    """The first text of a queue with texts of its variant and of similar length.

    The texts at the front of the queue, sorted by length, are divided into the batches that take the least time in
    total: fewer batches save fixed costs, more save padding. This is the batch of the first text. With ``max_seconds``
    (requests with deadlines wait) few texts are considered, because those left out are delayed. A text over a limit
    runs alone. Where lengths mix, the batch is the texts at the front.
    """
    variant = queue[0].request.variants_by_level[level]
    limit = min(max_tokens, (max_seconds - model.fixed) / model.per_token)
    window = queue[: _WINDOW if max_seconds == inf else _URGENT_WINDOW]
    candidates = [text for text in window if text.request.variants_by_level[level] == variant]
    if model.mixes_lengths:
        totals = list(accumulate(model.padded(text.tokens) for text in candidates))
        count = max(1, bisect(totals, limit))
        return PlannedBatch(variant, candidates[:count], totals[count - 1], model.seconds(totals[count - 1]))
    by_length: dict[int, list[QueuedText]] = {}
    for text in candidates:
        by_length.setdefault(model.padded(text.tokens), []).append(text)
    own_length, lengths = next(iter(by_length)), sorted(by_length)
    best, starts = [0.0], [0]  # of the texts up to a length: the least seconds, where their last batch begins
    for end, longest in enumerate(lengths, 1):
        options, count, at_once = [], 0, max(1, limit // longest)
        for start in reversed(range(end)):
            count += len(by_length[lengths[start]])
            seconds = ceil(count / at_once) * model.fixed + model.per_token * count * longest
            options.append((best[start] + seconds, start))
        seconds, start = min(options)
        best.append(seconds)
        starts.append(start)
    end = len(lengths)
    while lengths[starts[end]] > own_length:
        end = starts[end]
    together = sorted(text for length in lengths[starts[end] : end] for text in by_length[length])  # by deadline
    count = max(1, int(min(len(together), limit // lengths[end - 1])))
    if model.token_multiple > 1:  # kernels for each new shape take milliseconds and megabytes: 1, 2, 3, 4, 6, 8, 12, 16
        count -= count % (1 << max(0, count.bit_length() - 2))
    texts = together[:count]
    tokens = len(texts) * max(model.padded(text.tokens) for text in texts)
    return PlannedBatch(variant, texts, tokens, model.seconds(tokens))
