"""``--runtime`` and ``--precision``: other runtimes predict the same, and impossible pairs are one line."""

import json
from pathlib import Path

import pytest
from tests.factories.labelled_runs import make_labelled_run
from tests.factories.runs import call, needs_encoder

from limbert.errors import ConfigError
from limbert.evaluation import benchmark
from limbert.inference.runtimes import check_runtime

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    make_labelled_run(folder)
    return folder


def test_predictions_and_metrics_equal_torchs(folder: Path) -> None:
    options = ["--subnet", "0.5x1", "--text", "the quick fox", "--text", "wizards brew a lazy potion", "--json"]
    torch, onnx = (json.loads(call(folder, "predict", "run", *options, "--runtime", name).stdout)
                   for name in ("torch", "onnxruntime"))  # fmt: skip
    assert [row["label"] for row in onnx] == [row["label"] for row in torch]
    assert [row["score"] for row in onnx] == pytest.approx([row["score"] for row in torch], abs=1e-4)
    evaluated = [json.loads(call(folder, "evaluate", "run", "--subnet", "0.5x1", "--json", *extra).stdout)[0]
                 for extra in ([], ["--runtime", "onnxruntime"])]  # fmt: skip
    assert evaluated[0].pop("calibration") == pytest.approx(evaluated[1].pop("calibration"), abs=1e-4)
    assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "run", "--text", "a", "--runtime", "tensorrt"], "tensorrt"),
        (["predict", "run", "--text", "a", "--precision", "int8"], "int8"),
        (["predict", "run", "--text", "a", "--runtime", "onnxruntime", "--precision", "bf16"], "bf16"),
        (["evaluate", "run", "--runtime", "onnxruntime", "--policy", "static:1x1"], "--subnet"),
        (["profile", "run", "--precision", "int8"], "int8"),
        (["serve", "run", "--variants", "0"], "variants is 0"),
    ],
)
def test_impossible_settings_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    done = call(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_profile_and_choose_compare_runtimes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(name: str, precision: str = "fp32") -> None:
        if name == "openvino":
            raise ConfigError("not installed")
        check_runtime(name, precision)

    monkeypatch.setattr(benchmark, "check_runtime", check)
    monkeypatch.setattr(benchmark, "peak_memory_bytes", lambda sources, *given, **named: [None] * len(sources))
    options = ["--subnets", "1x1", "--tokens", "8", "--rounds", "5", "--seconds", "0.1", "--threads", "1"]
    profiled = call(folder, "profile", "run", *options, "--runtime", "all", "--precision", "all", "--json")
    assert profiled.returncode == 0, profiled.stderr
    rows = json.loads(profiled.stdout)
    pairs = {(row["backend"], row["precision"]) for row in rows}
    assert pairs == {("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")}
    sizes = {(row["precision"], row["subnet"]): row["file_bytes"] for row in rows if row["backend"] == "onnxruntime"}
    assert sizes["int8", "1x1"] < 0.5 * sizes["fp32", "1x1"]
    chosen = call(folder, "choose", "run", "--max-drop", "100").stdout
    fastest = min(rows, key=lambda row: row["latency_p50_ms"])
    assert f"{fastest['subnet']} on {fastest['backend']} in {fastest['precision']}" in chosen
    onnx = call(folder, "choose", "run", "--max-drop", "100", "--runtime", "onnxruntime", "--precision", "int8").stdout
    assert "--runtime onnxruntime --precision int8" in onnx
    assert "--format onnx --int8" in onnx
