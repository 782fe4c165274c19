"""Where requests wait: the scheduler behind a lock, and who waits for which answer.

Event loops put requests in (by way of the tokenising threads) and get answers out; the compute thread takes batches.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from limbert.serve.errors import OverloadedError, ServeError, UnavailableError
from limbert.serve.runner import RequestOutput, RequestTiming, TextOutput
from limbert.serve.scheduler import ScheduledBatch, Scheduler, SchedulingRequest
from limbert.serve.tokenizer import TokenizedText


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request under way; times are those of ``time.perf_counter``.

    Attributes:
        id: unlike any other.
        arrival: when it came.
        sizes: that may answer, best first.
        budget: seconds from arrival to answer; None: no deadline.
        loop: that waits for it.
        future: what it waits for.
        texts: tokenised.
        tokenised: when that was done.
        rows: answers so far.
        left: texts without one.
        begun: when its last batch began.
    """

    id: int
    arrival: float
    variants: tuple[str, ...]
    latency_budget: float | None
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[RequestOutput]"
    texts: Sequence[TokenizedText] = ()
    tokenized_at: float = 0.0
    tokenization_started_at: float = 0.0
    outputs: list[TextOutput | None] = field(default_factory=list)
    remaining: int = 0
    started_at: float = 0.0


_PROBE_INTERVAL = 1.0  # seconds
_T = TypeVar("_T")
Outcome = tuple[PendingRequest, RequestOutput | ServeError]


class RequestQueue:
    """The one place where the threads meet.

    Args:
        scheduler: touched under this desk's lock only.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._pending: dict[int, PendingRequest] = {}
        self._condition = threading.Condition()
        self._close_error: ServeError | None = None
        self._probe: tuple[ScheduledBatch, list[TokenizedText]] | None = None
        self._last_probe_at = -math.inf  # when the last trial was asked for

    def submit(self, pending: PendingRequest, texts: Sequence[TokenizedText]) -> None:
        """Offer a tokenised request; a refusal goes straight back."""
        pending.texts, pending.tokenized_at = texts, time.perf_counter()
        pending.outputs, pending.remaining = [None] * len(texts), len(texts)
        deadline = None if pending.latency_budget is None else pending.arrival + pending.latency_budget
        request = SchedulingRequest(
            pending.id, tuple(len(text.input_ids) for text in texts), pending.variants, pending.arrival, deadline
        )
        with self._condition:
            if pending.future.done():  # nobody waits any more
                return
            if self._close_error is not None:
                error: ServeError = self._close_error
            else:
                refusal = self._scheduler.admit(request, pending.tokenized_at)
                if refusal is None:
                    self._pending[pending.id] = pending
                    self._condition.notify()
                    return
                self._schedule_probe(request, texts, now=pending.tokenized_at)
                error = OverloadedError(refusal.reason, retry_after=refusal.retry_after)
        deliver([(pending, error)])

    def _schedule_probe(self, request: SchedulingRequest, texts: Sequence[TokenizedText], *, now: float) -> None:
        """Have a text of a refused request run for nobody, where nothing else is to do and at most once a second.

        Speeds are learned from what runs: after a start in a busy moment everything might be refused for ever.
        """
        if self._scheduler.idle and now - self._last_probe_at >= _PROBE_INTERVAL:
            self._last_probe_at = now
            self._probe = ScheduledBatch(request.variants[-1], (), request.lengths[0], 0.0), [texts[0]]
            self._condition.notify()

    def next_batch(self) -> tuple[ScheduledBatch, list[TokenizedText]] | None:
        """Wait for a batch; None once the desk is closed. A batch without rows is a trial: nobody waits for it."""
        while True:
            with self._condition:
                while self._close_error is None and not self._scheduler.queued and self._probe is None:
                    self._condition.wait()
                if self._close_error is not None:
                    return None
                trial, self._probe = self._probe, None
                if trial is not None and not self._scheduler.queued:
                    return trial
                now = time.perf_counter()
                late = [self._pending.pop(one) for one in self._scheduler.expire(now)]
                batch = self._scheduler.next_batch(now)
                texts = []
                for request, place in batch.texts if batch else ():
                    job = self._pending[request]
                    job.started_at = now
                    texts.append(job.texts[place])
            error = OverloadedError("waited too long: it could no longer be answered in time", retry_after=1.0)
            deliver([(job, error) for job in late])
            if batch is not None:
                return batch, texts

    def complete(self, batch: ScheduledBatch, outputs: Sequence[TextOutput], seconds: float) -> None:
        """Hand out the answers to a batch, of requests that somebody still waits for."""
        if not batch.texts:
            return
        finished = []
        with self._condition:
            self._scheduler.complete_batch()
            for (request, place), row in zip(batch.texts, outputs, strict=True):
                job = self._pending.get(request)
                if job is None:
                    continue
                job.outputs[place] = row
                job.remaining -= 1
                if not job.remaining:
                    del self._pending[request]
                    finished.append(job)
        deliver([(job, _request_output(job, seconds)) for job in finished])

    def cancel(self, pending: PendingRequest) -> None:
        """Nobody waits for this request any more: what has not begun of it is taken out."""
        with self._condition:
            if self._pending.pop(pending.id, None) is not None:
                self._scheduler.cancel(pending.id)

    def close(self, error: ServeError) -> None:
        """Take nothing any more, and answer all that wait with an error."""
        with self._condition:
            if self._close_error is None:
                self._close_error = error
            waiting, self._pending = list(self._pending.values()), {}
            for job in waiting:
                self._scheduler.cancel(job.id)
            self._condition.notify_all()
        deliver([(job, error) for job in waiting])

    def inspect(self, read: Callable[[Scheduler], _T]) -> _T:
        """What a function says of the scheduler, under the lock."""
        with self._condition:
            return read(self._scheduler)


def deliver(outcomes: Sequence[Outcome]) -> None:
    """Hand outcomes to the event loops that wait for them, one call a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve_futures, mine)
        except RuntimeError:  # the loop is closed, and with it all that waited
            continue


