"""A server in another runtime: outputs equal the engine's, and only the loaded sub-networks are offered."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from tests.factories.runs import needs_encoder
from tests.factories.servers import LABELS, Reference, make_measured_run, opened
from tests.factories.service import TEXTS as PAIRS
from tests.factories.service import together

from limbert import pipeline
from limbert.data.readers import Examples
from limbert.errors import ConfigError
from limbert.inference.compiled import CompiledSubnet, SubnetCompiler
from limbert.inference.load import load_checkpoint
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import SegmentedPolicy
from limbert.serve.app import create_app
from limbert.serve.errors import InvalidRequestError, UnavailableError
from limbert.serve.runner import ModelRunner, RequestOutput
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service
from limbert.serve.tokenizer import FastTokenizer
from limbert.serve.variants import ModelVariants

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
TEXTS = ["a film", "a long and slow but in the end rather moving film", "no"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_measured_run(tmp_path_factory.mktemp("serve") / "run")


def rows(service: Service, **options: Any) -> list[Any]:
    request = service.predict([(text, None) for text in TEXTS], options=RequestOptions(**options))
    return [*asyncio.run(asyncio.wait_for(request, 60)).outputs]


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Service]:
    """The operating point ``early``, which has exits, and two sub-networks in ONNX Runtime."""
    with opened(run, runtime="onnxruntime", policy="early", variants=3) as service:
        yield service


def test_operating_points_run_in_the_runtime(service: Service) -> None:
    assert sorted(service.variants.by_name) == ["0.5x0.5", "1x1", "early"]
    assert {(one.runtime, one.precision, one.memory_bytes > 0) for one in service.variants.variants} == {
        ("onnxruntime", "fp32", True)
    }
    assert {row.variant for row in rows(service)} == {"early"}
    with pytest.raises(InvalidRequestError, match=r"1x0\.5"):
        rows(service, subnet="1x0.5")


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_mixed_requests_equal_predictions(run: Path, service: Service, runtime: str) -> None:
    texts, names = [text for text, _ in PAIRS], [*service.variants.by_name]

    async def main() -> list[RequestOutput]:
        """Requests at all variants wait together, and one of them is cancelled."""
        requests = [
            asyncio.ensure_future(
                service.predict([(text, None) for text in texts[start::4]], options=RequestOptions(policy=name))
            )
            for start in (0, 1, 2, 3)
            for name in names
        ]
        await asyncio.sleep(0)
        requests.pop().cancel()
        return list(await asyncio.gather(*requests))

    outputs, layers = together(main), set[int]()
    for number, name in enumerate(names):
        served = [output.outputs for output in outputs[number :: len(names)]]
        predicted = pipeline(run, policy=f"static:{name}" if "x" in name else name, runtime=runtime)
        for start, part in enumerate(served):
            expected = predicted.predict(Examples(tuple(texts[start::4]), None, None))
            for row, prediction in zip(part, expected, strict=True):
                scores = torch.tensor(row.logits).softmax(-1)
                assert float(scores.max()) == pytest.approx(prediction.score, abs=1e-4)
                assert LABELS[int(scores.argmax())] == prediction.label
                assert (row.variant, row.layers, row.flops) == (name, prediction.layers_run, prediction.flops)
                layers |= {row.layers} if name == "early" else set()
    assert layers == {1, 2}


def test_closing_ends_waiting_requests(run: Path) -> None:
    with opened(run, runtime="onnxruntime", policy="early", variants=1) as service:

        async def main() -> list[Any]:
            requests = [asyncio.ensure_future(service.predict(PAIRS)) for _ in range(8)]
            await requests[0]
            await asyncio.to_thread(service.close)
            return await asyncio.gather(*requests, return_exceptions=True)

        for result in together(main):
            assert isinstance(result, UnavailableError) or {row.variant for row in result.outputs} == {"early"}


def test_latency_of_a_policy_follows_its_flops(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured on random tokens is scaled to the FLOPs on validation data."""
    clock = itertools.count()
    both = dict.fromkeys(("perf_counter", "process_time"), lambda: next(clock))
    monkeypatch.setattr("limbert.serve.runner.time", SimpleNamespace(**both))
    checkpoint = load_checkpoint(run)
    assert checkpoint.task is not None
    early = ModelVariants.from_run(run, checkpoint.model, task=checkpoint.task).by_name["early"]
    variants = ModelVariants((early, replace(early, name="costly", flops=3 * early.flops)))
    tokenizer = FastTokenizer(checkpoint.tokenizer, max_length=32, vocab_size=30522)
    runner = ModelRunner(checkpoint.model, variants, tokenizer, task_type="classification")
    models = runner.calibrate(max_length=32, time_budget=1000.0)
    assert models["costly"].per_token == pytest.approx(3 * models["early"].per_token)


def test_torch_holds_the_weights_once(run: Path) -> None:
    with opened(run, precision="bf16") as service:
        weights = load_checkpoint(run).model.network.num_parameters() * 4
        info = TestClient(create_app(service)).get("/info").json()
    assert info["model_dtype"] == "bfloat16"
    assert {(size["runtime"], size["precision"]) for size in info["sizes"]} == {("torch", "bf16")}
    held = {size["name"]: size["memory_bytes"] for size in info["sizes"]}
    assert held == dict.fromkeys(held, 0) | {"1x1": weights}


def test_padding_to_a_multiple_changes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    reference, original = Reference(run), SubnetCompiler.open

    def padded(self: SubnetCompiler, compiled: CompiledSubnet) -> Runtime:
        runtime = original(self, compiled)
        assert isinstance(runtime, Runtime)

        def run(inputs: Any) -> Any:
            shapes.append(inputs["input_ids"].shape[1])
            return runtime.run(inputs)

        return replace(runtime, run=run, token_multiple=8)

    monkeypatch.setattr(SubnetCompiler, "open", padded)
    with opened(run, runtime="onnxruntime", variants=1) as service:
        shapes.clear()
        for text, row in zip(TEXTS, rows(service), strict=True):
            torch.testing.assert_close(torch.tensor(row.logits), reference.logits(text), atol=1e-4, rtol=1e-4)
    assert shapes
    assert all(tokens % 8 == 0 for tokens in shapes)


def test_quality_counts_the_loss_of_precision(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {1: 0.5, 2: 0.004}  # by layers
    original = SubnetCompiler._cached

    def lossy(self: SubnetCompiler, files: Any) -> CompiledSubnet:
        layers = 1 if isinstance(files, SegmentedPolicy) else len(files.identity["layers"])
        return replace(original(self, files), metric_loss=losses[layers])

    monkeypatch.setattr(SubnetCompiler, "_cached", lossy)
    with opened(run, runtime="onnxruntime", policy="adaptive") as service:
        assert {variant.name: variant.quality for variant in service.variants.variants} == {"1x1": pytest.approx(0.896)}
        assert {row.variant for row in rows(service)} == {"1x1"}
    with (
        pytest.raises(ConfigError, match=r"50\.00 points"),
        opened(run, runtime="onnxruntime", policy="static:0.5x0.5"),
    ):
        pass
