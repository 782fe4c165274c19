"""The service predicts as the engine does, keeps request options, and refuses what it cannot do; on a small model."""

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.factories.runs import needs_encoder
from tests.factories.servers import make_measured_run, opened, settings
from tests.factories.service import TEXTS, WORDS, in_event_loop, together
from transformers import AutoTokenizer

from limbert.data.readers import Examples
from limbert.data.tokenize import tokenize_texts
from limbert.errors import CheckpointError, ConfigError
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import Policy
from limbert.serve.errors import (
    InferenceError,
    InvalidRequestError,
    OverloadedError,
    RequestTooLargeError,
    UnavailableError,
)
from limbert.serve.process import serve
from limbert.serve.queue import InferenceThread
from limbert.serve.runner import ModelRunner
from limbert.serve.selection import RequestOptions
from limbert.serve.service import RequestOutput, Service
from limbert.serve.settings import ServeSettings
from limbert.serve.tokenizer import FastTokenizer, TokenizedText

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_measured_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="module")
def started(run: Path) -> Iterator[Service]:
    with opened(run) as service:
        yield service


@pytest.mark.parametrize("variant", ["1x1", "0.5x1", "early"])
def test_batched_outputs_equal_the_engines_one_by_one(run: Path, variant: str) -> None:
    checkpoint = load_checkpoint(run)
    with opened(run) as service:

        async def main() -> list[RequestOutput]:
            options = RequestOptions(policy=variant)
            return await asyncio.gather(*(service.predict(TEXTS[i : i + 4], options=options) for i in range(0, 40, 4)))

        rows = [row for output in together(main) for row in output.outputs]
        policy = service.variants.by_name[variant].policy
    engine = Engine(checkpoint.model, policy, task_type="classification")
    for (text, pair), row in zip(TEXTS, rows, strict=True):
        examples = Examples((text,), None if pair is None else (pair,), None)
        tokens = tokenize_texts(examples, checkpoint.tokenizer, max_length=32, use_cache=False)
        alone = engine.run(tokens.collate([0]))
        torch.testing.assert_close(torch.tensor(row.logits), alone.logits[0], atol=1e-5, rtol=1e-5)
        assert (row.variant, row.tokens, row.truncated) == (variant, tokens.lengths[0], False)
        assert (row.flops, row.layers) == (int(alone.trace.flops[0]), int(alone.trace.layers_run[0]))
        assert row.widths == tuple(alone.trace.widths[0].tolist())


def test_long_texts_are_truncated_or_refused(run: Path) -> None:
    long, checkpoint = " ".join(WORDS * 5), load_checkpoint(run)
    with opened(run) as service:
        row = together(lambda: service.predict([(long, "short")])).outputs[0]
        assert (row.tokens, row.truncated) == (32, True)
        tokens = tokenize_texts(
            Examples((long,), ("short",), None), checkpoint.tokenizer, max_length=32, use_cache=False
        )
        alone = Engine(checkpoint.model, Policy(subnet="1x1"), task_type="classification").run(tokens.collate([0]))
        torch.testing.assert_close(torch.tensor(row.logits), alone.logits[0], atol=1e-5, rtol=1e-5)
        with pytest.raises(RequestTooLargeError, match="32 tokens"):
            together(lambda: service.predict([("short", None), (long, None)], truncate=False))


def test_options_choose_the_variant(run: Path) -> None:
    with opened(run, policy="static:0.5x1.0") as service:

        def variants(**options: Any) -> set[str]:
            output = together(lambda: service.predict(TEXTS[:3], options=RequestOptions(**options)))
            return {text.variant for text in output.outputs}

        assert variants() == {"0.5x1"}
        assert variants(subnet="1.0x0.50") == {"1x0.5"}
        assert variants(policy="static:1x1") == {"1x1"}
        assert variants(policy="early") == {"early"}
        assert variants(min_quality=0.8) == {"0.5x1"}
        assert variants(min_quality=0.86) == {"1x1"}
        assert variants(min_quality=0.9, subnet="1x1") == {"1x1"}
        assert variants(latency_budget_ms=30_000) == {"0.5x1"}
        for options in (
            {"subnet": "0.3x1"}, {"subnet": "early"}, {"policy": "late"}, {"min_quality": 0.95},
            {"min_quality": 0.85, "subnet": "0.5x1"}, {"subnet": "1x1", "policy": "early"}, {"subnet": 3},
            {"latency_budget_ms": 0}, {"latency_budget_ms": "5"}, {"min_quality": True},
            {"min_quality": 0.5, "policy": "early"},  # measured on other data than the rest
        ):  # fmt: skip
            with pytest.raises((InvalidRequestError, ValidationError)):
                variants(**options)
        with pytest.raises(OverloadedError) as refused:
            variants(latency_budget_ms=0.001)
        assert refused.value.retry_after > 0


