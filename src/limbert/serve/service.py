"""The async front of the server: every protocol asks this, and nothing else."""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from limbert.data.tasks import Task
from limbert.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError
from limbert.inference.load import load_checkpoint, usable_cores
from limbert.serve.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
    ServeError,
    UnavailableError,
)
from limbert.serve.latency_model import LatencyTracker
from limbert.serve.queue import InferenceThread, PendingRequest, RequestQueue, deliver
from limbert.serve.runner import ModelRunner, RequestOutput, RequestTiming, TextOutput
from limbert.serve.scheduler import Scheduler, SchedulerConfig
from limbert.serve.selection import RequestOptions, VariantSelector
from limbert.serve.settings import ServeSettings
from limbert.serve.tokenizer import FastTokenizer, TextInput, WorkerThreads
from limbert.serve.variants import ModelVariants

_WINDOW_SECONDS = 10.0  # seconds
_MAX_LATENCIES = 20000  # latencies kept


@dataclass(frozen=True)
class ServerSnapshot:
    """The server at one moment.

    Attributes:
        size: the best size that requests without wishes get now.
        queued: texts that wait.
        queued_tokens: their tokens.
        running: requests under way, waiting ones included.
        requests_per_second: answered, over the last ten seconds.
        p50: median seconds from arrival to answer of those; None where there were none.
        p99: 99th percentile of the same.
        refused: requests refused since the start.
        answered: requests answered since the start.
        cancelled: requests whose client went away since the start.
        sizes: texts answered since the start, by the size's name.
        level_changes: how often the size in use changed since the start.
        uptime: seconds.
    """

    variant: str
    queued: int
    queued_tokens: int
    running: int
    requests_per_second: float
    p50: float | None
    p99: float | None
    refused: int
    answered: int
    cancelled: int
    texts_by_variant: dict[str, int]
    level_changes: int
    uptime: float


class ServerStats:
    """Counts; written to from the event loop alone."""

    def __init__(self) -> None:
        self.refused = 0
        self.answered = 0
        self.cancelled = 0
        self.running = 0
        self.texts_by_variant: Counter[str] = Counter()
        self.started_at = time.monotonic()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MAX_LATENCIES)  # (when, seconds)

    def record_latency(self, seconds: float) -> None:
        """A request was answered."""
        self.answered += 1
        self._latencies.append((time.monotonic(), seconds))

    def recent_rate_and_latency(self) -> tuple[float, float | None, float | None]:
        """Requests a second, median and 99th percentile of their seconds, over the last ten seconds."""
        now = time.monotonic()
        while self._latencies and self._latencies[0][0] < now - _WINDOW_SECONDS:
            self._latencies.popleft()
        if not self._latencies:
            return 0.0, None, None
        seconds = sorted(one for _, one in self._latencies)
        span = (
            now - self._latencies[0][0]
            if len(seconds) == _MAX_LATENCIES
            else min(_WINDOW_SECONDS, now - self.started_at)
        )
        return len(seconds) / max(span, 1e-3), _quantile(seconds, 0.5), _quantile(seconds, 0.99)


def _quantile(values: list[float], q: float) -> float:
    """The value that this share of the others is not above."""
    return values[min(len(values) - 1, int(q * len(values)))]


__all__ = ["RequestOutput", "RequestTiming", "ServerSnapshot", "Service", "TextInput", "TextOutput"]

_SERVED_TASK_TYPES = ("classification", "multi-label", "regression")
_CALIBRATION_SECONDS = 3.0  # seconds
_TOKENIZER_THREADS = 2  # threads
_DEFAULT_OPTIONS = RequestOptions()