def _resolve_futures(outcomes: Sequence[Outcome]) -> None:
    for job, result in outcomes:
        if job.future.done():
            continue
        if isinstance(result, ServeError):
            job.future.set_exception(_copy_error(result))
        else:
            job.future.set_result(result)


def _copy_error(error: ServeError) -> ServeError:
    """An exception of one's own: raised in several tasks, one object would gather all their tracebacks."""
    if isinstance(error, OverloadedError):
        return OverloadedError(str(error), retry_after=error.retry_after)
    return type(error)(str(error))


def _request_output(pending: PendingRequest, inference_seconds: float) -> RequestOutput:
    rows = tuple(row for row in pending.outputs if row is not None)
    return RequestOutput(
        rows,
        RequestTiming(
            pending.tokenized_at - pending.tokenization_started_at,
            pending.started_at - pending.tokenized_at,
            inference_seconds,
        ),
    )


logger = logging.getLogger(__name__)


class InferenceThread:
    """Runs until the desk is closed.

    Args:
        desk: where batches come from.
        run: answers a batch: size and texts to rows.
        measured: told of every batch: size, tokens with padding, seconds.
    """

    def __init__(
        self,
        queue: RequestQueue,
        run_batch: Callable[[str, Sequence[TokenizedText]], list[TextOutput]],
        observe_latency: Callable[[str, int, float], None],
    ) -> None:
        self._queue, self._run_batch, self._observe_latency = queue, run_batch, observe_latency
        self._thread = threading.Thread(target=self._run_loop, name="limbert-compute", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, seconds at most."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def error(self) -> BaseException | None:
        """What ended it; None while all is well."""
        return self._error

    @property
    def alive(self) -> bool:
        """Whether it works, or has not begun."""
        return self._error is None and (self._thread.ident is None or self._thread.is_alive())

    def _run_loop(self) -> None:
        try:
            while (taken := self._queue.next_batch()) is not None:
                batch, texts = taken
                start = time.perf_counter()
                rows = self._run_batch(batch.variant, texts)
                seconds = time.perf_counter() - start
                self._observe_latency(batch.variant, batch.tokens, seconds)
                self._queue.complete(batch, rows, seconds)
        except BaseException as error:
            self._error = error
            logger.exception("the compute thread has died")
            self._queue.close(UnavailableError(f"the compute has failed: {type(error).__name__}"))
