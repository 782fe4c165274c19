"""The model behind all protocols: validates, tokenises and queues requests, and keeps counts."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch

from limbert.errors import CheckpointError, ConfigError, DataError
from limbert.inference.load import load_checkpoint, usable_cores
from limbert.serve.batching import PendingRequest
from limbert.serve.compiled_variants import compile_variants
from limbert.serve.errors import (
    ApiError,
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
    ServeError,
    UnavailableError,
)
from limbert.serve.latency_model import LatencyTracker
from limbert.serve.queue import InferenceThread, QueueState, RequestQueue
from limbert.serve.responses import predicted_labels, score_function
from limbert.serve.runner import ModelRunner, RequestOutput, TextOutput
from limbert.serve.scheduler import Scheduler, SchedulerConfig
from limbert.serve.selection import RequestOptions, VariantSelector
from limbert.serve.settings import ServeSettings
from limbert.serve.tokenizer import FastTokenizer, TextInput
from limbert.serve.variants import ModelVariants

_WINDOW = 10.0  # seconds that rate and percentiles cover
_MAX_LATENCIES = 20_000
_CALIBRATION_SECONDS = 3.0
_TOKENIZER_THREADS = 2
_DEFAULT_OPTIONS = RequestOptions()
_SHUTTING_DOWN = "the server is shutting down"


@dataclass
class ServerCounts:
    """Counts since the start; the event loop writes them, and the compute thread the last two."""

    running: int = 0  # requests in progress, queued ones included
    refused: int = 0  # requests
    completed: int = 0
    cancelled: int = 0  # their client disconnected
    texts_by_variant: dict[str, int] = field(default_factory=dict)  # completed texts
    compared: dict[str, int] = field(default_factory=dict)  # texts by variant that ran at full size, too
    agreeing: dict[str, int] = field(default_factory=dict)  # of these, with the full model's labels


@dataclass(kw_only=True)
class ServerSnapshot(ServerCounts, QueueState):
    """The server at one moment."""

    requests_per_second: float  # over the last ten seconds
    p50_ms: float | None  # median latency of those; None: there were none
    p99_ms: float | None
    uptime: float  # seconds


@dataclass(frozen=True)
class _Started:
    """What exists once the latency of the variants is measured."""

    selector: VariantSelector
    queue: RequestQueue
    inference_thread: InferenceThread
    tokenizer_threads: ThreadPoolExecutor


class Service:
    """One trained model, one compute thread, and a queue. Loading it and `start` take seconds each.

    Raises:
        CheckpointError: if the run is missing or broken, or was not trained by Limbert.
        ConfigError: if the settings name an unknown policy, or a length that the model does not support.
        UnsupportedModelError: if the model does not classify or score whole texts.
    """

    def __init__(self, run_dir: str | Path, settings: ServeSettings) -> None:
        checkpoint = load_checkpoint(run_dir, device=settings.model_device(settings.device))
        model = checkpoint.model
        if checkpoint.task is None:
            raise CheckpointError(f"{run_dir} has no limbert.json; train it with limbert train first")
        score_function(checkpoint.task)  # refuses other tasks
        if settings.shadow and checkpoint.task.task_type == "regression":
            raise ConfigError("--shadow compares labels; a regression has none")
        if settings.max_length is not None and settings.max_length > model.max_input_length:
            raise ConfigError(
                f"maximum length is {settings.max_length}; the model supports at most {model.max_input_length} tokens"
            )
        torch.set_num_threads(settings.threads or default_threads(settings.workers))
        self.settings = settings
        self.model_name = settings.name or Path(run_dir).resolve().name
        self.task = task = checkpoint.task
        self.max_length = settings.max_length or checkpoint.max_length  # longest input in tokens
        variants = ModelVariants.from_run(run_dir, model, task=task)
        if settings.policy != "adaptive" and variants.find(settings.policy) is None:
            known = ["adaptive", *(f"static:{name}" for name in variants.names("subnet")), *variants.names("policy")]
            raise ConfigError(f"policy is {settings.policy!r}; it must be one of {', '.join(known)}")
        #: called with the output of every completed request
        self.on_output: Callable[[RequestOutput], None] = lambda output: None
        vocab_size = model.network.config.vocab_size
        self._tokenizer = FastTokenizer(checkpoint.tokenizer, max_length=self.max_length, vocab_size=vocab_size)
        self.variants, runtimes, self.runtime_name = compile_variants(
            checkpoint, variants, settings, threads=torch.get_num_threads()
        )
        self._runner = ModelRunner(model, self.variants, self._tokenizer, task_type=task.task_type, runtimes=runtimes)
        self._counts, self._started_at = ServerCounts(), time.monotonic()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MAX_LATENCIES)  # when and seconds, by request
        self._started: _Started | None = None
        self._draining = False

    def start(self) -> None:
        """Measure the latency of the variants (some seconds) and begin to serve; a second call does nothing."""
        if self._started is not None:
            return
        settings = self.settings
        models = self._runner.calibrate(max_length=self.max_length, time_budget=_CALIBRATION_SECONDS)
        tracker = LatencyTracker(models)
        usual_seconds = {name: model.seconds(8 * min(32, self.max_length)) for name, model in models.items()}
        selector = VariantSelector(self.variants, usual_seconds, policy=settings.policy, slo=settings.slo)
        config = SchedulerConfig(settings.slo, settings.max_batch_tokens, settings.max_queue)
        names = [variant.name for variant in selector.ranked_variants]
        queue = RequestQueue(Scheduler(names, tracker.latency_model, config))
        thread = InferenceThread(queue, self._runner, tracker)
        self._counts, self._started_at = ServerCounts(), time.monotonic()
        thread.start()  # first: a request that finds the service started may use the queue
        self._started = _Started(selector, queue, thread, ThreadPoolExecutor(_TOKENIZER_THREADS, "limbert-tokenize"))

    async def predict(
        self, texts: Sequence[TextInput], *, options: RequestOptions = _DEFAULT_OPTIONS, truncate: bool = True
    ) -> RequestOutput:
        """The output of each text, equal to what it gets alone. Cancelling removes the texts from the queue.

        Long texts are truncated, or without ``truncate`` refused.

        Raises:
            ServeError: if the request is invalid, too large or refused, or the server cannot run it.
        """
        arrival = time.perf_counter()
        started = self._check_available()
        self._check_texts(texts)
        if options.abstain_below is not None and self.task.task_type != "classification":
            raise InvalidRequestError(f"abstain_below is for classification; the task is {self.task.task_type}")
        variants, budget = started.selector.select(options)
        future: Future[RequestOutput] = Future()
        deadline = inf if budget is None else arrival + budget
        request = PendingRequest((), variants, arrival, deadline, on_done=partial(_set_result, future))
        counts = self._counts
        counts.running += 1
        try:
            started.tokenizer_threads.submit(self._tokenize, started.queue, request, texts, truncate)
            output = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            counts.cancelled += 1
            started.queue.cancel(request)
            raise
        except OverloadedError:
            counts.refused += 1
            raise
        finally:
            counts.running -= 1
        counts.completed += 1
        self._latencies.append((time.monotonic(), time.perf_counter() - arrival))
        for text in output.outputs:
            counts.texts_by_variant[text.variant] = counts.texts_by_variant.get(text.variant, 0) + 1
        if self.settings.shadow:
            self._compare_with_full(started.queue, request, output)
        self.on_output(output)
        return output

    def _compare_with_full(self, queue: RequestQueue, request: PendingRequest, output: RequestOutput) -> None:
        """Run some of the texts at full size once nothing is queued, and count whether the labels agree."""
        full, counts = self.variants.full.name, self._counts

        def compare(text: TextOutput, result: RequestOutput | ServeError) -> None:
            with suppress(InferenceError):  # the full model's outputs are not finite
                if isinstance(result, RequestOutput):
                    labels, expected = (predicted_labels(self.task, one.logits) for one in (text, *result.outputs))
                    agrees = set(labels) == set(expected)
                    counts.agreeing[text.variant] = counts.agreeing.get(text.variant, 0) + agrees
                    counts.compared[text.variant] = counts.compared.get(text.variant, 0) + 1

        for tokens, text in zip(request.texts, output.outputs, strict=True):
            if text.variant != full and random.random() < self.settings.shadow:
                queue.submit_background(tokens, full, partial(compare, text))

    def snapshot(self) -> ServerSnapshot:
        """The server at this moment."""
        now = time.monotonic()
        state = self._started.queue.state() if self._started else QueueState(self.settings.policy)
        recent = [(at, seconds) for at, seconds in self._latencies if at >= now - _WINDOW]
        is_full = len(recent) == _MAX_LATENCIES
        span = now - recent[0][0] if is_full else min(_WINDOW, now - self._started_at)
        latencies = sorted(1000 * seconds for _, seconds in recent)
        p50_ms, p99_ms = (latencies[int(q * len(latencies))] if latencies else None for q in (0.5, 0.99))
        counts: dict[str, Any] = {  # copies, because the compute thread adds to two of the dictionaries
            name: value.copy() if isinstance(value, dict) else value for name, value in vars(self._counts).items()
        }
        return ServerSnapshot(
            **asdict(state),
            **counts,
            requests_per_second=len(recent) / max(span, 1e-3),
            p50_ms=p50_ms,
            p99_ms=p99_ms,
            uptime=now - self._started_at,
        )

    @property
    def healthy(self) -> bool:
        """False once inference has failed for good."""
        return self._started is None or self._started.inference_thread.error is None

    @property
    def ready(self) -> bool:
        """Started, healthy and not shutting down."""
        alive = self._started is not None and self._started.inference_thread.is_alive()
        return alive and self.healthy and not self._draining

    async def drain(self, timeout: float) -> None:
        """Accept no more requests, wait for those in progress (seconds at most), then `close`."""
        self._draining = True
        end = time.monotonic() + timeout
        while self._counts.running and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stop now: requests in progress end with `UnavailableError`."""
        self._draining = True
        if self._started is not None:
            self._started.queue.close(_SHUTTING_DOWN)
            self._started.inference_thread.join(timeout=10)
            self._started.tokenizer_threads.shutdown()

    def check_name(self, name: str) -> None:
        """Raise `ApiError` unless this is the model's name."""
        if name != self.model_name:
            raise ApiError(404, f"model is {name[:200]!r}; this server has {self.model_name!r}")

    def _check_available(self) -> _Started:
        if self._draining:
            raise UnavailableError(_SHUTTING_DOWN)
        if self._started is None:
            raise UnavailableError("not ready yet: the server is starting")
        if not self._started.inference_thread.working:
            error = type(self._started.inference_thread.error).__name__
            raise UnavailableError(f"inference has failed ({error}); restart the server")
        return self._started

    def _check_texts(self, texts: Sequence[TextInput]) -> None:
        limit = min(self.settings.max_texts, self.settings.max_queue)
        if not texts:
            raise InvalidRequestError("inputs has no texts; it must have at least one")
        if len(texts) > limit:
            raise RequestTooLargeError(f"the request has {len(texts)} texts; at most {limit} are allowed")
        for has_pairs in {pair is not None for _, pair in texts}:
            try:
                self.task.check_inputs(has_pairs=has_pairs)
            except DataError as error:
                raise InvalidRequestError(str(error)) from None

    def _tokenize(
        self, queue: RequestQueue, request: PendingRequest, texts: Sequence[TextInput], truncate: bool
    ) -> None:
        """Tokenise and queue a request, in a thread; every error ends the request."""
        if request.cancelled:
            return
        start = time.perf_counter()
        try:
            request.texts = self._tokenizer.tokenize(texts)
            truncated = [index for index, text in enumerate(request.texts) if text.truncated]
            if truncated and not truncate:
                raise RequestTooLargeError(
                    f"text {truncated[0]} is longer than {self.max_length} tokens, and truncation is off"
                )
            request.lengths = [len(text.input_ids) for text in request.texts]
            request.tokenization_seconds = time.perf_counter() - start
            queue.submit(request)
        except ServeError as error:
            request.on_done(error)
        except BaseException as error:  # a panic of the tokenizers library is not an Exception
            request.on_done(InvalidRequestError(f"a text cannot be tokenised: {type(error).__name__}"))


def _set_result(future: "Future[RequestOutput]", result: RequestOutput | ServeError) -> None:
    with suppress(InvalidStateError):  # cancelled
        if isinstance(result, ServeError):
            future.set_exception(result)
        else:
            future.set_result(result)


def default_threads(workers: int) -> int:
    """CPU threads of the model in one process: all cores but one, which the network gets, divided by the workers."""
    return max(1, (usable_cores() - 1) // workers)
