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
from limbert.inference.load import open_checkpoint, usable_cores
from limbert.serve.errors import BadRequest, Down, Refused, ServeError, TooLong
from limbert.serve.latency_model import Speeds
from limbert.serve.queue import Compute, Desk, Job, send
from limbert.serve.runner import Answers, Row, Runner, Timing
from limbert.serve.scheduler import Rules, Scheduler
from limbert.serve.selection import Offer, Wish
from limbert.serve.settings import ServeSettings
from limbert.serve.tokenizer import Encoder, Text, Threads
from limbert.serve.variants import Menu

_WINDOW = 10.0  # seconds
_MOST = 20000  # latencies kept


@dataclass(frozen=True)
class Snapshot:
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

    size: str
    queued: int
    queued_tokens: int
    running: int
    requests_per_second: float
    p50: float | None
    p99: float | None
    refused: int
    answered: int
    cancelled: int
    sizes: dict[str, int]
    level_changes: int
    uptime: float


class Watch:
    """Counts; written to from the event loop alone."""

    def __init__(self) -> None:
        self.refused = 0
        self.answered = 0
        self.cancelled = 0
        self.running = 0
        self.sizes: Counter[str] = Counter()
        self.since = time.monotonic()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MOST)  # (when, seconds)

    def took(self, seconds: float) -> None:
        """A request was answered."""
        self.answered += 1
        self._latencies.append((time.monotonic(), seconds))

    def recent(self) -> tuple[float, float | None, float | None]:
        """Requests a second, median and 99th percentile of their seconds, over the last ten seconds."""
        now = time.monotonic()
        while self._latencies and self._latencies[0][0] < now - _WINDOW:
            self._latencies.popleft()
        if not self._latencies:
            return 0.0, None, None
        seconds = sorted(one for _, one in self._latencies)
        span = now - self._latencies[0][0] if len(seconds) == _MOST else min(_WINDOW, now - self.since)
        return len(seconds) / max(span, 1e-3), _share(seconds, 0.5), _share(seconds, 0.99)


