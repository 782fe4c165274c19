"""Requests in the queue: cancelled, expired, failing, drained at shutdown, and compared with the full model."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.factories.runs import needs_encoder
from tests.factories.servers import make_run, opened
from tests.factories.service import TEXTS, WORDS, in_event_loop, together, until

from limbert.inference.engine import Engine
from limbert.serve import queue
from limbert.serve.errors import (
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
    UnavailableError,
)
from limbert.serve.latency_model import LatencyModel
from limbert.serve.metrics import ServerMetrics
from limbert.serve.runner import ModelRunner
from limbert.serve.selection import RequestOptions
from limbert.serve.service import RequestOutput, Service

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("queue") / "run")


class Gate:
    """Blocks batches before they run."""

    def __init__(self) -> None:
        self.is_open, self.reached = threading.Event(), threading.Event()
        self.is_open.set()

    def close(self) -> None:
        """Block the next batch."""
        self.is_open.clear()
        self.reached.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, original = Gate(), ModelRunner.run

    def gated(self: ModelRunner, variant: str, texts: Any) -> Any:
        gate.reached.set()
        assert gate.is_open.wait(30)
        return original(self, variant, texts)

    monkeypatch.setattr(ModelRunner, "run", gated)
    yield gate
    gate.is_open.set()


async def start_blocked(service: Service, gate: Gate, count: int = 1) -> "asyncio.Task[RequestOutput]":
    """A request whose batch waits at the gate."""
    gate.close()
    task = asyncio.create_task(service.predict(TEXTS[:count]))
    await until(gate.reached.is_set)
    return task


def test_requests_over_the_limits_are_refused(run: Path, gate: Gate) -> None:
    with opened(run, max_queue=6, max_texts=5) as service:
        with pytest.raises(RequestTooLargeError, match="at most 5"):
            together(lambda: service.predict(TEXTS[:6]))
        with pytest.raises(InvalidRequestError, match="no texts"):
            together(lambda: service.predict([]))
        with pytest.raises(InvalidRequestError, match="Unicode"):
            together(lambda: service.predict([("\ud800", None)]))

        async def main() -> None:
            first = await start_blocked(service, gate)
            waiting = [asyncio.create_task(service.predict(TEXTS[:3])) for _ in range(2)]
            await until(lambda: service.snapshot().queued == 6)
            with pytest.raises(OverloadedError, match="6 texts"):
                await service.predict(TEXTS[:1])
            gate.is_open.set()
            await asyncio.gather(first, *waiting)

        together(main)
        assert (service.snapshot().refused, service.snapshot().completed) == (1, 3)


@in_event_loop
async def test_cancelled_requests_do_not_run(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    gated = ModelRunner.run
    monkeypatch.setattr(
        ModelRunner, "run", lambda self, name, texts: ran.append(len(texts)) or gated(self, name, texts)
    )
    with opened(run) as service:
        ran.clear()
        first = await start_blocked(service, gate)
        gone = [asyncio.create_task(service.predict(TEXTS[:3])) for _ in range(5)]
        kept = asyncio.create_task(service.predict(TEXTS[3:5]))
        await until(lambda: service.snapshot().queued == 17)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert service.snapshot().queued == 2
        first.cancel()  # already running: its output is dropped
        gate.is_open.set()
        assert len((await kept).outputs) == 2
        assert sum(ran) == 3
        assert service.snapshot().cancelled == 6
        assert service.snapshot().running == 0


@in_event_loop
async def test_failing_text_ends_only_its_own_request(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine.run

    def fails_on_long(self: Engine, inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] == 32:
            raise RuntimeError("no memory")
        return original(self, inputs)

    with opened(run) as service:
        monkeypatch.setattr(Engine, "run", fails_on_long)
        tasks = [await start_blocked(service, gate)]
        long = (" ".join(WORDS * 5), None)
        tasks += [asyncio.create_task(service.predict([text, TEXTS[1]])) for text in (TEXTS[2], long, TEXTS[3])]
        await until(lambda: service.snapshot().queued == 6)
        gate.is_open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(2), InferenceError)
        assert [len(result.outputs) for result in results] == [1, 2, 2]
        assert service.ready


@in_event_loop
async def test_broken_model_ends_all_requests(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(run) as service:

        def broken(self: Engine, inputs: Any) -> Any:
            raise RuntimeError("no memory")

        tasks = [await start_blocked(service, gate, count=2)]
        tasks += [asyncio.create_task(service.predict(TEXTS[:2])) for _ in range(3)]
        await until(lambda: service.snapshot().queued == 6)
        monkeypatch.setattr(Engine, "run", broken)
        assert service.healthy
        gate.is_open.set()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(error, UnavailableError), error
        assert not service.healthy
        assert not service.ready
        with pytest.raises(UnavailableError, match="RuntimeError"):
            await service.predict(TEXTS[:1])


@in_event_loop
async def test_expired_requests_do_not_run(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = 0.0
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead))
    with opened(run) as service:
        running = await start_blocked(service, gate)
        urgent = asyncio.create_task(service.predict(TEXTS[:1], options=RequestOptions(latency_budget_ms=30_000)))
        await until(lambda: service.snapshot().queued == 1)
        ahead = 60.0
        gate.is_open.set()
        with pytest.raises(OverloadedError, match="deadline"):
            await urgent
        assert len((await running).outputs) == 1


def test_latencies_of_a_busy_start_are_corrected(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.serve.queue._PROBE_INTERVAL", 0.0)
    monkeypatch.setattr(
        ModelRunner, "calibrate", lambda self, **_: dict.fromkeys(self._networks, LatencyModel(60.0, 0.001))
    )
    with opened(run) as service:

        async def main() -> int:
            refused = 0
            while True:
                try:
                    await service.predict(TEXTS[:1], options=RequestOptions(latency_budget_ms=30_000))
                except OverloadedError:
                    refused += 1
                else:
                    return refused
                await until(lambda: service._started is not None and service._started.queue.state().idle)

        assert 3 < together(main) < 500
        assert service.snapshot().completed == 1


@in_event_loop
async def test_drain_completes_requests_in_progress(run: Path, gate: Gate) -> None:
    with opened(run) as service:
        gate.close()
        tasks = [asyncio.create_task(service.predict(TEXTS[:2])) for _ in range(3)]
        await until(lambda: service.snapshot().running == 3 and gate.reached.is_set())
        draining = asyncio.create_task(service.drain(20))
        await until(lambda: not service.ready)
        with pytest.raises(UnavailableError, match="shutting down"):
            await service.predict(TEXTS[:1])
        gate.is_open.set()
        assert [len(output.outputs) for output in await asyncio.gather(*tasks)] == [2, 2, 2]
        await draining
        assert service.healthy


@in_event_loop
async def test_drain_stops_after_its_timeout(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(run) as service:
        original = service._started.queue.close

        def close(reason: str) -> None:
            original(reason)
            gate.is_open.set()

        running = await start_blocked(service, gate)
        waiting = asyncio.create_task(service.predict(TEXTS[:1]))
        await until(lambda: service.snapshot().queued == 1)
        monkeypatch.setattr(service._started.queue, "close", close)
        await service.drain(0.05)
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            await running


@in_event_loop
async def test_shadow_counts_agreement_with_the_full_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ModelRunner.run

    def differs_on_odd_lengths(self: ModelRunner, name: str, texts: Any) -> Any:
        outputs = original(self, name, texts)
        return [
            replace(text, logits=(*text.logits[1:], text.logits[0])) if name == "1x1" and text.tokens % 2 else text
            for text in outputs
        ]

    monkeypatch.setattr(ModelRunner, "run", differs_on_odd_lengths)
    few = TEXTS[:12]  # that may wait at once
    with opened(run, shadow=1.0, policy="static:0.5x0.5") as service:
        texts = [(await service.predict([text])).outputs[0] for text in few]
        await service.predict(TEXTS[:3], options=RequestOptions(subnet="1x1"))  # not compared with itself
        await until(lambda: service.snapshot().compared.get("0.5x0.5") == len(few))
        same = sum(text.tokens % 2 == 0 for text in texts)
        now = service.snapshot()
        assert (now.compared, now.agreeing) == ({"0.5x0.5": len(few)}, {"0.5x0.5": same})
        assert now.completed == len(few) + 1
        metrics = ServerMetrics(service).response().body.decode()
    assert f'limbert_shadow_agreement{{size="0.5x0.5"}} {same / len(few)}' in metrics
    assert 0 < same < len(few)


@in_event_loop
async def test_shadow_waits_for_an_empty_queue(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    gated = ModelRunner.run
    monkeypatch.setattr(ModelRunner, "run", lambda self, name, texts: ran.append(name) or gated(self, name, texts))
    with opened(run, shadow=1.0, policy="static:0.5x0.5") as service:
        first = await start_blocked(service, gate)
        ran.clear()
        waiting = [asyncio.create_task(service.predict([text])) for text in TEXTS[:9]]
        await until(lambda: service.snapshot().queued == 9)
        gate.is_open.set()
        await asyncio.gather(first, *waiting)
        await until(lambda: service.snapshot().compared.get("0.5x0.5") == 10)
    assert ran.count("1x1") == 10
    assert ran == sorted(ran)  # all of 1x1 last
