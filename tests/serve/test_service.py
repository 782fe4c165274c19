"""The service answers as the engine does, keeps wishes, and says so where it cannot answer; on a small real model."""

import asyncio
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.factories.runs import needs_encoder
from tests.factories.servers import make_run, opened, settings

from limbert.data.readers import Examples
from limbert.data.tokenize import tokenize_texts
from limbert.errors import CheckpointError, ConfigError
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.method.early_exit import ExitRule
from limbert.serve import queue
from limbert.serve.errors import InvalidRequestError, OverloadedError, RequestTooLargeError, UnavailableError
from limbert.serve.latency_model import LatencyModel
from limbert.serve.process import serve
from limbert.serve.runner import ModelRunner
from limbert.serve.selection import RequestOptions
from limbert.serve.service import RequestOutput, Service
from limbert.serve.settings import ServeSettings

pytestmark = needs_encoder
QUALITY = {"1x1": 0.9, "0.5x1": 0.8, "1x0.5": 0.85, "0.5x0.5": 0.7}
SENTENCE = "the film was a long and slow but in the end rather moving piece of work that nobody will forget soon"
WORDS = SENTENCE.split()
TEXTS = [
    (" ".join(WORDS[place % 7 : place % 7 + 1 + place % 13]), " ".join(WORDS[: place % 5 + 1]) if place % 3 else None)
    for place in range(40)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("serve") / "run")
    lines = [{"subnet": name, "params": 1, "flops": 1, "metrics": {"accuracy": QUALITY[name]}} for name in QUALITY]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    early = Policy(widths=(0.5,), exits=ExitRule("confidence", 0.6))
    save_operating_points(folder, {"early": OperatingPoint(early, "accuracy", 0.99, 0.4)})
    return folder


class Gate:
    """Where batches can be held before they run."""

    def __init__(self) -> None:
        self.is_open, self.reached = threading.Event(), threading.Event()
        self.is_open.set()

    def close(self) -> None:
        """Hold the next batch."""
        self.is_open.clear()
        self.reached.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, original = Gate(), ModelRunner.run

    def held(self: ModelRunner, size: str, texts: Any) -> Any:
        gate.reached.set()
        assert gate.is_open.wait(30)
        return original(self, size, texts)

    monkeypatch.setattr(ModelRunner, "run", held)
    yield gate
    gate.is_open.set()


def together(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 60))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", ["1x1", "0.5x1", "early"])
def test_answers_are_those_of_the_engine_one_by_one(run: Path, size: str) -> None:
    checkpoint = load_checkpoint(run)
    with opened(run) as service:

        async def main() -> list[RequestOutput]:
            wish = RequestOptions(policy=size)
            return await asyncio.gather(*(service.predict(TEXTS[at : at + 4], options=wish) for at in range(0, 40, 4)))

        rows = [row for answers in together(main) for row in answers.outputs]
        policy = service.variants.by_name[size].policy
    engine = Engine(checkpoint.model, policy, task_type="classification")
    for (text, pair), row in zip(TEXTS, rows, strict=True):
        examples = Examples((text,), None if pair is None else (pair,), None)
        tokens = tokenize_texts(examples, checkpoint.tokenizer, max_length=32, use_cache=False)
        alone = engine.run(tokens.collate([0]))
        torch.testing.assert_close(torch.tensor(row.logits), alone.logits[0], atol=1e-5, rtol=1e-5)
        assert (row.variant, row.tokens, row.truncated) == (size, tokens.lengths[0], False)
        assert (row.flops, row.layers) == (int(alone.trace.flops[0]), int(alone.trace.layers_run[0]))
        assert row.widths == tuple(alone.trace.widths[0].tolist())


def test_long_texts_are_cut_as_in_training_or_refused(run: Path) -> None:
    long, checkpoint = " ".join(WORDS * 5), load_checkpoint(run)
    with opened(run) as service:
        row = together(lambda: service.predict([(long, "short")])).outputs[0]
        assert (row.tokens, row.truncated) == (32, True)
        tokens = tokenize_texts(
            Examples((long,), ("short",), None), checkpoint.tokenizer, max_length=32, use_cache=False
        )
        alone = Engine(checkpoint.model, Policy(subnet="1x1"), task_type="classification").run(tokens.collate([0]))
        torch.testing.assert_close(torch.tensor(row.logits), alone.logits[0], atol=1e-5, rtol=1e-5)
        with pytest.raises(RequestTooLargeError, match="text 1 is longer than 32 tokens"):
            together(lambda: service.predict([("short", None), (long, None)], truncate=False))


