"""An exported policy predicts as the engine does, in a process without Limbert and torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.factories.batch_jobs import make_texts
from tests.factories.labelled_runs import make_labelled_run
from tests.factories.runs import call, needs_encoder
from tests.factories.servers import LABELS

from limbert import evaluate, export_model, pipeline
from limbert.data.readers import Examples
from limbert.errors import ExportError
from limbert.export import formats
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.inference.segments import SegmentedPolicy
from limbert.method.early_exit import ExitRule, exit_score

pytestmark = needs_encoder
for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
TEXTS = make_texts(12)
BLOCKED = ("limbert", "torch", "transformers")
DRIVER = """
import runpy, sys
sys.path.append(sys.argv[1])
sys.modules |= dict.fromkeys(sys.argv[2].split(","))  # importing them fails
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with operating points: at ``balanced`` half of the texts exit."""
    folder = make_labelled_run(tmp_path_factory.mktemp("policy"))
    checkpoint = load_checkpoint(folder)
    tokens = checkpoint.tokenize(Examples(tuple(TEXTS), None, None))
    engine = Engine(checkpoint.model, Policy(exits=ExitRule("entropy", 0.0), widths=(0.5,)))
    logits, _ = engine.run_all_exits(tokens.collate(range(len(TEXTS))))
    threshold = round(float(exit_score(logits[0], "entropy", task_type="classification").median()), 4) + 1e-4
    balanced = Policy(exits=ExitRule("entropy", threshold), widths=(0.5,))
    points = {"balanced": balanced, "fast": Policy(subnet="0.5x0.5")}
    save_operating_points(
        folder, {name: OperatingPoint(policy, "accuracy", 0.9, 0.4) for name, policy in points.items()}
    )
    return folder


def run_driver(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The driver of an export, without site customisation and with numpy's site-packages alone."""
    site = Path(np.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", DRIVER, str(site), ",".join(BLOCKED)]
    script = str(folder / "policy_runtime.py")
    return subprocess.run([*command, script, *arguments], capture_output=True, text=True, check=False, cwd="/")


def test_driver_predicts_without_limbert_and_torch(run: Path, tmp_path: Path) -> None:
    exported = export_model(run, tmp_path / "out", policy="balanced", format="onnx", threads=1)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["policy"] == exported.policy.to_dict()
    assert record["compared"]["examples"] == 48
    assert exported.file_bytes == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.onnx"))
    assert {path.name for path in (tmp_path / "out").glob("segment-*")} == {"segment-0", "segment-1"}
    pipe = pipeline(run, policy="balanced")
    expected = pipe(TEXTS)
    done = run_driver(tmp_path / "out", *TEXTS)
    assert done.returncode == 0, done.stderr
    predicted = [json.loads(line) for line in done.stdout.splitlines()]
    assert [label for label, _ in predicted] == [row["label"] for row in expected]
    assert [score for _, score in predicted] == pytest.approx([row["score"] for row in expected], abs=1e-4)
    assert f"Policy `balanced ({exported.policy})`" in (tmp_path / "out" / "README.md").read_text()
    refused = run_driver(tmp_path / "out")
    assert refused.returncode == 1
    assert "TEXT" in refused.stderr


def test_pipeline_runs_a_policy_in_a_runtime(run: Path) -> None:
    engine, compiled = pipeline(run, policy="balanced"), pipeline(run, policy="balanced", runtime="onnxruntime")
    examples = Examples(tuple(TEXTS), None, None)
    expected, actual = engine.predict(examples), compiled.predict(examples)
    assert len({prediction.layers_run for prediction in expected}) > 1
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours.label, ours.cost_to_dict()) == (theirs.label, theirs.cost_to_dict())
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    (on_torch,), (on_onnx,) = (evaluate(run, policy="balanced", runtime=name) for name in ("torch", "onnxruntime"))
    for value in ("metrics", "flops_mean", "exit_shares", "width_shares"):
        assert getattr(on_onnx, value) == getattr(on_torch, value)


@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_int8_policy_is_measured(run: Path, tmp_path: Path, format: str) -> None:
    options = {"format": format, "int8": True, "max_drop": 100.0, "threads": 1, "data": str(run.parent / "data")}
    result = export_model(run, tmp_path / "out", policy="cascade:0.5x0.5,1x1", exit_threshold=0.9, **options)
    assert result.file_bytes == result.benchmarks["int8"].file_bytes < 0.5 * result.benchmarks["fp32"].file_bytes
    assert json.loads(run_driver(tmp_path / "out", TEXTS[0]).stdout)[0] in LABELS


def test_policy_of_one_sub_network_is_exported_as_such(run: Path, tmp_path: Path) -> None:
    result = export_model(run, tmp_path / "out", policy="fast")
    assert (result.config.subnet, result.policy) == ("0.5x0.5", None)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_other_exits_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SegmentedPolicy.write

    def write_other(self: SegmentedPolicy, folder: Path) -> None:
        self.policy = replace(self.policy, exits=ExitRule("entropy", 0.0))
        original(self, folder)

    monkeypatch.setattr(formats.SegmentedPolicy, "write", write_other)
    with pytest.raises(ExportError, match="layers"):
        export_model(run, tmp_path / "out", policy="balanced", format="onnx")
    assert not [*tmp_path.iterdir()]


def test_bad_input_gets_one_clear_line(run: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--policy", "balancd"], "balancd"),
        (["--policy", "balanced"], "onnx or openvino"),
        (["--policy", "width", "--format", "onnx"], "--phases gates"),
        (["--policy", "depth", "--format", "onnx"], "--exit-threshold"),
        (["--policy", "balanced", "--subnet", "1x1"], "--subnet or --policy"),
        (["--exit-threshold", "0.3"], "--policy"),
    ):
        done = call(tmp_path, "export", run, *options, "--output", "out")
        assert (done.returncode, done.stdout) == (1, ""), options
        assert message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
