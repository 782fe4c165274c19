"""A server in another runtime: outputs equal the engine's, and only the loaded sub-networks are offered."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from tests.factories.runs import needs_encoder
from tests.factories.servers import Reference, make_measured_run, opened

from limbert.errors import ConfigError
from limbert.inference.compiled import CompiledSubnet, SubnetCompiler
from limbert.inference.load import load_checkpoint
from limbert.inference.runtimes import Runtime
from limbert.serve.app import create_app
from limbert.serve.errors import InvalidRequestError
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service

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


def test_outputs_equal_the_engines(run: Path) -> None:
    reference = Reference(run)
    with opened(run, runtime="onnxruntime", variants=2) as service:
        assert service.variants.names("subnet") == ["1x1", "0.5x0.5"]
        for name in ("1x1", "0.5x0.5"):
            for text, row in zip(TEXTS, rows(service, subnet=name), strict=True):
                assert row.variant == name
                expected = reference.logits(text, subnet=name)
                torch.testing.assert_close(torch.tensor(row.logits), expected, atol=1e-4, rtol=1e-4)
        assert {row.variant for row in rows(service, policy="early")} == {"early"}
        held = {one.name: (one.runtime, one.precision, one.memory_bytes > 0) for one in service.variants.variants}
        compiled = ("onnxruntime", "fp32", True)
        assert held == {"1x1": compiled, "0.5x0.5": compiled, "early": ("torch", "fp32", False)}
        with pytest.raises(InvalidRequestError, match=r"1x0\.5"):
            rows(service, subnet="1x0.5")


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
        return CompiledSubnet(original(self, files).path, losses[len(files.identity["layers"])])

    monkeypatch.setattr(SubnetCompiler, "_cached", lossy)
    with opened(run, runtime="onnxruntime", policy="adaptive") as service:
        assert {variant.name: variant.quality for variant in service.variants.variants if variant.kind == "subnet"} == {
            "1x1": pytest.approx(0.896)
        }
        assert {row.variant for row in rows(service)} == {"1x1"}
    with (
        pytest.raises(ConfigError, match=r"50\.00 points"),
        opened(run, runtime="onnxruntime", policy="static:0.5x0.5"),
    ):
        pass