def test_adaptive_runs_the_best_on_an_idle_server(run: Path) -> None:
    with opened(run, policy="adaptive") as service:
        assert {row.variant for row in together(lambda: service.predict(TEXTS[:5])).outputs} == {"1x1"}
        assert service.snapshot().variant == "1x1"
        assert {
            row.variant
            for row in together(lambda: service.predict(TEXTS[:5], options=RequestOptions(min_quality=0.89))).outputs
        } == {"1x1"}


@pytest.mark.parametrize("pairs", [True, False])
@in_event_loop
async def test_pairs_must_match_the_training_data(run: Path, tmp_path: Path, pairs: bool) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "limbert.json").read_text())
    (tmp_path / "run" / "limbert.json").write_text(json.dumps(record | {"task": record["task"] | {"pairs": pairs}}))
    right, wrong = [("a", "b"), ("a", None)][:: 1 if pairs else -1]
    with opened(tmp_path / "run") as service:
        assert len((await service.predict([right])).outputs) == 1
        with pytest.raises(InvalidRequestError, match="missing" if pairs else "given"):
            await service.predict([right, wrong])


UNICODE = st.text(st.characters(codec=None), max_size=40)


@given(st.lists(st.tuples(UNICODE, st.none() | UNICODE), min_size=1, max_size=4))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_no_text_stops_the_server(started: Service, texts: list[tuple[str, str | None]]) -> None:
    try:
        assert len(together(lambda: started.predict(texts)).outputs) == len(texts)
    except InvalidRequestError:  # a lone surrogate
        assert any("\ud800" <= char <= "\udfff" for text in texts for part in text if part for char in part)
    assert started.ready


@given(
    st.lists(st.lists(st.integers(-2, 31_000) | st.integers(-(2**63), 2**63 - 1), max_size=70), min_size=1, max_size=3)
)
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_no_token_ids_stop_the_server(started: Service, ids: list[list[int]]) -> None:
    """Whatever a tokenizer returns: unknown ids, no ids, more ids than positions."""
    arrays = [np.array(row, dtype=np.int64) for row in ids]
    texts = [TokenizedText(row, np.zeros_like(row), False) for row in arrays]
    with patch.object(FastTokenizer, "tokenize", return_value=texts):
        try:
            together(lambda: started.predict([("a", None)] * len(ids)))
        except InferenceError:
            assert not all(row.size and row.min() >= 0 and row.max() < 30_522 and row.size <= 64 for row in arrays)
    assert len(together(lambda: started.predict(TEXTS[:2])).outputs) == 2
    assert started.ready


def test_unknown_token_is_refused_not_run(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzcustomzz"])  # the embedding is not resized
    tokenizer.save_pretrained(folder)
    with opened(folder) as service:
        with pytest.raises(InvalidRequestError, match="zzcustomzz"):
            together(lambda: service.predict([("a zzcustomzz", None)]))
        assert len(together(lambda: service.predict(TEXTS[:1])).outputs) == 1


def test_address_is_announced_when_connections_succeed(run: Path) -> None:
    connected = []

    def on_ready(address: str) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        try:
            with socket.create_connection((host, int(port))):
                connected.append(address)
        finally:
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # raised again after the server has stopped
    try:
        serve(run, settings(port=0), on_ready=on_ready)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert connected


def test_requests_during_start_are_not_ready_yet(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, service = InferenceThread.start, Service(run, settings())

    def start(self: InferenceThread) -> None:
        with pytest.raises(UnavailableError, match="starting"):
            together(lambda: service.predict(TEXTS[:1]))
        original(self)

    monkeypatch.setattr(InferenceThread, "start", start)
    service.start()
    assert len(together(lambda: service.predict(TEXTS[:1])).outputs) == 1
    service.close()


def test_errors_at_start_reach_the_caller(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CheckpointError("the weights are gone")

    monkeypatch.setattr(ModelRunner, "calibrate", fail)
    with pytest.raises(CheckpointError):
        serve(run, ServeSettings(port=0, threads=1), on_ready=lambda address: None)


def test_bad_settings_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="early"):
        Service(run, ServeSettings(policy="late"))
    with pytest.raises(ConfigError, match="64"):
        Service(run, ServeSettings(max_length=1000))
    with pytest.raises(CheckpointError):
        Service(tmp_path / "none", ServeSettings())
    for name, value in (("port", 70000), ("slo", 0.0), ("max_queue", 0), ("workers", 0), ("api_key", "")):
        with pytest.raises(ConfigError):
            ServeSettings(**{name: value})