class Service:
    """One model, one compute thread, and the requests that wait for it.

    `open` makes one, `start` sets it to work; both take seconds and belong outside the event loop, or at its start.

    Attributes:
        name: the model's id.
        task: kind and label names.
        menu: the sizes that can answer.
        settings: how it runs.
        max_tokens: longest input in tokens.

    Args:
        name: the model's id.
        task: what it answers.
        menu: the sizes that can answer.
        settings: how it runs.
        encoder: tokenises.
        max_tokens: longest input in tokens.
        runner: runs batches.

    Raises:
        ConfigError: if the settings name a policy that is not on the menu.
    """

    def __init__(
        self,
        name: str,
        *,
        task: Task,
        menu: ModelVariants,
        settings: ServeSettings,
        tokenizer: FastTokenizer,
        max_tokens: int,
        runner: ModelRunner,
    ) -> None:
        self.model_name, self.task, self.variants, self.settings, self.max_length = (
            name,
            task,
            menu,
            settings,
            max_tokens,
        )
        self._tokenizer, self._runner, self._stats = tokenizer, runner, ServerStats()
        self._request_ids = itertools.count()
        self._draining = False
        if settings.policy != "adaptive" and menu.find(settings.policy) is None:
            known = ", ".join(["adaptive", *(f"static:{one.name}" for one in menu.variants if one.kind == "subnet")])
            points = "".join(f", {one.name}" for one in menu.variants if one.kind == "policy")
            raise ConfigError(f"policy is {settings.policy!r}; it must be one of {known}{points}")
        self._selector: VariantSelector | None = None
        self._queue: RequestQueue | None = None
        self._inference_thread: InferenceThread | None = None
        self._tokenizer_threads: WorkerThreads | None = None

    @classmethod
    def load(cls, run_dir: str | Path, settings: ServeSettings) -> Self:
        """Load a trained model.

        Raises:
            CheckpointError: if the run is missing or broken, or was not trained by Limbert.
            ConfigError: if the settings name a policy that the model does not have, or a length that it has not.
            UnsupportedModelError: if the model does not classify or score texts.
        """
        opened = load_checkpoint(run_dir, device=settings.device)
        if opened.task is None:
            raise CheckpointError(f"{run_dir} has no limbert.json; train it with limbert train first")
        if opened.task.task_type not in _SERVED_TASK_TYPES:
            raise UnsupportedModelError(
                f"{run_dir} answers a task of kind {opened.task.task_type}; served are {', '.join(_SERVED_TASK_TYPES)}"
            )
        longest = opened.model.max_input_length
        if settings.max_length is not None and settings.max_length > longest:
            raise ConfigError(f"maximum length is {settings.max_length}; the model takes {longest} tokens at most")
        torch.set_num_threads(settings.threads or default_threads(settings.workers))
        max_tokens = settings.max_length or opened.max_length
        menu = ModelVariants.from_run(run_dir, opened.model, task=opened.task)
        encoder = FastTokenizer(opened.tokenizer, max_length=max_tokens)
        runner = ModelRunner(opened.model, menu, encoder, task_type=opened.task.task_type, precision=settings.precision)
        return cls(
            settings.name or Path(run_dir).resolve().name,
            task=opened.task,
            menu=menu,
            settings=settings,
            tokenizer=encoder,
            max_tokens=max_tokens,
            runner=runner,
        )

    def start(self) -> None:
        """Measure the sizes (some seconds), and begin to answer. Once; a second call does nothing."""
        if self._queue is not None:
            return
        lines = self._runner.calibrate(max_length=self.max_length, time_budget=_CALIBRATION_SECONDS)
        speeds = LatencyTracker(lines)
        usual = 8 * min(32, self.max_length)
        self._selector = VariantSelector(
            self.variants,
            policy=self.settings.policy,
            slo=self.settings.slo,
            latency_of=lambda one: lines[one.name].seconds(usual),
        )
        rules = SchedulerConfig(
            slo=self.settings.slo,
            max_batch_tokens=self.settings.max_batch_tokens,
            max_queue=self.settings.max_queue,
            adaptive=self._selector.adaptive,
        )
        self._queue = RequestQueue(
            Scheduler([size.name for size in self._selector.ranked_variants], speeds.latency_model, rules)
        )
        self._inference_thread = InferenceThread(
            self._queue,
            self._runner.run,
            lambda size, tokens, seconds: speeds.observe(size, tokens=tokens, seconds=seconds),
        )
        self._tokenizer_threads = WorkerThreads(_TOKENIZER_THREADS, name="limbert-tokenise")
        self._stats = ServerStats()
        self._inference_thread.start()

    async def predict(
        self, texts: Sequence[TextInput], *, options: RequestOptions = _DEFAULT_OPTIONS, truncate: bool = True
    ) -> RequestOutput:
        """Answer texts, each as it would be answered alone. A cancelled task takes its texts out of the queue.

        Args:
            texts: with their pairs.
            wish: what this request may cost.
            truncate: cut texts that are too long, instead of refusing them.

        Raises:
            BadRequest: for no texts, single texts where the training had pairs or the other way round, or a wish for
                what there is not.
            TooLong: for too many texts, or with ``truncate=False`` too long ones.
            Refused: if it cannot be answered in time, or too much is waiting already.
            Down: if the compute has died, or the server is being shut down.
        """
        arrival = time.perf_counter()
        desk, tokenisers, sizes, budget = self._validate(texts, options)
        loop = asyncio.get_running_loop()
        job = PendingRequest(next(self._request_ids), arrival, sizes, budget, loop, loop.create_future())
        self._stats.running += 1
        try:
            tokenisers.submit(partial(self._tokenize, desk, job, texts, truncate))
            answers = await job.future
        except asyncio.CancelledError:
            self._stats.cancelled += 1
            desk.cancel(job)
            raise
        except OverloadedError:
            self._stats.refused += 1
            raise
        finally:
            self._stats.running -= 1
        self._stats.record_latency(time.perf_counter() - arrival)
        for row in answers.outputs:
            self._stats.texts_by_variant[row.variant] += 1
        return answers

    def snapshot(self) -> ServerSnapshot:
        """The server at this moment."""
        size, queued, tokens, changes = self.settings.policy, 0, 0, 0
        if self._queue is not None:
            size, queued, tokens, changes = self._queue.inspect(
                lambda one: (one.variant, one.queued, one.queued_tokens, one.level_changes)
            )
        watch = self._stats
        rate, p50, p99 = watch.recent_rate_and_latency()
        return ServerSnapshot(
            variant=size,
            queued=queued,
            queued_tokens=tokens,
            running=watch.running,
            requests_per_second=rate,
            p50=p50,
            p99=p99,
            refused=watch.refused,
            answered=watch.answered,
            cancelled=watch.cancelled,
            texts_by_variant=dict(watch.texts_by_variant),
            level_changes=changes,
            uptime=time.monotonic() - watch.started_at,
        )

    @property
    def healthy(self) -> bool:
        """False once the compute thread has died."""
        return self._inference_thread is None or self._inference_thread.error is None

    @property
    def ready(self) -> bool:
        """Loaded, measured, and not being shut down."""
        return self._inference_thread is not None and self._inference_thread.alive and not self._draining

    async def drain(self, timeout: float) -> None:
        """Take no requests any more and wait for those under way, seconds at most; then `close`."""
        self._draining = True
        end = time.monotonic() + timeout
        while self._stats.running and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stop at once: what waits is answered with `Down`."""
        self._draining = True
        if self._queue is None or self._inference_thread is None or self._tokenizer_threads is None:
            return
        self._queue.close(UnavailableError("the server is being shut down"))
        self._inference_thread.join(timeout=10)
        self._tokenizer_threads.close()

    def _validate(
        self, texts: Sequence[TextInput], options: RequestOptions
    ) -> tuple[RequestQueue, WorkerThreads, tuple[str, ...], float | None]:
        """Everything that can be refused before any work."""
        if self._draining:
            raise UnavailableError("the server is being shut down")
        if (
            self._queue is None
            or self._tokenizer_threads is None
            or self._selector is None
            or self._inference_thread is None
        ):
            raise UnavailableError("the server has not started yet")
        if not self._inference_thread.alive:
            raise UnavailableError(f"the compute has failed: {type(self._inference_thread.error).__name__}")
        if not texts:
            raise InvalidRequestError("no texts; expected at least one")
        most = min(self.settings.max_texts, self.settings.max_queue)
        if len(texts) > most:
            raise RequestTooLargeError(f"{len(texts)} texts in one request; at most {most} are taken")
        for pairs in {pair is not None for _, pair in texts}:
            try:
                self.task.check_inputs(has_pairs=pairs)
            except DataError as error:
                raise InvalidRequestError(str(error)) from None
        return self._queue, self._tokenizer_threads, *self._selector.select(options)

    def _tokenize(
        self, queue: RequestQueue, pending: PendingRequest, texts: Sequence[TextInput], truncate: bool
    ) -> None:
        """In a tokenising thread: from texts to the queue; what goes wrong goes back."""
        if pending.future.done():
            return
        pending.tokenization_started_at = time.perf_counter()
        try:
            encoded = self._tokenizer.tokenize(texts)
            cut = [place for place, one in enumerate(encoded) if one.truncated]
            if cut and not truncate:
                raise RequestTooLargeError(
                    f"text {cut[0]} is longer than {self.max_length} tokens, and cutting was not allowed"
                )
            queue.submit(pending, encoded)
        except ServeError as error:
            deliver([(pending, error)])
        except Exception as error:
            deliver([(pending, InvalidRequestError(f"the text cannot be tokenised: {type(error).__name__}"))])


def default_threads(workers: int) -> int:
    """CPU threads of the model in one process: all cores but one, which the network gets, shared out."""
    return max(1, (usable_cores() - 1) // workers)
