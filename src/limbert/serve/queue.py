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

from limbert.serve.errors import Down, Refused, ServeError
from limbert.serve.runner import Answers, Row, Timing
from limbert.serve.scheduler import Batch, Request, Scheduler
from limbert.serve.tokenizer import Encoded


@dataclass(slots=True, eq=False)
class Job:
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
    sizes: tuple[str, ...]
    budget: float | None
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Answers]"
    texts: Sequence[Encoded] = ()
    tokenised: float = 0.0
    tokenising_began: float = 0.0
    rows: list[Row | None] = field(default_factory=list)
    left: int = 0
    begun: float = 0.0


_TRIAL_EVERY = 1.0  # seconds
_T = TypeVar("_T")
Outcome = tuple[Job, Answers | ServeError]


class Desk:
    """The one place where the threads meet.

    Args:
        scheduler: touched under this desk's lock only.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._jobs: dict[int, Job] = {}
        self._wake = threading.Condition()
        self._closed: ServeError | None = None
        self._trial: tuple[Batch, list[Encoded]] | None = None
        self._tried = -math.inf  # when the last trial was asked for

    def put(self, job: Job, texts: Sequence[Encoded]) -> None:
        """Offer a tokenised request; a refusal goes straight back."""
        job.texts, job.tokenised = texts, time.perf_counter()
        job.rows, job.left = [None] * len(texts), len(texts)
        deadline = None if job.budget is None else job.arrival + job.budget
        request = Request(job.id, tuple(len(text.ids) for text in texts), job.sizes, job.arrival, deadline)
        with self._wake:
            if job.future.done():  # nobody waits any more
                return
            if self._closed is not None:
                error: ServeError = self._closed
            else:
                refusal = self._scheduler.offer(request, job.tokenised)
                if refusal is None:
                    self._jobs[job.id] = job
                    self._wake.notify()
                    return
                self._try(request, texts, now=job.tokenised)
                error = Refused(refusal.reason, retry_after=refusal.retry_after)
        send([(job, error)])

    def _try(self, request: Request, texts: Sequence[Encoded], *, now: float) -> None:
        """Have a text of a refused request run for nobody, where nothing else is to do and at most once a second.

        Speeds are learned from what runs: after a start in a busy moment everything might be refused for ever.
        """
        if self._scheduler.idle and now - self._tried >= _TRIAL_EVERY:
            self._tried = now
            self._trial = Batch(request.sizes[-1], (), request.lengths[0], 0.0), [texts[0]]
            self._wake.notify()

    def take(self) -> tuple[Batch, list[Encoded]] | None:
        """Wait for a batch; None once the desk is closed. A batch without rows is a trial: nobody waits for it."""
        while True:
            with self._wake:
                while self._closed is None and not self._scheduler.queued and self._trial is None:
                    self._wake.wait()
                if self._closed is not None:
                    return None
                trial, self._trial = self._trial, None
                if trial is not None and not self._scheduler.queued:
                    return trial
                now = time.perf_counter()
                late = [self._jobs.pop(one) for one in self._scheduler.expire(now)]
                batch = self._scheduler.next(now)
                texts = []
                for request, place in batch.rows if batch else ():
                    job = self._jobs[request]
                    job.begun = now
                    texts.append(job.texts[place])
            error = Refused("waited too long: it could no longer be answered in time", retry_after=1.0)
            send([(job, error) for job in late])
            if batch is not None:
                return batch, texts

    def finish(self, batch: Batch, rows: Sequence[Row], seconds: float) -> None:
        """Hand out the answers to a batch, of requests that somebody still waits for."""
        if not batch.rows:
            return
        finished = []
        with self._wake:
            self._scheduler.done()
            for (request, place), row in zip(batch.rows, rows, strict=True):
                job = self._jobs.get(request)
                if job is None:
                    continue
                job.rows[place] = row
                job.left -= 1
                if not job.left:
                    del self._jobs[request]
                    finished.append(job)
        send([(job, _answers(job, seconds)) for job in finished])

    def cancel(self, job: Job) -> None:
        """Nobody waits for this request any more: what has not begun of it is taken out."""
        with self._wake:
            if self._jobs.pop(job.id, None) is not None:
                self._scheduler.cancel(job.id)

    def close(self, error: ServeError) -> None:
        """Take nothing any more, and answer all that wait with an error."""
        with self._wake:
            if self._closed is None:
                self._closed = error
            waiting, self._jobs = list(self._jobs.values()), {}
            for job in waiting:
                self._scheduler.cancel(job.id)
            self._wake.notify_all()
        send([(job, error) for job in waiting])

    def look(self, at: Callable[[Scheduler], _T]) -> _T:
        """What a function says of the scheduler, under the lock."""
        with self._wake:
            return at(self._scheduler)


def send(outcomes: Sequence[Outcome]) -> None:
    """Hand outcomes to the event loops that wait for them, one call a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:  # the loop is closed, and with it all that waited
            continue


def _resolve(outcomes: Sequence[Outcome]) -> None:
    for job, result in outcomes:
        if job.future.done():
            continue
        if isinstance(result, ServeError):
            job.future.set_exception(_own(result))
        else:
            job.future.set_result(result)


def _own(error: ServeError) -> ServeError:
    """An exception of one's own: raised in several tasks, one object would gather all their tracebacks."""
    if isinstance(error, Refused):
        return Refused(str(error), retry_after=error.retry_after)
    return type(error)(str(error))


def _answers(job: Job, inference: float) -> Answers:
    rows = tuple(row for row in job.rows if row is not None)
    return Answers(rows, Timing(job.tokenised - job.tokenising_began, job.begun - job.tokenised, inference))


logger = logging.getLogger(__name__)


class Compute:
    """Runs until the desk is closed.

    Args:
        desk: where batches come from.
        run: answers a batch: size and texts to rows.
        measured: told of every batch: size, tokens with padding, seconds.
    """

    def __init__(
        self,
        desk: Desk,
        run: Callable[[str, Sequence[Encoded]], list[Row]],
        measured: Callable[[str, int, float], None],
    ) -> None:
        self._desk, self._run, self._measured = desk, run, measured
        self._thread = threading.Thread(target=self._work, name="limbert-compute", daemon=True)
        self._crash: BaseException | None = None

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, seconds at most."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def crash(self) -> BaseException | None:
        """What ended it; None while all is well."""
        return self._crash

    @property
    def alive(self) -> bool:
        """Whether it works, or has not begun."""
        return self._crash is None and (self._thread.ident is None or self._thread.is_alive())

    def _work(self) -> None:
        try:
            while (taken := self._desk.take()) is not None:
                batch, texts = taken
                start = time.perf_counter()
                rows = self._run(batch.size, texts)
                seconds = time.perf_counter() - start
                self._measured(batch.size, batch.tokens, seconds)
                self._desk.finish(batch, rows, seconds)
        except BaseException as error:
            self._crash = error
            logger.exception("the compute thread has died")
            self._desk.close(Down(f"the compute has failed: {type(error).__name__}"))