def test_wishes_choose_the_size(run: Path) -> None:
    with opened(run, policy="static:0.5x1.0") as service:

        def sizes(**wish: Any) -> set[str]:
            answers = together(lambda: service.predict(TEXTS[:3], options=RequestOptions.from_parameters(wish)))
            return {row.variant for row in answers.outputs}

        assert sizes() == {"0.5x1"}
        assert sizes(subnet="1.0x0.50") == {"1x0.5"}
        assert sizes(policy="static:1x1") == {"1x1"}
        assert sizes(policy="early") == {"early"}
        assert sizes(min_quality=0.8) == {"0.5x1"}
        assert sizes(min_quality=0.86) == {"1x1"}
        assert sizes(min_quality=0.9, subnet="1x1") == {"1x1"}
        assert sizes(latency_budget_ms=30_000) == {"0.5x1"}
        for wish in (
            {"subnet": "0.3x1"}, {"subnet": "early"}, {"policy": "late"}, {"min_quality": 0.95},
            {"min_quality": 0.85, "subnet": "0.5x1"}, {"subnet": "1x1", "policy": "early"}, {"subnet": 3},
            {"latency_budget_ms": 0}, {"latency_budget_ms": "5"}, {"min_quality": True},
            {"min_quality": 0.5, "policy": "early"},  # measured on other data than the rest
        ):  # fmt: skip
            with pytest.raises(InvalidRequestError):
                sizes(**wish)
        with pytest.raises(OverloadedError) as refused:
            sizes(latency_budget_ms=0.001)
        assert refused.value.retry_after > 0


def test_adaptive_gives_the_best_where_there_is_time(run: Path) -> None:
    with opened(run, policy="adaptive") as service:
        assert {row.variant for row in together(lambda: service.predict(TEXTS[:5])).outputs} == {"1x1"}
        assert service.snapshot().variant == "1x1"
        assert {
            row.variant
            for row in together(lambda: service.predict(TEXTS[:5], options=RequestOptions(min_quality=0.89))).outputs
        } == {"1x1"}


@pytest.mark.parametrize("pairs", [True, False])
def test_texts_of_another_form_than_the_training_had_are_refused(run: Path, tmp_path: Path, pairs: bool) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "limbert.json").read_text())
    (tmp_path / "run" / "limbert.json").write_text(json.dumps(record | {"task": record["task"] | {"pairs": pairs}}))
    right, wrong = [("a", "b"), ("a", None)][:: 1 if pairs else -1]
    with opened(tmp_path / "run") as service:

        async def main() -> None:
            assert len((await service.predict([right])).outputs) == 1
            with pytest.raises(
                InvalidRequestError, match="the second text is missing" if pairs else "a second text is given"
            ):
                await service.predict([right, wrong])

        together(main)


def test_what_is_too_much_is_refused(run: Path, gate: Gate) -> None:
    with opened(run, max_queue=6, max_texts=5) as service:
        with pytest.raises(RequestTooLargeError, match="at most 5"):
            together(lambda: service.predict(TEXTS[:6]))
        with pytest.raises(InvalidRequestError, match="no texts"):
            together(lambda: service.predict([]))
        with pytest.raises(InvalidRequestError, match="no Unicode"):
            together(lambda: service.predict([("\ud800", None)]))

        async def main() -> None:
            gate.close()
            first = asyncio.create_task(service.predict(TEXTS[:1]))
            await until(gate.reached.is_set)
            waiting = [asyncio.create_task(service.predict(TEXTS[:3])) for _ in range(2)]
            await until(lambda: service.snapshot().queued == 6)
            with pytest.raises(OverloadedError, match="6 texts are waiting"):
                await service.predict(TEXTS[:1])
            gate.is_open.set()
            await asyncio.gather(first, *waiting)

        together(main)
        assert (service.snapshot().refused, service.snapshot().answered) == (1, 3)


