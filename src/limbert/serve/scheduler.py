"""Admission control and choice of the next batch: a state machine without clock, threads, asyncio or torch.

Queued texts are ordered by deadline. Each batch runs at the best quality level at which all queued texts, one after the
other, would be complete within part of their time; a request is accepted if this holds at the lowest level, for more of
the time. `benchmarks/scheduler.py` compares this rule with others.
"""

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf

from limbert.serve.batching import PendingRequest, PlannedBatch, QueuedText, first_batch
from limbert.serve.latency_model import LatencyModel

_PADDING_STEP = 0.1  # how far one batch moves the average padding


@dataclass(frozen=True)
class Refusal:
    """Why a request was refused, and after how many seconds it would probably be accepted."""

    reason: str
    retry_after: float


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of the scheduler; the first two fractions are of the time from arrival to deadline."""

    slo: float  # seconds from arrival to response; also orders requests without a deadline
    max_batch_tokens: int  # padding included; a longer text runs alone
    max_queue: int  # texts
    admission_fraction: float = 0.7  # to complete a request in at the lowest level; the rest is for what is unknown
    level_fraction: float = 0.45  # to complete all in at the level of the next batch; the rest is for later requests
    max_batch_fraction: float = 0.25  # of the SLO that a batch may take while deadlines wait


class Scheduler:
    """The queue of one model, with a quality level for each of the variants (best first)."""

    def __init__(
        self, variants: Sequence[str], latency_of: Callable[[str], LatencyModel], config: SchedulerConfig
    ) -> None:
        self._variants, self._latency_of, self._config = tuple(variants), latency_of, config
        self._rank = {name: index for index, name in enumerate(self._variants)}
        self._lowest_level = len(self._variants) - 1
        self._queue: list[QueuedText] = []  # by deadline
        self._num_with_deadline = 0
        self._next_order = 0
        self._busy_until: float | None = None  # predicted end of the running batch; None: nothing runs
        self._seconds_per_text = 0.0  # of the last batch
        self._padding = 1.0  # moving average of tokens with padding over tokens
        self._level = 0  # of the last batch
        self.level_changes = 0

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
        """The best variant for requests without options at the present quality level."""
        return self._variants[0 if self.idle else self._level]

    def admit(self, request: PendingRequest, now: float) -> Refusal | None:
        """Queue a request, or say why not. A refused request leaves no trace."""
        config, num_texts = self._config, len(request.lengths)
        request.priority = request.deadline if request.has_deadline else request.arrival + config.slo
        request.variants_by_level = tuple(  # the best allowed variant that the level has, else the cheapest allowed
            next((name for name in request.variants if self._rank.get(name, -1) >= level), request.variants[-1])
            for level in range(len(self._variants))
        )
        start = now if self._busy_until is None else max(now, self._busy_until)
        if len(self._queue) + num_texts > config.max_queue:
            reason = f"the queue holds {len(self._queue)} texts; at most {config.max_queue} are allowed"
            return Refusal(reason, start - now + self._seconds_per_text * len(self._queue))
        first, self._next_order = self._next_order, self._next_order + num_texts
        texts = [QueuedText(request, index, tokens, first + index) for index, tokens in enumerate(request.lengths)]
        position = bisect(self._queue, texts[0])
        queue = [*self._queue[:position], *texts, *self._queue[position:]]
        if self._num_with_deadline or request.has_deadline:
            slack = self._slack(queue, self._lowest_level, start, config.admission_fraction, position)
            if slack < 0:
                return self._refusal(request, texts, now, late_by=-slack)
        self._queue = queue
        self._num_with_deadline += num_texts if request.has_deadline else 0
        return None

    def next_batch(self, now: float) -> PlannedBatch | None:
        """The batch to run now, removed from the queue; None if the queue is empty. Then call `complete_batch`."""
        if not self._queue:
            return None
        level, batch = self._choose_batch(now)
        self.level_changes += level != self._level
        self._level = level
        removed = {id(text) for text in batch.texts}
        self._queue = [text for text in self._queue if id(text) not in removed]
        self._num_with_deadline -= sum(text.request.has_deadline for text in batch.texts)
        self._busy_until, self._seconds_per_text = now + batch.seconds, batch.seconds / len(batch.texts)
        padding = batch.tokens / max(1, sum(text.tokens for text in batch.texts))
        self._padding += _PADDING_STEP * (padding - self._padding)
        return batch

    def complete_batch(self) -> None:
        """Note that the running batch has ended."""
        self._busy_until = None

    def cancel(self, request: PendingRequest) -> None:
        """Remove the texts of a request that are still queued."""
        self._queue = [text for text in self._queue if text.request is not request]
        self._num_with_deadline = sum(text.request.has_deadline for text in self._queue)

    def expire(self, now: float) -> list[PendingRequest]:
        """Remove and return the requests that can no longer meet their deadline."""
        if not self._num_with_deadline:
            return []
        latency_of = cache(self._latency_of)
        late = {
            text.request: None
            for text in self._queue
            if now + latency_of(text.request.variants[-1]).seconds(text.tokens) > text.request.deadline
        }
        for request in late:
            self.cancel(request)
        return list(late)

    def _choose_batch(self, now: float) -> tuple[int, PlannedBatch]:
        """The quality level of the next batch, and the batch."""
        level = 0
        while level < self._lowest_level and self._slack(self._queue, level, now, self._config.level_fraction) < 0:
            level += 1
        max_seconds = self._config.max_batch_fraction * self._config.slo if self._num_with_deadline else inf
        return level, self._first_batch(level, max_seconds)

    def _first_batch(self, level: int, max_seconds: float) -> PlannedBatch:
        model = self._latency_of(self._queue[0].request.variants_by_level[level])
        return first_batch(self._queue, level, model, max_tokens=self._config.max_batch_tokens, max_seconds=max_seconds)

    def _slack(self, texts: Sequence[QueuedText], level: int, start: float, fraction: float, first: int = 0) -> float:
        """Seconds to spare if all texts run in order at a quality level and are due in a fraction of their time.

        The first text of a variant is taken to run alone, each other one to take its share of full batches.

        Args:
            texts: in the order of the queue.
            level: quality level.
            start: when the first text starts.
            fraction: of the time from arrival to deadline.
            first: index of the first text that counts; those before only take time.
        """
        max_seconds = self._config.max_batch_fraction * self._config.slo
        models: dict[str, LatencyModel] = {}
        end, slack = start, inf
        for index, text in enumerate(texts):
            request = text.request
            variant = request.variants_by_level[level]
            if (model := models.get(variant)) is None:
                models[variant] = model = self._latency_of(variant)
                end += model.seconds(text.tokens)
            else:
                seconds = self._padding * model.per_token * text.tokens
                end += seconds + model.fixed * min(1.0, seconds / max(max_seconds - model.fixed, 1e-9))
            if index >= first:
                slack = min(slack, request.arrival + fraction * (request.deadline - request.arrival) - end)
        return slack

    def _refusal(self, request: PendingRequest, texts: Sequence[QueuedText], now: float, *, late_by: float) -> Refusal:
        if not request.has_deadline:
            return Refusal(
                "accepting this request would make queued requests miss their deadline; retry later", late_by
            )
        fraction = self._config.admission_fraction
        late_alone = -self._slack(texts, self._lowest_level, now, fraction)
        if late_alone <= 0:
            return Refusal("the queue is too long to meet the latency budget", late_by)
        seconds = late_alone + request.arrival + fraction * (request.deadline - request.arrival) - now
        reason = f"it takes about {1000 * seconds:.0f} ms even on an idle server, more than its latency budget"
        return Refusal(reason, late_alone)