def _share(ordered: list[float], share: float) -> float:
    """The value that this share of the others is not above."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


__all__ = ["Answers", "Row", "Service", "Snapshot", "Text", "Timing"]

_SERVED = ("classification", "multi-label", "regression")
_CALIBRATION = 3.0  # seconds
_TOKENISERS = 2  # threads
_ANY = Wish()


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
        menu: Menu,
        settings: ServeSettings,
        encoder: Encoder,
        max_tokens: int,
        runner: Runner,
    ) -> None:
        self.name, self.task, self.menu, self.settings, self.max_tokens = name, task, menu, settings, max_tokens
        self._encoder, self._runner, self._watch = encoder, runner, Watch()
        self._ids = itertools.count()
        self._draining = False
        if settings.policy != "adaptive" and menu.find(settings.policy) is None:
            known = ", ".join(["adaptive", *(f"static:{one.name}" for one in menu.sizes if one.kind == "subnet")])
            points = "".join(f", {one.name}" for one in menu.sizes if one.kind == "policy")
            raise ConfigError(f"policy is {settings.policy!r}; it must be one of {known}{points}")
        self._offer: Offer | None = None
        self._desk: Desk | None = None
        self._compute: Compute | None = None
        self._tokenisers: Threads | None = None

    @classmethod
    def open(cls, run: str | Path, settings: ServeSettings) -> Self:
        """Load a trained model.

        Raises:
            CheckpointError: if the run is missing or broken, or was not trained by Limbert.
            ConfigError: if the settings name a policy that the model does not have, or a length that it has not.
            UnsupportedModelError: if the model does not classify or score texts.
        """
        opened = open_checkpoint(run, device=settings.device)
        if opened.task is None:
            raise CheckpointError(f"{run} has no limbert.json; train it with limbert train first")
        if opened.task.kind not in _SERVED:
            raise UnsupportedModelError(
                f"{run} answers a task of kind {opened.task.kind}; served are {', '.join(_SERVED)}"
            )
        longest = opened.model.longest_input
        if settings.max_length is not None and settings.max_length > longest:
            raise ConfigError(f"maximum length is {settings.max_length}; the model takes {longest} tokens at most")
        torch.set_num_threads(settings.threads or default_threads(settings.workers))
        max_tokens = settings.max_length or opened.max_length
        menu = Menu.of(run, opened.model, task=opened.task)
        encoder = Encoder(opened.tokenizer, max_tokens=max_tokens)
        runner = Runner(opened.model, menu, encoder, kind=opened.task.kind, precision=settings.precision)
        return cls(
            settings.name or Path(run).resolve().name,
            task=opened.task,
            menu=menu,
            settings=settings,
            encoder=encoder,
            max_tokens=max_tokens,
            runner=runner,
        )

    def start(self) -> None:
        """Measure the sizes (some seconds), and begin to answer. Once; a second call does nothing."""
        if self._desk is not None:
            return
        lines = self._runner.calibrate(max_tokens=self.max_tokens, seconds=_CALIBRATION)
        speeds = Speeds(lines)
        usual = 8 * min(32, self.max_tokens)
        self._offer = Offer(
            self.menu, policy=self.settings.policy, slo=self.settings.slo, seconds=lambda one: lines[one.name].at(usual)
        )
        rules = Rules(
            slo=self.settings.slo,
            max_batch_tokens=self.settings.max_batch_tokens,
            max_queue=self.settings.max_queue,
            adaptive=self._offer.adaptive,
        )
        self._desk = Desk(Scheduler([size.name for size in self._offer.ladder], speeds.line, rules))
        self._compute = Compute(
            self._desk,
            self._runner.run,
            lambda size, tokens, seconds: speeds.measured(size, tokens=tokens, seconds=seconds),
        )
        self._tokenisers = Threads(_TOKENISERS, name="limbert-tokenise")
        self._watch = Watch()
        self._compute.start()

    async def answer(self, texts: Sequence[Text], *, wish: Wish = _ANY, truncate: bool = True) -> Answers:
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
        desk, tokenisers, sizes, budget = self._checked(texts, wish)
        loop = asyncio.get_running_loop()
        job = Job(next(self._ids), arrival, sizes, budget, loop, loop.create_future())
        self._watch.running += 1
        try:
            tokenisers.call(partial(self._tokenise, desk, job, texts, truncate))
            answers = await job.future
        except asyncio.CancelledError:
            self._watch.cancelled += 1
            desk.cancel(job)
            raise
        except Refused:
            self._watch.refused += 1
            raise
        finally:
            self._watch.running -= 1
        self._watch.took(time.perf_counter() - arrival)
        for row in answers.rows:
            self._watch.sizes[row.size] += 1
        return answers

    def snapshot(self) -> Snapshot:
        """The server at this moment."""
        size, queued, tokens, changes = self.settings.policy, 0, 0, 0
        if self._desk is not None:
            size, queued, tokens, changes = self._desk.look(
                lambda one: (one.size, one.queued, one.queued_tokens, one.level_changes)
            )
        watch = self._watch
        rate, p50, p99 = watch.recent()
        return Snapshot(
            size=size,
            queued=queued,
            queued_tokens=tokens,
            running=watch.running,
            requests_per_second=rate,
            p50=p50,
            p99=p99,
            refused=watch.refused,
            answered=watch.answered,
            cancelled=watch.cancelled,
            sizes=dict(watch.sizes),
            level_changes=changes,
            uptime=time.monotonic() - watch.since,
        )

    @property
    def healthy(self) -> bool:
        """False once the compute thread has died."""
        return self._compute is None or self._compute.crash is None

    @property
    def ready(self) -> bool:
        """Loaded, measured, and not being shut down."""
        return self._compute is not None and self._compute.alive and not self._draining

    async def drain(self, timeout: float) -> None:
        """Take no requests any more and wait for those under way, seconds at most; then `close`."""
        self._draining = True
        end = time.monotonic() + timeout
        while self._watch.running and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stop at once: what waits is answered with `Down`."""
        self._draining = True
        if self._desk is None or self._compute is None or self._tokenisers is None:
            return
        self._desk.close(Down("the server is being shut down"))
        self._compute.join(timeout=10)
        self._tokenisers.close()

    def _checked(self, texts: Sequence[Text], wish: Wish) -> tuple[Desk, Threads, tuple[str, ...], float | None]:
        """Everything that can be refused before any work."""
        if self._draining:
            raise Down("the server is being shut down")
        if self._desk is None or self._tokenisers is None or self._offer is None or self._compute is None:
            raise Down("the server has not started yet")
        if not self._compute.alive:
            raise Down(f"the compute has failed: {type(self._compute.crash).__name__}")
        if not texts:
            raise BadRequest("no texts; expected at least one")
        most = min(self.settings.max_texts, self.settings.max_queue)
        if len(texts) > most:
            raise TooLong(f"{len(texts)} texts in one request; at most {most} are taken")
        for pairs in {pair is not None for _, pair in texts}:
            try:
                self.task.check_inputs(pairs=pairs)
            except DataError as error:
                raise BadRequest(str(error)) from None
        return self._desk, self._tokenisers, *self._offer.sizes_for(wish)

    def _tokenise(self, desk: Desk, job: Job, texts: Sequence[Text], truncate: bool) -> None:
        """In a tokenising thread: from texts to the queue; what goes wrong goes back."""
        if job.future.done():
            return
        job.tokenising_began = time.perf_counter()
        try:
            encoded = self._encoder.encode(texts)
            cut = [place for place, one in enumerate(encoded) if one.truncated]
            if cut and not truncate:
                raise TooLong(f"text {cut[0]} is longer than {self.max_tokens} tokens, and cutting was not allowed")
            desk.put(job, encoded)
        except ServeError as error:
            send([(job, error)])
        except Exception as error:
            send([(job, BadRequest(f"the text cannot be tokenised: {type(error).__name__}"))])


def default_threads(workers: int) -> int:
    """CPU threads of the model in one process: all cores but one, which the network gets, shared out."""
    return max(1, (usable_cores() - 1) // workers)