def test_cancelled_requests_do_not_run(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    held = ModelRunner.run
    monkeypatch.setattr(ModelRunner, "run", lambda self, size, texts: ran.append(len(texts)) or held(self, size, texts))
    with opened(run) as service:
        ran.clear()

        async def main() -> None:
            gate.close()
            first = asyncio.create_task(service.predict(TEXTS[:1]))
            await until(gate.reached.is_set)
            gone = [asyncio.create_task(service.predict(TEXTS[:3])) for _ in range(5)]
            kept = asyncio.create_task(service.predict(TEXTS[3:5]))
            await until(lambda: service.snapshot().queued == 17)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            assert service.snapshot().queued == 2
            first.cancel()  # already running: its answer goes nowhere
            gate.is_open.set()
            assert len((await kept).outputs) == 2

        together(main)
        assert ran == [1, 2]
        assert service.snapshot().cancelled == 6
        assert service.snapshot().running == 0


def test_a_crash_of_the_compute_answers_everybody(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(run) as service:

        def broken(self: Engine, inputs: Any) -> Any:
            raise RuntimeError("no memory")

        async def main() -> None:
            gate.close()
            tasks = [asyncio.create_task(service.predict(TEXTS[:2]))]
            await until(gate.reached.is_set)
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

        together(main)


def test_draining_finishes_what_is_under_way(run: Path, gate: Gate) -> None:
    with opened(run) as service:

        async def main() -> None:
            gate.close()
            tasks = [asyncio.create_task(service.predict(TEXTS[:2])) for _ in range(3)]
            await until(lambda: service.snapshot().running == 3 and gate.reached.is_set())
            draining = asyncio.create_task(service.drain(20))
            await until(lambda: not service.ready)
            with pytest.raises(UnavailableError, match="shut down"):
                await service.predict(TEXTS[:1])
            gate.is_open.set()
            assert [len(answers.outputs) for answers in await asyncio.gather(*tasks)] == [2, 2, 2]
            await draining

        together(main)
        assert service.healthy


def test_a_start_in_a_busy_moment_is_not_believed_for_ever(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbert.serve.queue._PROBE_INTERVAL", 0.0)
    monkeypatch.setattr(
        ModelRunner, "calibrate", lambda self, **_: dict.fromkeys(self._engines, LatencyModel(60.0, 0.001))
    )
    with opened(run) as service:

        async def main() -> int:
            refused = 0
            while True:
                try:
                    await service.predict(TEXTS[:1], options=RequestOptions(latency_budget=30.0))
                except OverloadedError:
                    refused += 1
                else:
                    return refused
                await until(lambda: service._queue is not None and service._queue.inspect(lambda one: one.idle))

        assert 3 < together(main) < 500
        assert service.snapshot().answered == 1


def test_draining_does_not_wait_for_ever(run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(run) as service:
        closing = service._queue.close

        def close(error: UnavailableError) -> None:
            closing(error)
            gate.is_open.set()

        async def main() -> None:
            gate.close()
            running = asyncio.create_task(service.predict(TEXTS[:1]))
            await until(gate.reached.is_set)
            waiting = asyncio.create_task(service.predict(TEXTS[:1]))
            await until(lambda: service.snapshot().queued == 1)
            monkeypatch.setattr(service._queue, "close", close)
            await service.drain(0.05)
            with pytest.raises(UnavailableError):
                await waiting
            with pytest.raises(UnavailableError):
                await running

        together(main)


def test_a_late_request_is_refused_and_not_answered_late(
    run: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead))
    with opened(run) as service:

        async def main() -> None:
            nonlocal ahead
            gate.close()
            running = asyncio.create_task(service.predict(TEXTS[:1]))
            await until(gate.reached.is_set)
            hurried = asyncio.create_task(service.predict(TEXTS[:1], options=RequestOptions(latency_budget=30.0)))
            await until(lambda: service.snapshot().queued == 1)
            ahead = 60.0
            gate.is_open.set()
            with pytest.raises(OverloadedError, match="waited too long"):
                await hurried
            assert len((await running).outputs) == 1

        together(main)


def test_who_is_told_the_address_may_connect_at_once(run: Path) -> None:
    connected = []

    def ready(address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        try:
            with socket.create_connection((host, int(port))):
                connected.append(address)
        finally:
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # the server hands it on when it has ended
    try:
        serve(run, settings(port=0), on_ready=ready)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert connected


def test_what_goes_wrong_at_the_start_reaches_the_caller(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CheckpointError("the weights are gone")

    monkeypatch.setattr(ModelRunner, "calibrate", fail)
    with pytest.raises(CheckpointError, match="the weights are gone"):
        serve(run, ServeSettings(port=0, threads=1), on_ready=lambda address: None)


def test_bad_settings_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy is 'late'; it must be one of adaptive, static:1x1.*, early"):
        Service.load(run, ServeSettings(policy="late"))
    with pytest.raises(ConfigError, match="maximum length is 1000; the model takes 64"):
        Service.load(run, ServeSettings(max_length=1000))
    with pytest.raises(CheckpointError):
        Service.load(tmp_path / "none", ServeSettings())
    for name, value in (("port", 70000), ("slo", 0.0), ("max_queue", 0), ("workers", 0), ("api_key", "")):
        with pytest.raises(ConfigError):
            ServeSettings(**{name: value})
