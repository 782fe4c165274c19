"""Thread-safe request queue between the event loop and the compute thread, and that thread."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from limbert.serve.batching import OnDone, PendingRequest, PlannedBatch, QueuedText
from limbert.serve.errors import InferenceError, OverloadedError, ServeError, UnavailableError
from limbert.serve.latency_model import LatencyTracker
from limbert.serve.runner import ModelRunner, RequestOutput, RequestTiming, TextOutput
from limbert.serve.scheduler import Scheduler
from limbert.serve.tokenizer import TokenizedText

logger = logging.getLogger(__name__)
_PROBE_INTERVAL = 1.0  # seconds
_MAX_BACKGROUND = 16  # requests that wait for an empty queue


@dataclass
class QueueState:
    """The scheduler at one moment: best variant in use, queued texts and tokens, level changes, whether it idles."""

    variant: str
    queued: int = 0
    queued_tokens: int = 0
    level_changes: int = 0
    idle: bool = True


class RequestQueue:
    """Requests from `submit` to `complete`; the scheduler is only used under this queue's lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._pending: set[PendingRequest] = set()
        self._background: deque[PendingRequest] = deque()  # of one text each; they run while nothing else is queued
        self._condition = threading.Condition()
        self._closed: str | None = None  # why
        self._last_probe_at = -math.inf

    def submit(self, request: PendingRequest) -> None:
        """Queue a tokenised request; if it is refused, it is done at once."""
        request.queued_at = now = time.perf_counter()
        request.outputs, request.remaining = [None] * len(request.texts), len(request.texts)
        with self._condition:
            if request.cancelled:
                return
            if self._closed is not None:
                error: ServeError = UnavailableError(self._closed)
            else:
                refusal = self._scheduler.admit(request, now)
                if refusal is None:
                    self._pending.add(request)
                    self._condition.notify()
                    return
                error = OverloadedError(refusal.reason, retry_after=refusal.retry_after)
                # Latency models learn from batches only: after a start on a busy machine all might be refused forever.
                if self._scheduler.idle and now - self._last_probe_at >= _PROBE_INTERVAL:
                    self._last_probe_at = now
                    self._add_background(request.texts[0], request.variants[-1])
        request.on_done(error)

    def submit_background(self, text: TokenizedText, variant: str, on_done: OnDone) -> None:
        """Run a text once nothing else is queued; dropped if too many wait for that."""
        with self._condition:
            if self._closed is None and len(self._background) < _MAX_BACKGROUND:
                self._add_background(text, variant, on_done)

    def _add_background(self, text: TokenizedText, variant: str, on_done: OnDone = lambda result: None) -> None:
        request = PendingRequest((len(text.input_ids),), (variant,), 0.0, texts=(text,), on_done=on_done)
        request.outputs, request.remaining = [None], 1
        self._background.append(request)
        self._condition.notify()

    def next_batch(self) -> PlannedBatch | None:
        """Wait for the next batch; None once the queue is closed."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._scheduler.queued or self._background)
                if self._closed is not None:
                    return None
                now = time.perf_counter()
                if not self._scheduler.queued:
                    request = self._background.popleft()
                    self._pending.add(request)
                    text = QueuedText(request, 0, request.lengths[0], 0)
                    return PlannedBatch(request.variants[0], [text], text.tokens, 0.0)
                expired = self._scheduler.expire(now)
                self._pending.difference_update(expired)
                batch = self._scheduler.next_batch(now)
                for text in batch.texts if batch else ():
                    text.request.started_at = now
            for request in expired:
                request.on_done(OverloadedError("its deadline passed in the queue", retry_after=1.0))
            if batch is not None:
                return batch

    def complete(self, batch: PlannedBatch, outputs: Sequence[TextOutput | InferenceError], *, seconds: float) -> None:
        """Store the outputs of a batch; a request is done when all its texts have one, or one has failed."""
        results: dict[PendingRequest, RequestOutput | ServeError] = {}
        with self._condition:
            self._scheduler.complete_batch()
            for text, output in zip(batch.texts, outputs, strict=True):
                request = text.request
                if request not in self._pending:  # cancelled, or failed by another text
                    continue
                if isinstance(output, InferenceError):
                    self._scheduler.cancel(request)
                    results[request] = output
                else:
                    request.outputs[text.index] = output
                    request.remaining -= 1
                    if request.remaining:
                        continue
                    queued_seconds = request.started_at - request.queued_at
                    timing = RequestTiming(request.tokenization_seconds, queued_seconds, seconds)
                    results[request] = RequestOutput(tuple(filter(None, request.outputs)), timing)
                self._pending.remove(request)
        for request, result in results.items():
            request.on_done(result)

    def cancel(self, request: PendingRequest) -> None:
        """Drop a request; texts of it that have not started do not run."""
        with self._condition:
            request.cancelled = True
            if request in self._pending:
                self._pending.remove(request)
                self._scheduler.cancel(request)

    def close(self, reason: str) -> None:
        """Accept nothing any more, and end all pending requests with `UnavailableError`."""
        with self._condition:
            self._closed = self._closed or reason
            pending, self._pending = self._pending, set()
            for request in pending:
                self._scheduler.cancel(request)
            self._condition.notify_all()
        for request in pending:
            request.on_done(UnavailableError(reason))

    def state(self) -> QueueState:
        """The queue at this moment."""
        with self._condition:
            scheduler = self._scheduler
            return QueueState(
                scheduler.variant, scheduler.queued, scheduler.queued_tokens, scheduler.level_changes, scheduler.idle
            )


class InferenceThread(threading.Thread):
    """Runs batches until the queue is closed. An error in a batch ends only the requests whose texts cause it."""

    def __init__(self, queue: RequestQueue, runner: ModelRunner, tracker: LatencyTracker) -> None:
        super().__init__(name="limbert-compute", daemon=True)
        self._queue, self._runner, self._tracker = queue, runner, tracker
        self.error: BaseException | None = None  # what ended the thread; None: no error

    @property
    def working(self) -> bool:
        return self.error is None and self.is_alive()

    def run(self) -> None:
        try:
            while (batch := self._queue.next_batch()) is not None:
                start = time.perf_counter()
                outputs = self._run_batch(batch)
                seconds = time.perf_counter() - start
                self._queue.complete(batch, outputs, seconds=seconds)
                self._tracker.observe(batch.variant, batch.tokens, seconds)
        except BaseException as error:
            self.error = error
            logger.exception("the compute thread has failed")
            self._queue.close(f"inference has failed ({type(error).__name__}); restart the server")

    def _run_batch(self, batch: PlannedBatch) -> Sequence[TextOutput | InferenceError]:
        texts = [text.request.texts[text.index] for text in batch.texts]
        try:
            return self._runner.run(batch.variant, texts)
        except Exception:
            logger.exception("a batch of %d texts has failed; its texts run one by one", len(texts))
        outputs = [self._run_text(batch.variant, text) for text in texts]
        if all(isinstance(output, InferenceError) for output in outputs):
            self._runner.check()  # not the texts but the model or the device may be the cause
        return outputs

    def _run_text(self, variant: str, text: TokenizedText) -> TextOutput | InferenceError:
        try:
            return self._runner.run(variant, [text])[0]
        except Exception as error:
            return InferenceError(f"the model fails on this text: {type(error).__name__}")
